"""One start of a run: steps, evaluations and saves until the end, a signal, or evaluations that get no better."""

import json
import pathlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TextIO

import jax

from xmodal_jax.data.loader import Loader
from xmodal_jax.data.text import cut_words
from xmodal_jax.data.train import TrainDataset, train_dataset
from xmodal_jax.data.transfer import Prefetch
from xmodal_jax.encode.token_cache import token_caches, with_tokens
from xmodal_jax.objectives import lonely
from xmodal_jax.objectives.base import Objective
from xmodal_jax.parallel import stuck
from xmodal_jax.parallel.chips import chip_of
from xmodal_jax.parallel.mesh import batch_sharding, process_share
from xmodal_jax.parallel.processes import first_says, is_first
from xmodal_jax.settings import as_dict
from xmodal_jax.training.best import BestWatch, Standing
from xmodal_jax.training.checkpoint import Checkpoints
from xmodal_jax.training.flops import step_flops
from xmodal_jax.training.log import PACE_STEPS, TrainLog
from xmodal_jax.training.optimizer import learning_rate
from xmodal_jax.training.profile import Profile
from xmodal_jax.training.run import Run
from xmodal_jax.training.second_pass import SecondPass
from xmodal_jax.training.state import TrainState, examples_seen
from xmodal_jax.training.stop import Stopped, StopSignal
from xmodal_jax.training.watch import SkipWatch
from xmodal_jax.training.writers import open_writers

Evaluate = Callable[[Run, TrainState, Callable[[], None]], dict[str, Any]]


def peak_flops(devices: Iterable[Any]) -> float:
    """Return the FLOP/s of all devices together by their data sheets; a chip that is not in the list counts 0."""
    return sum(chip.peak if (chip := chip_of(device.device_kind)) else 0.0 for device in devices)


def start_log(
    run: Run, workdir: pathlib.Path, dataset: TrainDataset, first: int, seen: int, progress: TextIO | None
) -> TrainLog:
    """Return the log of a run from step `first` on, before which it has seen `seen` examples."""
    config, active = run.assembly.config, is_first()
    row = dataset.batch_at(0, 0, config.batch_size)  # one row: its shapes are all that is needed
    shapes = {name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype) for name, x in row.items()}
    flops = step_flops(run.recipe, run.abstract, shapes) / config.batch_size
    events = open_writers(config.log, workdir, first, config.name, as_dict(config)) if active else None
    peak = peak_flops(run.mesh.devices.flat)
    report = TrainLog(workdir, config.steps, config.batch_size, first, progress, flops, peak, events, active, seen)
    for name, lost in dataset.cut().items() if active else ():
        if said := cut_words(lost, name, "training captions"):
            report.say(said)
    return report


@dataclass
class Session:
    """One start of a run, to its end, a signal, or evaluations that get no better."""

    run: Run
    workdir: pathlib.Path
    checkpoints: Checkpoints
    stop: StopSignal
    evaluate: Evaluate
    profile: Profile
    progress: TextIO | None = None
    ended: str = "finished"
    """Reason of the end, once it is there: "finished", "signal" or "early"."""
    best: BestWatch = field(init=False)
    """Standing of the evaluations; of several processes the first alone follows it."""
    report: TrainLog = field(init=False)
    """Log of this start."""
    _again: SecondPass = field(init=False)
    kept: int = -1
    """Step whose checkpoint stays beside the last ones; -1 for none."""

    def __post_init__(self) -> None:
        config = self.run.assembly.config
        self.best = BestWatch(config.eval)
        self._rate: Callable[[int], Any] = learning_rate(config.optimizer, config.steps)

    def _contrasting(self) -> tuple[str, ...]:
        """Return the objectives whose negatives are rows of the batch, all of which have their fields."""
        objectives, fields = self.run.assembly.objectives, self.run.assembly.config.data.fields

        def whole(item: Objective) -> bool:
            return all(fields[name].required for name in item.reads if name in fields)

        alone = lonely(objectives) if self.run.assembly.config.batch_size > 1 else ()
        return tuple(name for name in alone if whole(objectives[name]))

    def steps(self, state: TrainState) -> TrainState:
        """Take steps until the end, a stop signal or an early stop; return the state after the last of them."""
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
        self.report = start_log(self.run, self.workdir, dataset, first, seen, self.progress)
        if self.best.on:
            self.best.standing = Standing.from_notes(self.checkpoints.notes(first).get("best", {}))
        sharding = batch_sharding(self.run.mesh)
        share = process_share(sharding, config.batch_size)
        loader = Loader(dataset, seen, *share, data.threads, data.prefetch)
        self._again = SecondPass(self.run, dataset, self.report, self.stop)
        watch = SkipWatch(config.optimizer.max_skips, self.report.say, self._contrasting())
        try:
            loader.poll = self.stop.check_alone
            with Prefetch(loader, sharding) as batches:
                state = self._each(state, batches, watch)
            watch.finish()
        finally:
            self.profile.close()
            self.report.close()
            if not (loader.stuck or self._again.stuck):  # a thread that hangs still reads in it
                dataset.close()
        return state

    def _each(self, state: TrainState, loader: Any, watch: SkipWatch) -> TrainState:
        """Take the steps, with evaluations, saves and lines of the log where they are due."""
        config, first, step = self.run.assembly.config, int(state.step), int(state.step)
        try:
            state = self._again(state, step)  # the last start may have been stopped in it
        except Stopped:
            self.ended = "signal"
            return state
        if self._ends_at_start(state, step):
            return state
        while step < config.steps:
            stuck.at(f"the batch of step {step + 1}")
            try:
                self.stop.check()
                batch = next(loader)
            except Stopped:
                self.ended = "signal"
                break
            step += 1
            stuck.at(f"step {step}")
            self.profile.before(step)
            if step == first + 1:
                self.report.say("compiling the train step, which may take minutes")
            state, metrics = self.run.step(state, batch)
            watch.sent(step, metrics)
            self.profile.after(step, metrics)
            self._report(step, step - first, metrics, loader)
            try:
                state = self._again(state, step)
            except Stopped:
                self.ended = "signal"
                break
            better = False
            if self._due(step):
                ends, better = self._evaluate(state, step)
                if ends:
                    break
            if step < config.steps and (better or step % config.checkpoint.every == 0):
                watch.finish()
                stuck.at(f"the save of step {step}")
                self.save(state)
        return state

    def _report(self, step: int, taken: int, metrics: dict[str, Any], loader: Any) -> None:
        """Log the step where it is due; `taken` counts the steps of this start."""
        config = self.run.assembly.config
        if taken in (1, 1 + PACE_STEPS):
            jax.block_until_ready(metrics)
        if taken == 1:
            self.report.compiled(step, loader.wait_seconds)
        elif taken == 1 + PACE_STEPS:
            self.report.pace(step)
        if step % config.log_every == 0 or step == config.steps:
            values = {name: float(value) for name, value in metrics.items()}
            updates = step - 1 - int(values["skipped"])  # before this one
            rate = float(self._rate(max(updates, 0)))
            self.report.step(step, values, loader.wait_seconds, bad_rows=loader.bad_rows, lr=rate)

    def save(self, state: TrainState) -> None:
        """Start a save of the state, with the standing of the evaluations."""
        notes = {"best": self.best.standing.as_notes()} if self.best.on and self.best.standing.looked else {}
        self.checkpoints.save(state, notes, self.kept)

    def farewell(self, step: int) -> str:
        """Return what to say of a run that ended at `step`, before its last."""
        if self.ended == "early":
            return self.best.sentence(step)
        return f"stopped by a signal at step {step}; saved, the same command goes on from here"

    def last_evaluation(self) -> tuple[int, dict[str, Any]]:
        """Return (step, numbers) of the last evaluation in the log; (0, {}) for none and in processes without one."""
        return max(self.report.evaluations.items(), key=lambda entry: entry[0], default=(0, {}))

    def _due(self, step: int) -> bool:
        """Return True if there is a quick evaluation after this step."""
        config = self.run.assembly.config
        every = config.eval.every
        return every > 0 and step > 0 and (step % every == 0 or step == config.steps)

    def _ends_at_start(self, state: TrainState, step: int) -> bool:
        """Make up for an evaluation in which the last start was stopped; return True if the run ends here."""
        if self._due(step):
            known = self.report.evaluations.get(step)  # the first process has the log
            if first_says(known is None):
                return self._evaluate(state, step)[0]
            if self.best.on and first_says(self.best.standing.looked < step):
                return self._compare(step, known or {})[0]
        return self._standing(step)

    def _evaluate(self, state: TrainState, step: int) -> tuple[bool, bool]:
        """Evaluate and log; return (whether the run ends here, whether this is the best evaluation so far)."""
        stuck.at(f"the evaluation after step {step}")
        started = time.perf_counter()
        try:
            numbers = json.loads(json.dumps(self.evaluate(self.run, state, self.stop.check)))
        except Stopped:
            self.ended = "signal"
            return True, False
        self.report.evaluated(step, numbers, time.perf_counter() - started)
        return self._compare(step, numbers)

    def _compare(self, step: int, numbers: dict[str, Any]) -> tuple[bool, bool]:
        """Compare an evaluation with the best; return (whether the run ends here, whether it is the best)."""
        if not self.best.on:
            return False, False
        better = bool(first_says(is_first() and self.best.look(step, numbers)))
        return self._standing(step), better

    def _standing(self, step: int) -> bool:
        """Tell all processes which checkpoint stays; return True if the patience is over, which the log then says."""
        if not self.best.on:
            return False
        self.kept = first_says(self.best.standing.step or -1)
        if not first_says(self.best.patience_over):
            return False
        self.ended = "early"
        self.report.stopped_early(step, self.best.standing.as_notes())
        return True
