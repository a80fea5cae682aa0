"""`labkit train FILE`: a data file becomes a portable adapter, even if interrupted meanwhile."""
