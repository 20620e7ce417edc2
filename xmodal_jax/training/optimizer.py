"""AdamW by regex groups: learning-rate factors, weight decay and freezing, warm-up and cosine, clipping, late SGD."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax.errors import UserError
from xmodal_jax.parallel.rules import wholly_frozen
from xmodal_jax.settings import Config, OptimizerConfig
from xmodal_jax.types import Params


def by_path(params: Params, choose: Any) -> Any:
    """Return a tree like `params` with `choose(path)` at each leaf."""
    return unflatten_dict({path: choose(path) for path in flatten_dict(params, sep="/")}, sep="/")


def frozen_mask(params: Params, freeze: str) -> Any:
    """True where a parameter is not trained."""
    return by_path(params, lambda path: bool(freeze and re.search(freeze, path)))


def refuse_frozen_start(config: Config, params: Params) -> None:
    """Refuse a frozen tower that starts at random; `params` may be abstract, and a tower without any is none.

    With `config.init` the start of each frozen leaf is known only when it is read, see training/init.py.
    """
    freeze = "" if config.init else config.optimizer.freeze
    for name, own in config.encoders.items():
        where = f"config.encoders.{name}"
        still = params.get(name, {}).get("tower") and wholly_frozen(params, f"{name}/tower", freeze)
        kept = f" with {where}.cache_tokens=False" if own.cache_tokens else ""
        if not own.init and still:
            raise UserError(
                f"config.optimizer.freeze '{freeze}' freezes the tower of {where}, which would stay random as "
                f"{where}.init is empty; write the weights to start from there, or a config.optimizer.freeze that "
                f"leaves it to train{kept}"
            )


def split_frozen(params: Params, freeze: str) -> Params:
    """Return the parameters with gradients stopped at the frozen ones: their backward pass is never built."""
    if not freeze:
        return params
    return jax.tree.map(lambda x, off: jax.lax.stop_gradient(x) if off else x, params, frozen_mask(params, freeze))


def factor_for(path: str, groups: tuple[tuple[str, float], ...]) -> float:
    """Return the learning-rate factor of the first group whose regex matches."""
    return next((factor for pattern, factor in groups if re.search(pattern, path)), 1.0)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine down to `end_lr * lr`; `sgd_lr` from the update `sgd_after` on.

    Update i, from 0, has the rate lr * (i + 1) / warmup up to i = warmup - 1 (without a warm-up the first one has lr),
    and the last one, i = steps - 1, exactly `end_lr * lr`. A run of no more steps than its warm-up takes the first
    updates of a longer one: it never has a higher rate than that, and neither reaches `lr` before its end nor comes
    down. A rate that stays level does not depend on `steps`, so that going on for more compiles nothing anew.
    """
    warmup = max(1, config.warmup)
    end = max(steps, warmup + 1)  # never reached by a run that only climbs
    if config.end_lr == 1:
        rate = optax.linear_schedule(0.0, config.lr, warmup)
    else:
        rate = optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, end, config.lr * config.end_lr)

    def adam(update: Any) -> Any:
        return rate(update + 1)

    if not config.sgd_after:
        return adam

    def then_sgd(step: Any) -> Any:
        return jnp.where(step < config.sgd_after, adam(step), jnp.float32(config.sgd_lr))

    return then_sgd


def adam_then_sgd(config: OptimizerConfig, momentum: float = 0.9) -> optax.GradientTransformation:
    """Adam for the first `sgd_after` updates, then SGD with momentum that starts at rest (Keskar and Socher 2017).

    The momentum lives where Adam's first moment was, so the state is Adam's own: nothing to allocate at the switch, and
    a run may go on with another `sgd_after`, but for those that `refuse_mixed_momentum` names.
    """
    adam: Any = optax.scale_by_adam(config.b1, config.b2)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads = updates
        updates, moved = adam.update(grads, state, params)
        kept = jnp.where(state.count == config.sgd_after, 0.0, momentum)
        rolled = jax.tree.map(lambda grad, before: grad + kept * before, grads, state.mu)

        def pick(ours: Any, theirs: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(state.count >= config.sgd_after, x, y), ours, theirs)

        return pick(rolled, updates), moved._replace(mu=pick(rolled, moved.mu))

    return optax.GradientTransformation(adam.init, update)


def refuse_mixed_momentum(before: int, after: int, updates: int, workdir: str) -> None:
    """Refuse an `sgd_after` by which a run that goes on would take one optimizer's momentum for the other's.

    `before` is what the `updates` so far were made with, `after` what is asked for now. SGD starts at rest only at the
    update `after` itself; from Adam's first moment, or Adam from SGD's momentum, ten times as large, steps go anywhere.
    """
    was_sgd, comes_sgd = 0 < before < updates, 0 < after < updates
    left = was_sgd and (after == 0 or after > updates)
    missed = updates > 0 and comes_sgd and not was_sgd
    said = f"config.optimizer.sgd_after is {after}, but the {updates} updates of '{workdir}'"
    if missed:
        raise UserError(f"{said} are Adam's and SGD would start from Adam's momentum; write {updates} or more, or 0")
    if left:
        raise UserError(f"{said} end with SGD's and Adam would start from SGD's momentum; write {before}")


def make_optimizer(config: OptimizerConfig, params: Params, steps: int) -> optax.GradientTransformation:
    """Return the optimizer for this tree of (possibly abstract) parameters.

    Frozen parameters have no slots and do not enter the clip norm. Raises UserError for a regex that matches nothing.
    """
    check_patterns(config, params)
    factors = by_path(params, lambda path: factor_for(path, config.groups))
    train = optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        adam_then_sgd(config) if config.sgd_after else optax.scale_by_adam(config.b1, config.b2),
        optax.add_decayed_weights(
            config.weight_decay, mask=by_path(params, lambda path: bool(re.search(config.decay, path)))
        ),
        scale_by_factor(factors),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
    frozen = frozen_mask(params, config.freeze)
    trained = jax.tree.map(lambda off: not off, frozen)
    return optax.chain(optax.masked(train, trained), optax.masked(optax.set_to_zero(), frozen))


def scale_by_factor(factors: Any) -> optax.GradientTransformation:
    """Multiply each leaf's update by its learning-rate factor."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scale(update: Any, factor: float) -> Any:
            return update if isinstance(update, optax.MaskedNode) else update * jnp.float32(factor)

        return jax.tree.map(scale, updates, factors, is_leaf=lambda x: isinstance(x, optax.MaskedNode)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def check_patterns(config: OptimizerConfig, params: Params) -> None:
    """Refuse a regex that is broken or matches no parameter, a mistake that the run would hide."""
    paths = list(flatten_dict(params, sep="/"))
    named = [("freeze", config.freeze), ("decay", config.decay)] + [("groups", pattern) for pattern, _ in config.groups]
    for name, pattern in named:
        try:
            found = not pattern or any(re.search(pattern, path) for path in paths)
        except re.error as error:
            raise UserError(
                f"config.optimizer.{name} '{pattern}' is not a regex ({error}); write one such as '^text/'"
            ) from error
        if not found:
            raise UserError(f"config.optimizer.{name} '{pattern}' matches no parameter; paths look like '{paths[0]}'")
    if all(config.freeze and re.search(config.freeze, path) for path in paths):
        raise UserError(f"config.optimizer.freeze '{config.freeze}' freezes everything; leave a module to train")
