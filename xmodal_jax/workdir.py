"""Open a finished (or running) run, or the start of one: its assembly and the weights to use."""

import dataclasses
import pathlib
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from xmodal_jax.assemble import Assembly, assemble, known_shapes, reassemble
from xmodal_jax.origin import Origin, trained_languages
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.settings import Config, MeshConfig, as_dict
from xmodal_jax.terminal import handlers_kept
from xmodal_jax.training.averaging import average_checkpoints
from xmodal_jax.training.checkpoint import PARAMS, TEACHER, Checkpoints, read_run
from xmodal_jax.training.run import make_run
from xmodal_jax.training.teacher import start, view
from xmodal_jax.training.which import usable_steps
from xmodal_jax.types import Params


@handlers_kept()
def open_run(workdir: str | pathlib.Path, overrides: dict[str, dict] | None = None) -> tuple[Assembly, Params, int]:
    """Return the assembly, the weights to use on the mesh of all local devices, and their step.

    `config.eval` says which: of the student or the teacher (`params`), of the last or the best checkpoint (`step`), or
    the mean of several (`average`).

    `overrides` replaces fields of run.json's config, section by section ({"eval": {"rerank": [32]}}; for weights that
    one device cannot hold {"mesh": {"data": 1, "fsdp": -1}}); the architecture stays the checkpoint's. Without a data
    set among them the run's own is used, where it lies now (`Origin.locate`). Raises UserError for a folder without a
    run or a checkpoint of another architecture.
    """
    workdir = pathlib.Path(workdir)
    description = read_run(workdir)
    description["config"]["mesh"] = as_dict(MeshConfig())  # the training mesh says nothing about this machine
    origin = Origin(workdir, description["data"], trained_languages(description["config"]["data"]))
    found = origin.locate()
    places = {"data": {"path": str(found)}} if found else {}
    for changes in (places, overrides or {}):
        for section, fields in changes.items():
            description["config"][section] = description["config"][section] | fields
    assembly = dataclasses.replace(reassemble(description, workdir), origin=origin)
    mesh = make_mesh(assembly.config.mesh, jax.local_devices())
    wanted = used_weights(assembly, mesh, known_shapes(assembly, description.get("weights", {})))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if assembly.config.eval.average:
            step, found = average_checkpoints(checkpoints, wanted, assembly.config.eval.average)
        else:
            step, found = checkpoints.restore_some(wanted, usable_steps(checkpoints, assembly.config.eval))
    return assembly, view(found.get(PARAMS, {}), found.get(TEACHER, {})), step


def used_weights(assembly: Assembly, mesh: Mesh, shapes: Params) -> dict[str, Any]:
    """Return the leaves that `config.eval.params` names, as ShapeDtypeStructs on the mesh, by the item of a checkpoint.

    The teacher's are its own and, where it leaves some out, the student's.
    """
    config = assembly.config
    places = shardings(shapes, mesh)
    leaves = jax.tree.map(lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), shapes, places)
    if config.eval.params != "teacher":
        return {PARAMS: leaves}
    flat = flatten_dict(leaves, sep="/")
    own = jax.eval_shape(lambda params: start(params, config.teacher.exclude, config.optimizer.freeze), shapes)
    others = unflatten_dict({path: leaf for path, leaf in flat.items() if path not in own}, sep="/")
    found = {PARAMS: others, TEACHER: {path: flat[path] for path in own}}
    return {name: tree for name, tree in found.items() if tree}


def open_start(config: Config) -> tuple[Assembly, Params]:
    """Return the start of a run of `config`, untrained: pretrained towers, another run's weights, heads from CCA.

    Embeddings that the config's batches would carry are not asked for: this is how they are made.
    """
    data = dataclasses.replace(config.data, embeddings="")
    assembly = assemble(dataclasses.replace(config, data=data, mesh=MeshConfig()))
    params = make_run(assembly, jax.local_devices()[:1]).fresh().params
    return assembly, jax.device_put(params, shardings(params, make_mesh(MeshConfig(), jax.local_devices())))
