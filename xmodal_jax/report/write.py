"""Write the report of a run into its work directory."""

import os
import pathlib

from xmodal_jax.report.content import gather
from xmodal_jax.report.figure import picture
from xmodal_jax.report.page import page

PAGE, PICTURE = "report.html", "report.png"


def write_report(workdir: str | os.PathLike) -> list[pathlib.Path]:
    """Write `report.html` (one file, works offline) and `report.png`; returns their paths.

    Opens the run, so its data set must be there. Raises UserError for a folder without a run, without an evaluation, or
    when matplotlib (extra `demo`) is missing.
    """
    workdir = pathlib.Path(workdir)
    content = gather(workdir)
    made, drawn = page(content), picture(content)
    (workdir / PAGE).write_text(made, "utf-8")
    drawn.save(workdir / PICTURE, optimize=True)
    return [workdir / PAGE, workdir / PICTURE]
