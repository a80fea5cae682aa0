"""Open: what runs beside a learner's code, in a notebook and within the wall, and figures."""
