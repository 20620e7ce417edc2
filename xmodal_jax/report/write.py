"""Write the report of a run into its work directory."""

import os
import pathlib

from xmodal_jax.report.content import gather
from xmodal_jax.report.figure import picture
from xmodal_jax.report.page import page
from xmodal_jax.whole import write_whole

PAGE, PICTURE = "report.html", "report.png"


def write_report(workdir: str | os.PathLike, data: str = "") -> list[pathlib.Path]:
    """Write `report.html` (one file, works offline) and `report.png`; returns their paths.

    `data`: the data set, where it is not where the run finds it; without one there are no queries. Raises UserError for a folder without a run, without an evaluation, or
    when matplotlib (extra `demo`) is missing.
    """
    workdir = pathlib.Path(workdir)
    content = gather(workdir, data)
    made, drawn = page(content), picture(content)
    write_whole(workdir / PAGE, made)
    write_whole(workdir / PICTURE, lambda file: drawn.save(file, "PNG", optimize=True))
    return [workdir / PAGE, workdir / PICTURE]
