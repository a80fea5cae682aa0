"""Pages, tables and exports made from grades, outside the wall."""
