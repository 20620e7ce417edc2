"""Train a config in a work directory: set up, restore, run, save."""

import logging
import pathlib
import signal
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from xmodal_jax.assemble import assemble
from xmodal_jax.checks import refuse_impossible
from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError
from xmodal_jax.origin import keep_trained, refuse_other_data
from xmodal_jax.parallel import stuck
from xmodal_jax.parallel.processes import is_first, leaving_at_once
from xmodal_jax.settings import Config
from xmodal_jax.training.begin import (
    changed_fields,
    keep_description,
    only_run,
    refuse_other_momentum,
    refuse_other_rows,
    refuse_other_starts,
    refuse_other_tokenizer,
    refuse_untrained_change,
    refuse_without_run_file,
    say_large_batch,
    say_short_run,
    with_kept_facts,
)
from xmodal_jax.training.checkpoint import Checkpoints, read_run
from xmodal_jax.training.optimizer import refuse_frozen_start
from xmodal_jax.training.profile import Profile
from xmodal_jax.training.quick import quick_evaluation, refuse_unfit_quick
from xmodal_jax.training.run import Run, make_run
from xmodal_jax.training.session import Evaluate, Session
from xmodal_jax.training.state import TrainState
from xmodal_jax.training.stop import StopSignal

__all__ = ["Run", "TrainResult", "make_run", "run_training", "say_short_run", "train", "with_kept_facts"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The end of a call of `run_training`."""

    state: TrainState
    step: int
    """Steps the run has behind it, those of earlier calls included."""
    seconds: float
    """Wall time of this call."""
    ended: str
    """Reason of the end: "finished", "signal" or "early" (`config.eval.patience`)."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Numbers of the last quick evaluation, nested as in metrics.jsonl; {} where there was none."""
    evaluation_step: int = 0
    """Step of that evaluation; 0 where there was none."""
    best_step: int = 0
    """Step of the best evaluation by `config.eval.keep_best`; 0 where none is kept."""


def train(
    config: Config,
    workdir: str | pathlib.Path,
    evaluate: Evaluate | None = None,
    profile: tuple[int, int] | None = None,
    *,
    handle_signals: bool = False,
    progress: TextIO | None = None,
) -> TrainState:
    """Train `config` in `workdir` and return the final state; see `run_training`."""
    return run_training(config, workdir, evaluate, profile, handle_signals=handle_signals, progress=progress).state


def run_training(
    config: Config,
    workdir: str | pathlib.Path,
    evaluate: Evaluate | None = None,
    profile: tuple[int, int] | None = None,
    *,
    handle_signals: bool = False,
    progress: TextIO | None = None,
) -> TrainResult:
    """Train `config` in `workdir`, going on from its newest checkpoint.

    Args:
      config: the run.
      workdir: folder of the checkpoints, metrics.jsonl and run.json; created where it is missing.
      evaluate: called as `evaluate(run, state, poll)` every `config.eval.every` steps and after the last one. It
        returns numbers for the log and calls `poll` now and then, which aborts it when the run must stop. None:
        `quick_evaluation`.
      profile: (first, last) steps to trace to workdir/profile.
      handle_signals: stop in order at the first SIGTERM or SIGINT, in the main thread alone.
      progress: stream on which the progress is shown; None: it goes to the package's loggers at level INFO.

    Raises:
      UserError: for a config, a data set or a work directory that does not fit.
      KeyboardInterrupt: after SIGINT was handled and the state saved.
    """
    began, workdir = time.perf_counter(), pathlib.Path(workdir)
    if evaluate is None:
        refuse_unfit_quick(config)
    assembly = assemble(with_kept_facts(config, workdir))
    refuse_impossible(config, Card.load(config.data.path))
    run = make_run(assembly)
    refuse_frozen_start(config, run.abstract.params)
    keep, stop = config.checkpoint.keep, StopSignal(handle_signals)
    with only_run(workdir), Checkpoints(workdir, keep) as checkpoints, stop:
        state, fresh = _first_state(run, checkpoints, workdir)
        trace = Profile(workdir / "profile", *(profile or (0, 0)))
        trace.check(int(state.step), config.steps)
        if is_first():
            _describe(run, workdir, int(state.step), fresh)
        session = Session(run, workdir, checkpoints, stop, evaluate or quick_evaluation, trace, progress)
        with leaving_at_once(workdir):  # here, because the checkpoints wait for all processes when they close
            state = session.steps(state)
            stuck.at("the last save")
            session.save(state)
            checkpoints.wait()  # while a signal is still only noted
    step = int(state.step)
    if stop.seen:
        session.ended = "signal"
    if is_first() and session.ended != "finished":
        log.info("%s", session.farewell(step))
    if stop.seen == signal.SIGINT:
        raise KeyboardInterrupt
    seconds, (last, numbers) = time.perf_counter() - began, session.last_evaluation()
    return TrainResult(state, step, seconds, session.ended, numbers, last, session.best.standing.step)


def _first_state(run: Run, checkpoints: Checkpoints, workdir: pathlib.Path) -> tuple[TrainState, bool]:
    """Return the state that this start begins with, and whether the run is new; refuse what does not fit."""
    config, fresh = run.assembly.config, checkpoints.latest() is None
    if not fresh:
        refuse_without_run_file(workdir)
        refuse_other_tokenizer(run.assembly, workdir)
        refuse_other_starts(run.assembly, workdir)
        refuse_other_data(config, workdir, read_run(workdir))
    state = run.fresh() if fresh else checkpoints.restore(run.abstract)
    if int(state.step) > config.steps:
        raise UserError(
            f"'{workdir}' is at step {int(state.step)} already, and config.steps is {config.steps}; write more steps "
            "or another work directory"
        )
    refuse_other_momentum(config, state, workdir)
    if not fresh:
        refuse_untrained_change(config, int(state.step), workdir)
        refuse_other_rows(run.assembly.objectives, config, workdir)
    return state, fresh


def _describe(run: Run, workdir: pathlib.Path, step: int, fresh: bool) -> None:
    """Say what goes on, and write what the work directory keeps of the run beside its checkpoints."""
    config = run.assembly.config
    if not fresh:
        log.info("resuming '%s' at step %d of %d%s", workdir, step, config.steps, changed_fields(config, workdir))
    say_short_run(config)
    say_large_batch(config, run.assembly.facts)
    keep_description(run.assembly, run.abstract.params, workdir)
    keep_trained(config, workdir, fresh)
