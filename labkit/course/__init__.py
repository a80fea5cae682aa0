"""The commands' work on the labs: build, run, book, release. Submissions never use this code."""
