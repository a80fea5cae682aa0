"""Closed to submissions: the checks of the labs, a folder a lab, and what they share."""
