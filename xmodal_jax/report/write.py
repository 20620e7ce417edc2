"""Write the report of a run into its work directory."""

import os
import pathlib
from collections.abc import Callable

from xmodal_jax.atomic import write_file
from xmodal_jax.report.charts import new_figure
from xmodal_jax.report.content import gather, unheard
from xmodal_jax.report.page import page
from xmodal_jax.report.picture import picture

PAGE, PICTURE = "report.html", "report.png"


def write_report(
    workdir: str | os.PathLike, data: str = "", say: Callable[[str], None] = unheard
) -> list[pathlib.Path]:
    """Write `report.html` (one file, works offline) and `report.png` (a picture of it); return their paths.

    Args:
      workdir: folder of the run.
      data: the data set, if it is not where the run finds it; without a data set there are no queries.
      say: called with a few words before each part of the work.

    Raises:
      UserError: no run, no evaluation of it, or no matplotlib (extra `demo`).
    """
    workdir = pathlib.Path(workdir)
    new_figure(1, 1)  # refused before the work where matplotlib is not installed
    content = gather(workdir, data, say)
    say("drawing")
    made, drawn = page(content), picture(content)
    write_file(workdir / PAGE, made)
    write_file(workdir / PICTURE, drawn)
    return [workdir / PAGE, workdir / PICTURE]
