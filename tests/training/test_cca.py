"""CCA on data of known canonical correlations, the heads it gives, and a model started from it on real files."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from xmodal_jax.assemble import assemble
from xmodal_jax.config_checks import check
from xmodal_jax.config_file import freeze, load
from xmodal_jax.data.card import Card
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.training.cca import cca, factor, head_inputs, linear_start, start_state
from xmodal_jax.training.loop import make_run

KNOWN = np.array([0.95, 0.8, 0.5])
ROWS = 4000


@pytest.fixture(scope="module")
def pair():
    """Rows [n,5] and [n,4] whose canonical correlations are exactly KNOWN (and 0), mixed by random matrices."""
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.normal(size=(ROWS, 9)) - draw.normal(size=(ROWS, 9)).mean(0))[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0] * np.sqrt(ROWS)
    left = basis[:, :5]
    right = np.concatenate([KNOWN * basis[:, :3] + np.sqrt(1 - KNOWN**2) * basis[:, 5:8], basis[:, 8:]], axis=1)
    return left @ draw.normal(size=(5, 5)), right @ draw.normal(size=(4, 4))


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_the_factor_is_a_root_of_the_ridged_covariance(pair, ridge):
    x = pair[0] - pair[0].mean(0)
    lower = factor(x, ridge)
    covariance = np.cov(x.T, bias=True)
    np.testing.assert_allclose(lower @ lower.T, covariance + ridge * np.diag(covariance).mean() * np.eye(5), atol=1e-8)
    np.testing.assert_array_equal(lower, np.tril(lower))


def test_canonical_correlations_are_the_constructed_ones(pair):
    a, b, correlations = cca(*pair, 0.0, 4)
    np.testing.assert_allclose(correlations[:3], KNOWN, atol=1e-6)
    assert correlations[3] < 1e-6
    left, right = pair[0] @ a, pair[1] @ b
    joint = np.corrcoef(left.T, right.T)
    np.testing.assert_allclose(np.diag(joint[:4, 4:])[:3], KNOWN, atol=1e-6)
    np.testing.assert_allclose(joint[:4, :4], np.eye(4), atol=1e-6)


def test_they_are_the_roots_of_hotellings_eigenproblem(rng):
    """Against another algorithm: the eigenvalues of Cxx^-1 Cxy Cyy^-1 Cyx are the squared correlations."""
    left, right = rng.normal(size=(200, 4)), rng.normal(size=(200, 3))
    left[:, 0] += right[:, 0]
    left, right = left - left.mean(0), right - right.mean(0)
    cross = left.T @ right
    product = np.linalg.solve(left.T @ left, cross) @ np.linalg.solve(right.T @ right, cross.T)
    roots = np.sort(np.sqrt(np.maximum(np.linalg.eigvals(product).real, 0)))[::-1]
    np.testing.assert_allclose(cca(left, right, 0.0, 3)[2], roots[:3], atol=1e-6)


def test_a_ridge_shrinks_the_correlations(pair):
    assert (cca(*pair, 1.0, 3)[2] < cca(*pair, 0.1, 3)[2]).all()


def test_heads_are_centred_variates_scaled_by_their_correlations(pair):
    left, right = pair[0] + 3.0, pair[1] - 2.0
    heads = linear_start(left, right, 0.0, 6)
    for head, side in zip(heads, (left, right), strict=True):
        out = side @ head["kernel"] + head["bias"]
        assert head["kernel"].shape == (side.shape[1], 6) and head["kernel"].dtype == np.float32
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(out.std(0)[:3], KNOWN, rtol=1e-3)
        assert (np.abs(head["kernel"][:, 4:]) == 0).all()  # CCA gives four at most


@pytest.fixture(scope="module")
def started(shapes_data):
    """A run on the shapes, its random state, and the same state started from CCA."""
    path = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
    config = load(
        f"{path}:tiny", [f"data.path={shapes_data}", "batch_size=8", "encoders.image.size=16", "eval.batch_size=16"]
    )
    config = dataclasses.replace(freeze(config), objectives={"itc": {"queue": 8}})
    run = make_run(assemble(config), jax.devices()[:1])
    state = run.fresh()
    return run, state, start_state(run.assembly, state)


def test_both_heads_of_student_and_teacher_start_from_cca(started):
    run, before, after = started
    joint = run.assembly.config.joint
    heads = linear_start(*head_inputs(run.assembly, before.params), joint.start_ridge, joint.embed)
    for name, head in zip(("image", "text"), heads, strict=True):
        for leaf, value in head.items():
            own = after.params[name]["head"]["linear"][leaf]
            np.testing.assert_allclose(own, value, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(after.teacher[f"{name}/head/linear/{leaf}"], own)
    first, then = (flatten_dict(state.params, sep="/") for state in (before, after))
    others = [path for path in first if not path.startswith(("image/head/", "text/head/"))]
    assert any(path.startswith("text/tower/") for path in others)
    for path in others:
        np.testing.assert_array_equal(first[path], then[path], err_msg=path)
    assert jax.tree.structure(before) == jax.tree.structure(after)


def test_pairs_agree_more_after_the_start(started):
    run, before, after = started
    left, right = head_inputs(run.assembly, before.params)
    records = Card.load(run.assembly.config.data.path).splits["train"]["records"]
    assert len(left) == len(right) == records * 2 * 2  # views x captions

    def agreement(params):
        linear = [(params[name]["head"]["linear"], x) for name, x in (("image", left), ("text", right))]
        sides = [x @ np.asarray(own["kernel"], np.float64) + np.asarray(own["bias"]) for own, x in linear]
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides)
        return np.diag(a @ b.T).mean() - (a @ b.T).mean()

    assert agreement(after.params) > agreement(before.params) + 0.3


@pytest.fixture(scope="module")
def aggregated(started):
    """As `started`, with an aggregator beside each linear path."""
    config = started[0].assembly.config
    pools = {name: dataclasses.replace(own, pool="mean+gpo") for name, own in config.encoders.items()}
    run = make_run(assemble(dataclasses.replace(config, encoders=pools)), jax.devices()[:1])
    state = run.fresh()
    return run.assembly, state, start_state(run.assembly, state)


@pytest.mark.parametrize("side", ["image", "text"])
def test_maps_of_single_tokens_start_along_the_linear_path(aggregated, side):
    assembly, before, after = aggregated
    linear, token = after.params[side]["head"]["linear"], after.params[side]["head"]["token"]["project"]
    fresh = before.params[side]["head"]["token"]["project"]["kernel"]
    part = np.asarray(linear["kernel"])[: len(fresh)]
    np.testing.assert_allclose(
        token["kernel"] / np.linalg.norm(token["kernel"]), part / np.linalg.norm(part), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.norm(token["kernel"]), np.linalg.norm(fresh), rtol=1e-5)
    np.testing.assert_array_equal(after.teacher[f"{side}/head/token/project/kernel"], token["kernel"])
    split = eval_split(assembly.config.data.path, "train", assembly.specs, assembly.config.data)
    block = next(iter((split.left if side == "image" else split.right).blocks(16)))
    params = {"params": after.params}
    raw = assembly.model.apply(params, side, block[side], method="raw")
    out = assembly.model.apply(params, raw, method=lambda m, x: getattr(m, side).head.token_features(x))
    real = (block["id"] >= 0)[:, None] & (np.ones(out.shape[:2], bool) if side == "image" else block["text"] != 0)
    features = np.asarray(out)[real]
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4 * np.abs(features).max() + 1e-5)  # centred on that block


@pytest.fixture(scope="module")
def hashed(started):
    """As `started`, with linear hash heads whose first four bits start from the variates."""
    config = started[0].assembly.config
    joint = dataclasses.replace(config.joint, start="cca", hash_hidden=0, hash_variates=4)
    objectives = {"hash_triplet": {}, "hash_quality": {"balance": 1.0}}
    run = make_run(assemble(dataclasses.replace(config, joint=joint, objectives=objectives)), jax.devices()[:1])
    state = run.fresh()
    return run.assembly, state, start_state(run.assembly, state)


def test_first_bits_start_as_the_signs_of_the_strongest_variates(hashed):
    assembly, before, after = hashed
    split = eval_split(assembly.config.data.path, "train", assembly.specs, assembly.config.data)
    encode = Embedder(assembly.model, after.params)
    for side, other in (("image", "text"), ("text", "image")):
        coded = encode.side(split.left if side == "image" else split.right, 16)
        np.testing.assert_array_equal(np.sign(coded.codes[:, :4]), np.sign(coded.embed[:, :4]))
        assert 0.3 < np.abs(np.arctanh(np.clip(coded.codes[:, :4], -0.999, 0.999))).mean() < 2  # logits of order one
        kernel = np.asarray(after.params[side]["hash"]["linear"]["kernel"])
        np.testing.assert_array_equal(kernel, after.params[other]["hash"]["linear"]["kernel"])
        np.testing.assert_array_equal(kernel[:, 4:], before.params[side]["hash"]["linear"]["kernel"][:, 4:])


@pytest.mark.parametrize("other", [{"start": "random"}, {"hash_hidden": 8}, {"hash_kind": "select"}])
def test_bits_start_from_variates_only_where_there_are_some(hashed, other):
    config = hashed[0].config
    check(config)
    with pytest.raises(UserError, match="config.joint.hash_variates is 4, which wants joint.start='cca'"):
        check(dataclasses.replace(config, joint=dataclasses.replace(config.joint, **other)))
