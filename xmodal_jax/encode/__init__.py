"""Encode splits, files and whole data sets with the towers of a run."""
