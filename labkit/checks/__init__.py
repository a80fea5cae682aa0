"""The checks of the labs, one module a lab; `labkit.start` hands out the right one."""
