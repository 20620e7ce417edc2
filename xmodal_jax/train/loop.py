"""The training loop: set up, restore, step, log, save."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from xmodal_jax.assemble import Assembly, abstract_params, assemble, document_frequencies, start_params
from xmodal_jax.checks import refuse_chunks, refuse_impossible
from xmodal_jax.config import Config, as_dict
from xmodal_jax.data.card import Card
from xmodal_jax.data.loader import Loader
from xmodal_jax.data.text import cut_words
from xmodal_jax.data.train import TrainDataset, train_dataset
from xmodal_jax.data.transfer import Prefetch
from xmodal_jax.encode.token_cache import token_caches, with_tokens
from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import flat
from xmodal_jax.objectives import lonely
from xmodal_jax.origin import describe, keep_trained, refuse_other_data
from xmodal_jax.parallel import stuck
from xmodal_jax.parallel.chips import chip_of
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, process_share, replicated
from xmodal_jax.parallel.processes import first_says, is_first, leaving_at_once
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.train.cca import start_state
from xmodal_jax.train.checkpoint import Checkpoints, read_run, write_run
from xmodal_jax.train.flops import step_flops
from xmodal_jax.train.log import TrainLog
from xmodal_jax.train.optimizer import make_optimizer, refuse_frozen_start, refuse_mixed_momentum
from xmodal_jax.train.state import TrainState, examples_seen
from xmodal_jax.train.step import Recipe, create_state, jit_step
from xmodal_jax.train.stop import Stopped, StopSignal
from xmodal_jax.train.tensorboard import EventWriter
from xmodal_jax.train.watch import SkipWatch
from xmodal_jax.weights import pretrained
from xmodal_jax.whole import write_whole

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
        found = pretrained(self.assembly.config) | document_frequencies(self.assembly)
        make = jax.jit(
            lambda key, leaves: _state(self.assembly, self.recipe, key, leaves), out_shardings=self.shardings
        )
        state = make(jax.random.key(self.assembly.config.seed), found)
        if self.assembly.config.joint.start != "cca":
            return state
        if is_first():
            print("starting the heads from CCA on the training split", file=sys.stderr)
        return start_state(self.assembly, state)


def _state(assembly: Assembly, recipe: Recipe, key: jax.Array, found: dict[str, Any]) -> TrainState:
    return create_state(recipe, start_params(assembly, key, found), assembly.config.seed)


def make_run(assembly: Assembly, devices: list | None = None, cache: bool = True) -> Run:
    """Optimizer, mesh, shardings and the jitted step of an assembly; allocates nothing."""
    config = assembly.config
    mesh = make_mesh(config.mesh, devices)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % rows != 0:
        raise UserError(
            f"config.batch_size is {config.batch_size}, which {rows} devices (data x fsdp) cannot share; write a multiple of {rows}"
        )
    refuse_chunks(config, assembly.objectives, rows)
    optimizer = make_optimizer(config.optimizer, abstract_params(assembly), config.steps)
    recipe = Recipe(config, assembly.model, assembly.objectives, optimizer, cache, assembly.facts)
    shapes = jax.eval_shape(lambda key: _state(assembly, recipe, key, {}), jax.random.key(0))
    places = shardings(shapes, mesh)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    return Run(assembly, recipe, mesh, abstract, jit_step(recipe, places, batch_sharding(mesh), replicated(mesh)))


def train(
    config: Config,
    workdir: str | pathlib.Path,
    evaluate: Callable[[Run, TrainState, Callable], dict] | None = None,
    profile: tuple[int, int] | None = None,
) -> TrainState:
    """Train `config` in `workdir`, going on from its newest checkpoint; returns the final state.

    `evaluate(run, state, poll)` is called every `config.eval.every` steps and after the last one, and gives numbers for the
    log; it calls `poll` now and then, which ends it when the run must stop. `profile` (first, last) traces these steps to
    workdir/profile.
    """
    workdir = pathlib.Path(workdir)
    assembly = assemble(with_kept_statistics(config, workdir))
    refuse_impossible(config, Card.load(config.data.path))
    run = make_run(assembly)
    refuse_frozen_start(config, run.abstract.params)
    with only_run(workdir), Checkpoints(workdir, config.checkpoint.keep) as checkpoints, StopSignal() as stop:
        fresh = checkpoints.latest() is None
        if not fresh:
            refuse_other_tokenizer(assembly, workdir)
            refuse_other_data(config, workdir, read_run(workdir))
        state = run.fresh() if fresh else checkpoints.restore(run.abstract)
        first = int(state.step)
        if first > config.steps:
            raise UserError(
                f"'{workdir}' is at step {first} already, and config.steps is {config.steps}; write more steps or another --workdir"
            )
        refuse_other_momentum(config, state, workdir)
        trace = Profile(workdir / "profile", *(profile or (0, 0)))
        trace.check(first, config.steps)
        if is_first():
            if not fresh:
                print(
                    f"resuming '{workdir}' at step {first} of {config.steps}{changed_fields(assembly.config, workdir)}",
                    flush=True,
                )
            say_short_run(config)
            keep_description(assembly, workdir)
            keep_trained(config, workdir, fresh)
        session = _Session(run, workdir, checkpoints, stop, evaluate, trace)
        with leaving_at_once(workdir):  # here, because the checkpoints wait for all processes when they close
            state = session.steps(state)
            stuck.at("the last save")
            checkpoints.save(state)
            checkpoints.wait()  # while a signal is still only noted
    if stop.seen and is_first():
        print(f"stopped by a signal at step {int(state.step)}; saved, the same command goes on from here", flush=True)
    if stop.seen == signal.SIGINT:
        raise KeyboardInterrupt
    return state


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the work directory: a second run in it, say of a job that was queued again too early, is refused.

    The lock ends with the process, however it ends. A file system without locks has none.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"'{workdir}' cannot be a work directory ({error.strerror}); write another --workdir"
        ) from error
    if not is_first():
        yield
        return
    with (workdir / "lock").open("a", encoding="utf-8") as file:  # not "w": a refused start changes nothing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in '{workdir}'; stop it first, or write another --workdir"
            ) from None
        except OSError as error:
            log.warning("'%s' cannot be locked (%s); see that no other run uses it", workdir, error)
        yield


def refuse_other_tokenizer(assembly: Assembly, workdir: pathlib.Path) -> None:
    """Going on with other word ids under the same weights would be nonsense that nothing else notices."""
    for name, own in assembly.own_tokenizers.items():
        kept = workdir / name
        if kept.is_file() and kept.read_bytes() != own.path.read_bytes():
            raise UserError(
                f"the tokenizer '{own.path}' is not the one that '{workdir}' was trained with; write the config.data.path it was "
                "trained on, or another --workdir"
            )


def refuse_other_momentum(config: Config, state: TrainState, workdir: pathlib.Path) -> None:
    """Hold `optimizer.sgd_after` against what the run was last started with; see `refuse_mixed_momentum`."""
    updates = int(state.step) - int(state.skipped)
    try:
        before = flat(read_run(workdir)["config"]).get("optimizer/sgd_after", 0) if updates else 0
    except UserError:
        return
    refuse_mixed_momentum(before, config.optimizer.sgd_after, updates, str(workdir))


def with_kept_statistics(config: Config, workdir: pathlib.Path) -> Config:
    """The config with the statistics of the run in `workdir` where it leaves them empty: its weights are trained with them."""
    if not any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*")):
        return config  # nothing is trained yet: the weights that are named now tell
    try:
        kept: dict[str, Any] = read_run(workdir)["config"]["encoders"]
        return dataclasses.replace(
            config, encoders={name: _kept_pixels(own, kept.get(name, {})) for name, own in config.encoders.items()}
        )
    except (UserError, KeyError, TypeError, AttributeError):
        return config


def _kept_pixels(own: Any, kept: dict[str, Any]) -> Any:
    """An encoder's config with the statistics of pixels in `kept`, where it leaves its own empty."""
    if own.reads != "pixels" or kept.get("kind") != own.kind or not (kept.get("pixel_mean") and kept.get("pixel_std")):
        return own
    mean, std = own.pixel_mean or tuple(kept["pixel_mean"]), own.pixel_std or tuple(kept["pixel_std"])
    return dataclasses.replace(own, pixel_mean=mean, pixel_std=std)


def say_short_run(config: Config) -> None:
    """Say that a run ends inside its warm-up: its learning rate never reaches `lr`."""
    warmup = config.optimizer.warmup
    if config.steps < warmup:
        log.warning(
            "config.optimizer.warmup is %d and config.steps %d: the learning rate only climbs, to %.2g %% of "
            "config.optimizer.lr; write a shorter warm-up to reach it",
            warmup,
            config.steps,
            100 * config.steps / warmup,
        )


def changed_fields(config: Config, workdir: pathlib.Path) -> str:
    """What this start changes of the config that the run was started with, in words; "" for nothing."""
    try:
        before = flat(read_run(workdir)["config"])
    except UserError:
        return ""
    now = flat(json.loads(json.dumps(as_dict(config))))
    other = [
        f"{name.replace('/', '.')} {before.get(name)} -> {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    return f"; changed since its last start: {', '.join(other)}" if other else ""


def keep_description(assembly: Assembly, workdir: pathlib.Path) -> None:
    """run.json and the tokenizers that are no installed package's: the weights can be used without the data."""
    for name, own in assembly.own_tokenizers.items():
        if own.path.resolve() != (workdir / name).resolve():
            write_whole(workdir / name, own.path.read_bytes())
    write_run(workdir, assembly.describe() | {"data": describe(assembly.config, workdir)})


class Profile:
    """A profiler trace of the steps `first` to `last`, in `folder`; nothing without them."""

    def __init__(self, folder: pathlib.Path, first: int, last: int) -> None:
        self.folder = folder / f"process{jax.process_index()}" if jax.process_count() > 1 else folder
        self.first, self.last, self._on = first, last, False

    def check(self, first: int, last: int) -> None:
        """Refuse steps that a run from step `first` to `last` does not take."""
        if self.last and not first < self.last <= last:
            raise UserError(
                f"--profile ends at step {self.last}, and this run takes steps {first + 1} to {last}; write some of these"
            )

    def before(self, step: int) -> None:
        """Start where the trace begins."""
        if self.last and not self._on and self.first <= step <= self.last:
            jax.profiler.start_trace(str(self.folder))
            self._on = True

    def after(self, step: int, metrics: Any) -> None:
        """Stop where it ends, once the step is done."""
        if self._on and step >= self.last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Write the trace when one is under way."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            print(f"wrote the trace to '{self.folder}'", file=sys.stderr)


def peak_flops(devices: Any) -> float:
    """FLOP/s that all devices can do together by their data sheets; 0 where a chip is not in the list."""
    return sum(chip.peak if (chip := chip_of(device.device_kind)) else 0.0 for device in devices)


def start_log(run: Run, workdir: pathlib.Path, dataset: TrainDataset, first: int, seen: int) -> TrainLog:
    """The log of a run from step `first` on, before which it has seen `seen` examples."""
    config, active = run.assembly.config, is_first()
    row = dataset.batch_at(0, 0, config.batch_size)  # one row: its shapes are all that is needed
    shapes = {name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype) for name, x in row.items()}
    flops = step_flops(run.recipe, run.abstract, shapes) / config.batch_size
    events = EventWriter(workdir / "tensorboard", first) if config.tensorboard and active else None
    peak = peak_flops(run.mesh.devices.flat)
    report = TrainLog(workdir, config.steps, config.batch_size, first, None, flops, peak, events, active, seen)
    for name, lost in dataset.cut().items() if active else ():
        if said := cut_words(lost, name, "training captions"):
            report.say(said)
    return report


@dataclass
class _Session:
    """From one start of a run to its end or to a signal."""

    run: Run
    workdir: pathlib.Path
    checkpoints: Checkpoints
    stop: StopSignal
    evaluate: Callable | None
    profile: Profile

    def _contrasting(self) -> tuple[str, ...]:
        """The objectives whose negatives are rows of the batch, all of which have their fields."""
        objectives, fields = self.run.assembly.objectives, self.run.assembly.config.data.fields

        def whole(item):
            return all(fields[name].required for name in item.reads if name in fields)

        alone = lonely(objectives) if self.run.assembly.config.batch_size > 1 else ()
        return tuple(name for name in alone if whole(objectives[name]))

    def steps(self, state: TrainState) -> TrainState:
        """Steps until the end of the run or a stop signal; the state after the last of them."""
        config, first = self.run.assembly.config, int(state.step)
        data = config.data
        texts = token_caches(self.run.assembly, state.params)
        dataset = train_dataset(
            data.path,
            data.split,
            self.run.assembly.specs,
            data,
            config.seed,
            config.batch_size,
            partial(with_tokens, texts, data),
        )
        seen = examples_seen(state.cursor)
        self.report = start_log(self.run, self.workdir, dataset, first, seen)
        sharding = batch_sharding(self.run.mesh)
        share = process_share(sharding, config.batch_size)
        loader = Loader(dataset, seen, *share, data.threads, data.prefetch)
        watch = SkipWatch(
            config.optimizer.max_skips,
            self.report.say,
            self._contrasting(),
        )
        try:
            loader.poll = self.stop.check_alone
            with Prefetch(loader, sharding) as batches:
                state = self._each(state, batches, watch)
            watch.finish()
        finally:
            self.profile.close()
            self.report.close()
            if not loader.stuck:  # a thread that hangs still reads in it
                dataset.close()
        return state

    def _each(self, state: TrainState, loader: Any, watch: SkipWatch) -> TrainState:
        config, first, step = self.run.assembly.config, int(state.step), int(state.step)
        # The start before this one may have been stopped in the middle of an evaluation; the first process has the log.
        if self._due(step) and first_says(step not in self.report.evaluations) and self._evaluate(state, step):
            return state
        while step < config.steps and not self.stop.poll():
            stuck.at(f"the batch of step {step + 1}")
            try:
                batch = next(loader)
            except Stopped:
                break
            step += 1
            stuck.at(f"step {step}")
            self.profile.before(step)
            state, metrics = self.run.step(state, batch)
            watch.sent(step, metrics)
            self.profile.after(step, metrics)
            if step == first + 1:
                jax.block_until_ready(metrics)
                self.report.compiled(step, loader.wait_seconds)
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in metrics.items()}
                self.report.step(step, values, loader.wait_seconds, bad_rows=loader.bad_rows)
            if self._due(step) and self._evaluate(state, step):
                break
            if step % config.checkpoint.every == 0 and step < config.steps:
                watch.finish()
                stuck.at(f"the save of step {step}")
                self.checkpoints.save(state)
        return state

    def _due(self, step: int) -> bool:
        """Whether there is a quick evaluation after this step."""
        config = self.run.assembly.config
        every = config.eval.every
        last = step == config.steps
        return self.evaluate is not None and every > 0 and step > 0 and (step % every == 0 or last)

    def _evaluate(self, state: TrainState, step: int) -> bool:
        """Evaluate and log; True when a signal ended it."""
        stuck.at(f"the evaluation after step {step}")
        started = time.perf_counter()
        try:
            mean = self.evaluate(self.run, state, self.stop.check)
        except Stopped:
            return True
        self.report.evaluated(step, json.loads(json.dumps(mean)), time.perf_counter() - started)
        return False
