"""`nq verify` and `nq doctor`: checks of a feed and its vendors, with evidence."""
