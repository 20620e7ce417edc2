"""Open a finished (or running) run, or the start of one: its assembly and the weights to use."""

import dataclasses
import pathlib

import jax

from xmodal_jax.assemble import Assembly, assemble, reassemble
from xmodal_jax.config import Config, MeshConfig, as_dict
from xmodal_jax.train.checkpoint import Checkpoints, read_run
from xmodal_jax.train.loop import make_run
from xmodal_jax.train.teacher import view
from xmodal_jax.types import Params


def open_run(workdir: str | pathlib.Path, overrides: dict[str, dict] | None = None) -> tuple[Assembly, Params, int]:
    """The assembly, the weights that `config.eval.params` names, and their step.

    `overrides` replaces fields of run.json's config, section by section ({"eval": {"rerank": [32]}}); the architecture
    stays the checkpoint's. Raises UserError for a folder without a run or a checkpoint of another architecture.
    """
    workdir = pathlib.Path(workdir)
    description = read_run(workdir)
    description["config"]["mesh"] = as_dict(MeshConfig())  # the training mesh says nothing about this machine
    for section, fields in (overrides or {}).items():
        description["config"][section] = description["config"][section] | fields
    assembly = reassemble(description, workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        # One device is enough to read weights; rows of a training mesh need not divide anything here.
        run = make_run(assembly, jax.local_devices()[:1])
        state = checkpoints.restore(run.abstract)
    config: Config = assembly.config
    params = view(state.params, state.teacher) if config.eval.params == "teacher" else state.params
    return assembly, params, int(state.step)


def open_start(config: Config) -> tuple[Assembly, Params]:
    """What a run of `config` starts from, without training: pretrained towers, and the heads from CCA where it says so.

    Embeddings that the config's batches would carry are not asked for: this is how they are made.
    """
    data = dataclasses.replace(config.data, embeddings="")
    assembly = assemble(dataclasses.replace(config, data=data, mesh=MeshConfig()))
    return assembly, make_run(assembly, jax.local_devices()[:1]).fresh().params
