"""Open a finished (or running) run, or the start of one: its assembly and the weights to use."""

import dataclasses
import pathlib

import jax

from xmodal_jax.assemble import Assembly, abstract_params, assemble, reassemble
from xmodal_jax.config import Config, MeshConfig, as_dict
from xmodal_jax.errors import refuse_unless
from xmodal_jax.origin import Origin
from xmodal_jax.train.checkpoint import Checkpoints, read_run
from xmodal_jax.train.loop import make_run
from xmodal_jax.train.teacher import view
from xmodal_jax.types import Params


def open_run(workdir: str | pathlib.Path, overrides: dict[str, dict] | None = None) -> tuple[Assembly, Params, int]:
    """The assembly, the weights that `config.eval.params` names, and their step.

    `overrides` replaces fields of run.json's config, section by section ({"eval": {"rerank": [32]}}); the architecture
    stays the checkpoint's. Without a data set among them the run's own is used, where it lies now (`Origin.locate`).
    Raises UserError for a folder without a run or a checkpoint of another architecture.
    """
    workdir = pathlib.Path(workdir)
    description = read_run(workdir)
    refuse_unless(
        "data" in description,
        f"the run.json of '{workdir}' was written by an earlier version of the program; train again in another --workdir",
    )
    description["config"]["mesh"] = as_dict(MeshConfig())  # the training mesh says nothing about this machine
    origin = Origin(workdir, description["data"])
    found = origin.locate()
    places = {"data": {"path": str(found)}} if found else {}
    for changes in (places, overrides or {}):
        for section, fields in changes.items():
            description["config"][section] = description["config"][section] | fields
    assembly = dataclasses.replace(reassemble(description, workdir), origin=origin)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # one device is enough to read weights
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                          abstract_params(assembly))  # fmt: skip
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step, params, teacher = checkpoints.restore_weights(shapes)
    return assembly, view(params, teacher) if assembly.config.eval.params == "teacher" else params, step


def open_start(config: Config) -> tuple[Assembly, Params]:
    """What a run of `config` starts from, without training: pretrained towers, and the heads from CCA where it says so.

    Embeddings that the config's batches would carry are not asked for: this is how they are made.
    """
    data = dataclasses.replace(config.data, embeddings="")
    assembly = assemble(dataclasses.replace(config, data=data, mesh=MeshConfig()))
    return assembly, make_run(assembly, jax.local_devices()[:1]).fresh().params
