"""Read a user's data file, recognize the shape of its rows, and find rows that train wrongly.

The steps are `read.rows` -> `shapes.recognise` -> `audit.audit` -> `split.split`, small functions
on plain data. The caller passes in a tokenizer; no model is loaded.
"""
