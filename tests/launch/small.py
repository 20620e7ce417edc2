"""A config that compiles in seconds, with state of every kind but one objective: contrastive with teacher and queue."""

import pathlib
import runpy

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


def get_config():
    """The tiny quickstart with ITC only, for the data set of shapes."""
    config = runpy.run_path(str(QUICKSTART))["get_config"]("tiny")
    config.objectives = {"itc": config.objectives.itc}
    config.batch_size, config.log_every, config.data.image_size = 8, 1, 16
    config.checkpoint.every = 2
    return config
