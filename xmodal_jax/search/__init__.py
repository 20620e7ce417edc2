"""Exact search: the mathematics, and the files of an index."""
