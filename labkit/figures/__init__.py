"""Figures of the labs: `forms` has the shapes they share, `labNN` those of one lab."""
