"""Start the linear paths of two heads from regularised CCA on the training split.

With few pairs and pretrained towers, canonical correlation analysis (Hotelling 1936; Hardoon et al. 2004) is a strong
start: gradient descent from it only has to add what a linear map cannot do, instead of finding the map first.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.evaluation import EvalSplit, Side, eval_split
from xmodal_jax.data.readers import has_views
from xmodal_jax.data.split import Split
from xmodal_jax.models.heads import pooled_features
from xmodal_jax.models.layers import layer_norm, norm_params
from xmodal_jax.models.pooling import parse_pool
from xmodal_jax.parallel.mesh import put_like, to_host
from xmodal_jax.settings import Config
from xmodal_jax.training.cca_cache import Heads, kept_start
from xmodal_jax.types import Array, Params


def factor(x: np.ndarray, ridge: float) -> np.ndarray:
    """Return the lower Cholesky factor [D,D] of the covariance of x
    [n,D], centred, plus `ridge` times the mean variance.
    """
    covariance = (x.T @ x / len(x)).astype(np.float64)
    covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return np.linalg.cholesky(covariance)


def cca(left: np.ndarray, right: np.ndarray, ridge: float, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return regularised CCA's maps [D,dims], [F,dims] and
    correlations [dims] of aligned rows [n,D] and [n,F], both centred.
    """
    from scipy.linalg import solve_triangular

    lower = [factor(side, ridge) for side in (left, right)]
    between = (left.T @ right / len(left)).astype(np.float64)
    whitened = solve_triangular(lower[1], solve_triangular(lower[0], between, lower=True).T, lower=True).T
    u, correlations, v = np.linalg.svd(whitened, full_matrices=False)
    maps = [
        solve_triangular(low, side, lower=True, trans=1)
        for low, side in zip(lower, (u[:, :dims], v[:dims].T), strict=True)
    ]
    return maps[0], maps[1], correlations[:dims]


def linear_start(left: np.ndarray, right: np.ndarray, ridge: float, dims: int) -> tuple[Params, Params]:
    """Return dense parameters of both heads: canonical variates
    scaled by their correlations, so that strong ones weigh more.

    left [n,D] and right [n,F] are aligned rows. Columns beyond what CCA gives (`dims` above the ranks) are zero.
    """
    means = [side.mean(0) for side in (left, right)]
    maps = cca(left - means[0], right - means[1], ridge, dims)
    heads = []
    for mean, kernel in zip(means, maps[:2], strict=True):
        kernel = kernel * maps[2]
        kernel = np.pad(kernel, ((0, 0), (0, dims - kernel.shape[1])))
        heads.append({"kernel": kernel.astype(np.float32), "bias": (-mean @ kernel).astype(np.float32)})
    return heads[0], heads[1]


def pair_encoders(config: Config) -> dict[str, str]:
    """Return {encoder: field} of the pair of fields that the heads start from, the first that is evaluated."""
    return {config.data.fields[field].encoder: field for field in config.eval.pairs[0]}


def training_pairs(assembly: Assembly, view: str = "") -> EvalSplit:
    """Return the training split as evaluation reads it, of the pair that the heads start from."""
    data = assembly.config.data
    return eval_split(data.path, data.split, assembly.specs, data, view, assembly.config.eval.pairs[0])


def head_inputs(assembly: Assembly, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled features of all pairs of the training split, such
    as (picture, caption), [n,D] and [n,F], without augmentation.

    A record with v views and c captions gives v * c rows.
    """
    data = assembly.config.data
    with contextlib.closing(Split(data.path, data.split, data)) as source:
        views = source.views if any(has_views(data.fields, field) for field in assembly.config.eval.pairs[0]) else ("",)
    splits = [training_pairs(assembly, view) for view in views]
    pairs = [aligned(split.left.owner, split.right.owner) for split in splits]
    sides = ([split.left for split in splits], [split.right for split in splits])
    left, right = (
        np.concatenate(_rows_of(assembly, params, own, [pair[i] for pair in pairs])) for i, own in enumerate(sides)
    )
    return left, right


def aligned(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places int [n] of all pairs of inputs of one record,
    owners int [m] and [k], the right ones in their order.
    """
    first, last = np.searchsorted(left, right), np.searchsorted(left, right, "right")
    counts = last - first
    places = np.repeat(first, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return places, np.repeat(np.arange(len(right)), counts)


def _rows_of(assembly: Assembly, params: Params, sides: list[Side], places: list[np.ndarray]) -> list[np.ndarray]:
    """Return pooled features [n,D] of one side of each view, at its
    `places`; of captions, which views share, each text once.
    """
    pooled = jax.jit(partial(pool, assembly, sides[0].encoder))
    if sides[0].ids is None:
        return [_collect(assembly, pooled, params, side)[own] for side, own in zip(sides, places, strict=True)]
    words = [side.ids for side in sides if side.ids is not None]
    texts, rows = np.unique(np.concatenate(words), axis=0, return_inverse=True)
    found = _collect(assembly, pooled, params, dataclasses.replace(sides[0], owner=np.arange(len(texts)), ids=texts))
    ends = np.cumsum([len(side) for side in sides])[:-1]
    return [found[own][at] for own, at in zip(np.split(rows.ravel(), ends), places, strict=True)]


def pool(assembly: Assembly, name: str, params: Params, x: Array) -> Array:
    """Return the features [B,D] that the linear path of an encoder's head reads, of inputs [B,...]."""
    own = assembly.config.encoders[name]
    raw: Any = assembly.model.apply({"params": params}, name, x, method="raw")
    return pooled_features(raw, own.mask(x), parse_pool(own.pool)[0], own.groups)


def _collect(assembly: Assembly, pooled: Callable, params: Params, side: Side) -> np.ndarray:
    """Return the pooled features [n,D] of one side, a block at a time."""
    blocks = side.blocks(assembly.config.eval.batch_size)
    made = ((block["id"], pooled(params, put_like(params, block[side.field]))) for block in blocks)
    return np.concatenate([to_host(rows, len(ids))[ids >= 0] for ids, rows in made])


def token_mean(assembly: Assembly, params: Params, name: str) -> np.ndarray:
    """Return the mean over the real tokens [D'] of one block of
    training records, each normalised as a `TokenMap` reads it.
    """
    model, block = assembly.model, first_block(assembly)[name]
    x = block["x"]

    def tower(p: Params, x: Array) -> Any:
        return model.apply({"params": p}, name, x, method="raw")

    tokens = to_host(jax.jit(tower)(params, put_like(params, x)), len(x))
    mask = assembly.config.encoders[name].mask(x)
    real = block["id"] >= 0 if mask is None else np.asarray(mask) & (block["id"] >= 0)[:, None]
    return (
        np.asarray(layer_norm(norm_params(tokens.shape[-1]), jnp.asarray(tokens), 1e-6))[real]
        .reshape(-1, tokens.shape[-1])
        .mean(0)
    )


def first_block(assembly: Assembly) -> dict[str, dict[str, np.ndarray]]:
    """Return {encoder: {"x": inputs of the first training records, "id"}} of both encoders that start from pairs."""
    split, size = training_pairs(assembly), assembly.config.eval.batch_size
    blocks = {side.encoder: (side.field, next(iter(side.blocks(size)))) for side in (split.left, split.right)}
    return {name: {"x": block[field], "id": block["id"]} for name, (field, block) in blocks.items()}


def starts(assembly: Assembly, params: Params) -> Params:
    """Return replacements for parts of fresh `params`: `ENCODER/head/linear` of a pair's encoders from CCA,
    `token_starts` and `hash_starts`.
    """
    config = assembly.config

    def solve() -> Heads:
        heads = linear_start(*head_inputs(assembly, params), config.joint.start_ridge, config.joint.embed)
        return dict(zip(pair_encoders(config), heads, strict=True))

    heads = {name: {"head": {"linear": own}} for name, own in kept_start(assembly, params, solve).items()}
    begun = replaced(params, heads)
    maps, codes = token_starts(assembly, begun), hash_starts(assembly, begun)
    return {name: {"head": own["head"] | maps.get(name, {})} | codes.get(name, {}) for name, own in heads.items()}


def replaced(tree: Params, start: Params) -> Params:
    """Return the tree with the leaves that `start` has taken from it, where the old ones lie."""
    if not isinstance(start, dict):
        return jax.device_put(np.asarray(start), tree.sharding)
    return dict(tree) | {name: replaced(tree[name], own) for name, own in start.items()}


def token_starts(assembly: Assembly, params: Params) -> Params:
    """Return starts of the maps of single tokens beside linear paths:
    the part of the linear path that reads the first tokens.

    Local features then lie where the embeddings do from the first step on: told from random ones (LMIM), an embedding
    leaves CCA's space for theirs. The scale is that of a fresh map; the bias takes the mean over training tokens away.
    """
    found = {}
    for side in pair_encoders(assembly.config):
        head = params[side]["head"]
        if "token" not in head or "linear" not in head:
            continue
        old = head["token"]["project"]["kernel"]
        kernel = np.asarray(head["linear"]["kernel"])[: old.shape[0]]
        kernel = kernel * float(jnp.linalg.norm(old)) / max(np.linalg.norm(kernel), 1e-12)
        mean = token_mean(assembly, params, side) @ kernel
        found[side] = {"token": {"project": {"kernel": kernel, "bias": -mean}}}
    return found


def hash_starts(assembly: Assembly, params: Params) -> Params:
    """Return kernels [E,K] of both hash heads whose first
    `joint.hash_variates` bits are the signs of the embedding's first numbers.

    After CCA those are the strongest canonical variates, so short codes start at "CCA signs", the linear floor; a
    random projection, which the other bits stay, spreads the strong variates over all bits and needs many of them. The
    scale is that of a fresh kernel: logits of order one.
    """
    joint, model, encoders = assembly.config.joint, assembly.model, pair_encoders(assembly.config)
    first = next(iter(encoders))
    if not joint.hash_variates or "hash" not in params[first]:
        return {}
    spreads = []
    for name, block in first_block(assembly).items():
        encode = jax.jit(lambda p, x, name=name: model.apply({"params": p}, name, x, method="encode")[1])
        embed = to_host(encode(params, put_like(params, block["x"])), len(block["id"]))[block["id"] >= 0]
        spreads.append(embed.std(axis=0))
    spread = np.mean(spreads, axis=0)
    kernel = np.array(to_host(params[first]["hash"]["linear"]["kernel"]))
    for bit in range(min(joint.hash_variates, *kernel.shape)):
        if spread[bit] > 1e-6:  # numbers beyond CCA's rank are 0
            kernel[:, bit] = 0.0
            kernel[bit, bit] = 1.0 / spread[bit]
    return {name: {"hash": {"linear": {"kernel": kernel}}} for name in encoders}


def start_state(assembly: Assembly, state: Any) -> Any:
    """Return the train state with `starts` in the student and, where it has these leaves, in the teacher."""
    found, teacher = starts(assembly, state.params), dict(state.teacher)
    for path, value in flatten_dict(found, sep="/").items():
        if path in teacher:
            teacher[path] = jax.device_put(np.asarray(value), teacher[path].sharding)
    return dataclasses.replace(state, params=replaced(state.params, found), teacher=teacher)
