"""The training loop: set up, restore, step, log, save."""

import json
import logging
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from xmodal_jax.assemble import Assembly, abstract_params, assemble, pretrained, start_params
from xmodal_jax.config import Config
from xmodal_jax.data.card import Card
from xmodal_jax.data.pipeline import Loader, train_dataset
from xmodal_jax.data.transfer import Prefetch
from xmodal_jax.errors import UserError, refuse_unless
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from xmodal_jax.parallel.processes import leaving_at_once
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.train.checkpoint import Checkpoints, write_run
from xmodal_jax.train.flops import step_flops
from xmodal_jax.train.log import TrainLog
from xmodal_jax.train.optimizer import make_optimizer
from xmodal_jax.train.state import TrainState
from xmodal_jax.train.step import Recipe, create_state, jit_step
from xmodal_jax.train.warmstart import start_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A config made ready on a mesh: the recipe, and where each leaf of the state lives."""

    assembly: Assembly
    recipe: Recipe
    mesh: jax.sharding.Mesh
    abstract: TrainState  # ShapeDtypeStructs with shardings
    step: Callable

    @property
    def shardings(self) -> Any:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def fresh(self) -> TrainState:
        """The state before the first step, made in place on the mesh: nothing ever exists unsharded."""
        found = pretrained(self.assembly.config)
        make = jax.jit(
            lambda key, leaves: _state(self.assembly, self.recipe, key, leaves), out_shardings=self.shardings
        )
        state = make(jax.random.key(self.assembly.config.seed), found)
        if self.assembly.config.joint.start != "cca":
            return state
        print("starting the heads from CCA on the training split", file=sys.stderr)
        return start_state(self.assembly, state)


def _state(assembly: Assembly, recipe: Recipe, key: jax.Array, found: dict[str, Any]) -> TrainState:
    return create_state(recipe, start_params(assembly, key, found), assembly.config.seed)


def make_run(assembly: Assembly, devices: list | None = None, cache: bool = True) -> Run:
    """Optimizer, mesh, shardings and the jitted step of an assembly; allocates nothing."""
    config = assembly.config
    mesh = make_mesh(config.mesh, devices)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    refuse_unless(
        config.batch_size % rows == 0,
        f"config.batch_size is {config.batch_size}, which {rows} devices (data x fsdp) cannot share; write a multiple of {rows}",
    )
    optimizer = make_optimizer(config.optimizer, abstract_params(assembly), config.steps)
    recipe = Recipe(config, assembly.model, assembly.objectives, optimizer, cache)
    shapes = jax.eval_shape(lambda key: _state(assembly, recipe, key, {}), jax.random.key(0))
    places = shardings(shapes, mesh)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    return Run(assembly, recipe, mesh, abstract, jit_step(recipe, places, batch_sharding(mesh), replicated(mesh)))


def refuse_impossible(config: Config, assembly: Assembly) -> None:
    """Values that only the model, the objectives and the data together can tell to be impossible."""
    card = Card.load(config.data.path)
    if config.eval.every:
        card.split(config.data.eval_split)
    for name, objective in assembly.objectives.items():
        every, group = getattr(objective, "every", 1), getattr(objective, "group", 0) or config.batch_size
        negatives = getattr(objective, "negatives", 0)
        where = f"config.objectives.{name}"
        refuse_unless(
            config.batch_size % group == 0 and group % every == 0,
            f"{where}: group={group} must divide batch_size={config.batch_size}, and every={every} the group; write divisors",
        )
        refuse_unless(
            negatives < group // every,
            f"{where}.negatives is {negatives}; write less than {group // every}, the rows they are drawn from",
        )
        refuse_unless(
            bool(card.label_names) or not getattr(objective, "by_label", False),
            f"{where}.by_label is True, but the data set '{config.data.path}' has no labels; write False",
        )


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag, so that the loop saves before it leaves."""

    def __init__(self) -> None:
        self.seen = 0  # the number of the signal
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: nothing to catch
                return self
        return self

    def _note(self, number: int, _: Any) -> None:
        self.seen = number
        signal.signal(number, self._old[number])  # a second one ends the process at once

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)


def refuse_non_finite(config: Config, metrics: dict[str, float]) -> None:
    """Stop after too many skipped steps in a row, naming the objective whose loss is not finite."""
    if metrics["skips_in_row"] < config.optimizer.max_skips:
        return
    bad = [
        name.removeprefix("loss/")
        for name, value in metrics.items()
        if name.startswith("loss/") and not np.isfinite(value)
    ]
    what = f"the loss of {', '.join(bad)} is not finite" if bad else "every loss is finite but the gradient is not"
    raise UserError(
        f"{config.optimizer.max_skips} steps in a row were skipped: {what}; the last good checkpoint is intact, "
        "lower config.optimizer.lr or look at the data, then run again to go on from it"
    )


def train(
    config: Config, workdir: str | pathlib.Path, evaluate: Callable[[Run, TrainState], dict] | None = None
) -> TrainState:
    """Train `config` in `workdir`, going on from its newest checkpoint; returns the final state.

    `evaluate(run, state)` is called every `config.eval.every` steps and gives numbers for the log.
    """
    workdir = pathlib.Path(workdir)
    assembly = assemble(config)
    refuse_impossible(config, assembly)
    run = make_run(assembly)
    workdir.mkdir(parents=True, exist_ok=True)
    with Checkpoints(workdir, config.checkpoint.keep) as checkpoints, StopSignal() as stop:
        fresh = checkpoints.latest() is None
        state = run.fresh() if fresh else checkpoints.restore(run.abstract)
        if not fresh:
            print(f"resuming '{workdir}' at step {int(state.step)} of {config.steps}")
        keep_description(assembly, workdir)
        with leaving_at_once(workdir):  # here, because the checkpoints wait for all processes when they close
            state = _steps(run, state, workdir, checkpoints, stop, evaluate)
        checkpoints.save(state)
    if stop.seen == signal.SIGINT:
        raise KeyboardInterrupt
    return state


def keep_description(assembly: Assembly, workdir: pathlib.Path) -> None:
    """run.json and, unless it is an installed package's, the tokenizer: the weights can be used without the data."""
    if assembly.config.text.tokenizer != "minilm":
        kept = workdir / "tokenizer.json"
        if assembly.tokenizer.path.resolve() != kept.resolve():
            shutil.copyfile(assembly.tokenizer.path, kept)
    write_run(workdir, assembly.describe())


def _steps(run: Run, state: TrainState, workdir: pathlib.Path, checkpoints: Checkpoints, stop: StopSignal,
           evaluate: Callable | None) -> TrainState:  # fmt: skip
    """Steps until the end of the run or a stop signal."""
    config, first = run.assembly.config, int(state.step)
    report = TrainLog(workdir, config.steps, config.batch_size, first)
    dataset = train_dataset(
        config.data.path, config.data.split, run.assembly.tokenizer, config.data, config.seed, config.batch_size
    )
    share = (jax.process_index(), jax.process_count())
    flops = step_flops(run.recipe, run.abstract, dataset.batch_at(int(state.cursor))) / config.batch_size
    loader = Loader(dataset, int(state.cursor), *share, config.data.threads, config.data.prefetch)
    with Prefetch(loader, batch_sharding(run.mesh)) as loader:
        for step, batch in _numbered(loader, first, config.steps):
            state, metrics = run.step(state, batch)
            if step == first + 1:
                jax.block_until_ready(metrics)
                report.compiled(step)
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in metrics.items()}
                report.step(step, values, loader.wait_seconds, flops)
                refuse_non_finite(config, values)
            if evaluate is not None and config.eval.every and step % config.eval.every == 0 and step < config.steps:
                started = time.perf_counter()
                report.evaluated(step, json.loads(json.dumps(evaluate(run, state))), time.perf_counter() - started)
            if stop.seen:
                print(f"stopped by a signal at step {step}; saved, the same command goes on from here")
                break
            if step % config.checkpoint.every == 0:
                checkpoints.save(state)
    dataset.close()
    return state


def _numbered(loader: Iterator, first: int, last: int) -> Iterator[tuple[int, Any]]:
    """(step after this batch, batch) from `first` to `last`."""
    for step in range(first + 1, last + 1):
        yield step, next(loader)
