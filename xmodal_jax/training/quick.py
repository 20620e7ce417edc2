"""Evaluate a run that trains, quickly: retrieval by embeddings, and the entries of `config.evals` for training."""

from collections.abc import Callable
from typing import Any

from xmodal_jax.eval.evaluate import Evaluator, evaluate
from xmodal_jax.eval.evaluations import check_evaluations, further
from xmodal_jax.objectives import build_objectives, parts
from xmodal_jax.settings import Config
from xmodal_jax.training import teacher
from xmodal_jax.training.run import Run
from xmodal_jax.training.state import TrainState


def refuse_unfit_quick(config: Config) -> None:
    """Refuse entries of `config.evals` that this config cannot be evaluated by, before hours of training."""
    check_evaluations(config, parts(build_objectives(config.objectives)))


def quick_evaluation(run: Run, state: TrainState, poll: Callable[[], None]) -> dict[str, Any]:
    """Return the numbers of the state's weights, those that `config.eval.params` names, on the evaluation split.

    `poll` is called before each block; an exception it raises aborts the evaluation.
    """
    config = run.assembly.config
    averaged = config.eval.params == "teacher"
    params = teacher.view(state.params, state.teacher) if averaged else state.params
    mean, split = evaluate(run.assembly, params, quick=True, poll=poll)["mean"], config.data.eval_split
    more = further(Evaluator(run.assembly, params, poll), split, True, lambda _: None)
    kept = {name: item.report(state.memory, config.data) for name, item in run.recipe.objectives.items()}
    kept = {name: numbers for name, numbers in kept.items() if numbers}
    return mean | ({"evals": more} if more else {}) | ({"memory": kept} if kept else {})
