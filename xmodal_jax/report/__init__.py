"""The report of a run: a page that needs no other file, and a picture of it."""

from xmodal_jax.report.write import write_report

__all__ = ["write_report"]
