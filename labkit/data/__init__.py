"""A data file of one's own: read it, say what its rows are, find what would train wrongly.

`read.rows` -> `shapes.recognise` -> `audit.audit` -> `split.split`; small functions on plain data,
each of use alone. A tokenizer is passed in: nothing here loads a model.
"""
