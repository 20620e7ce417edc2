"""Which checkpoint of a run is used: the newest, or the one with the best evaluation."""

from collections.abc import Sequence
from typing import Any

from xmodal_jax.errors import UserError
from xmodal_jax.settings import EvalConfig
from xmodal_jax.training.best import Standing
from xmodal_jax.training.checkpoint import Checkpoints


def usable_steps(checkpoints: Checkpoints, config: EvalConfig) -> Sequence[int] | None:
    """Return the step of the best checkpoint in a list where the config asks for it, else None: the newest good one.

    Raises UserError where `config.step` asks for a best checkpoint and there is none, and for one that is gone.
    """
    which = config.step or ("best" if config.keep_best else "last")
    if which == "last":
        return None
    found = best_of(checkpoints).step
    if not found and config.step == "best" and checkpoints.steps():
        raise UserError(
            f"config.eval.step is 'best', and '{checkpoints.folder}' has no best checkpoint; train with "
            "config.eval.keep_best, or write config.eval.step=last"
        )
    if found and (fault := checkpoints.fault(found, ())):
        raise UserError(
            f"the best checkpoint in '{checkpoints.folder}', of step {found}, is damaged ({fault}); put a copy of a "
            "good one there, or write config.eval.step=last"
        )
    return [found] if found else None


def best_of(checkpoints: Checkpoints) -> Standing:
    """Return the best evaluation that the newest checkpoint with notes knows of; one of step 0 where none does."""
    for step in reversed(checkpoints.steps()):
        if notes := checkpoints.notes(step).get("best"):
            return Standing.from_notes(notes)
    return Standing()


def eval_section(description: dict[str, Any]) -> EvalConfig:
    """Return the fields of a run's description that say which weights it uses, in an EvalConfig."""
    kept = description["config"]["eval"]
    return EvalConfig(**{name: kept[name] for name in ("keep_best", "step", "params") if name in kept})
