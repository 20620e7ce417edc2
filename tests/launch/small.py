"""A config that compiles in seconds, with state of every kind but one objective: contrastive with teacher and queue."""

import os
import pathlib
import runpy
import time

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


def get_config():
    """The tiny quickstart with ITC only, for the data set of shapes."""
    config = runpy.run_path(str(QUICKSTART))["get_config"]("tiny")
    config.objectives = {"itc": config.objectives.itc}
    config.batch_size, config.log_every, config.encoders.image.size = 8, 1, 16
    config.checkpoint.every = 2
    if seconds := float(os.environ.get("SLOW_LOADER", "0")):
        slow_down(seconds)
    return config


def slow_down(seconds: float) -> None:
    """A disk on which each batch takes so long."""
    from xmodal_jax.data.train import TrainDataset

    fast = TrainDataset.batch_from

    def slow(self, *where):
        time.sleep(seconds)
        return fast(self, *where)

    TrainDataset.batch_from = slow
