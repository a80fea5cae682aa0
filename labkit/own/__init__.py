"""`labkit train FILE`: train a portable adapter on a data file, resumable if interrupted."""
