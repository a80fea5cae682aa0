"""Figures of the labs: `forms` has shared shapes, `labNN` those of one lab."""
