"""A user's data file: read it, recognize the shape of its rows, find what would train wrongly.

`read.rows` -> `shapes.recognise` -> `audit.audit` -> `split.split`: small functions on plain data.
A tokenizer is passed in; no model is loaded.
"""
