"""`labkit train FILE`: a data file becomes a portable adapter, whatever interrupts it meanwhile."""
