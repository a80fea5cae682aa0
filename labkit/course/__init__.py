"""What the command does with the labs: build, run, book, release. No submission gets here."""
