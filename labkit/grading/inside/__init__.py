"""Code that runs within the wall, next to a submission, which can read and change it."""
