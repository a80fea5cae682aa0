"""What the commands do with the labs: build, run, book, release. Submissions never use it."""
