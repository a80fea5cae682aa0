"""What is made of grades, outside of the wall: pages, tables, exports."""
