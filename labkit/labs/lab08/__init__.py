"""Lab 8's figures and probes."""
