"""Terms, schedules, what counts as the same, and building objectives from a config section."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given import Given, unit
from tiny import BOS, FACTS, MASK, VOCAB, tiny_config, tiny_model

from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives, fit_objectives, parts
from xmodal_jax.objectives.base import Objective, Term, at, marks, present, row_weight, same
from xmodal_jax.objectives.contrastive import ITC, KEYS
from xmodal_jax.objectives.language import LM, MLM
from xmodal_jax.types import NEVER, DataFacts


def test_a_terms_mean_is_weighted():
    assert Term(jnp.array([1.0, 4.0, 100.0]), jnp.array([2.0, 1.0, 0.0])).mean() == 2.0


def test_a_term_without_rows_is_zero_not_nan():
    assert Term(jnp.array([3.0, 4.0]), jnp.zeros(2)).mean() == 0.0


def test_two_halves_of_a_batch_average_to_the_whole(rng):
    values, weight = rng.normal(size=10).astype(np.float32), rng.random(10).astype(np.float32)
    halves = [Term(values[part], weight[part]) for part in (slice(0, 4), slice(4, 10))]
    whole = sum(half.mean() * half.weight.sum() for half in halves) / weight.sum()
    np.testing.assert_allclose(Term(jnp.asarray(values), jnp.asarray(weight)).mean(), whole, rtol=1e-5)


@pytest.mark.parametrize("step, value", [(-5, 0.0), (0, 0.0), (5, 1.0), (10, 2.0), (20, 1.5), (30, 1.0), (99, 1.0)])
def test_a_schedule_is_straight_lines(step, value):
    assert at(((0, 0.0), (10, 2.0), (30, 1.0)), jnp.int32(step)) == value


def test_a_number_is_a_constant_schedule():
    assert at(2, 7) == at(2.0, jnp.int32(0)) == np.float32(2.0)


def test_same_is_equal_id_or_equal_caption():
    left = {"id": jnp.array([1, 2]), "text/key": jnp.array([10, 20])}
    right = {"id": jnp.array([1, 3, 4]), "text/key": jnp.array([30, 20, 40])}
    np.testing.assert_array_equal(same(left, right), [[True, False, False], [False, True, False]])


def test_same_compares_the_captions_that_both_sides_have():
    left = {"id": jnp.array([1, 2]), "text/key": jnp.array([10, 20]), "tags/key": jnp.array([7, 8])}
    right = {"id": jnp.array([3, 4]), "tags/key": jnp.array([20, 7])}
    np.testing.assert_array_equal(same(left, right), [[False, True], [False, False]])


def test_a_row_without_a_field_weighs_nothing_and_matches_nothing():
    batch = {"id": np.array([4, 5, 6]), "text/key": np.array([1, 2, -1]), "text/valid": np.array([True, True, False])}
    batch |= {"audio/valid": np.array([False, True, True])}
    assert present(batch, ("image",)) is None
    np.testing.assert_array_equal(present(batch, ("image", "text")), [True, True, False])
    np.testing.assert_array_equal(row_weight(batch, ("image",)), [1, 1, 1])
    np.testing.assert_array_equal(row_weight(batch, ("audio", "text")), [0, 1, 0])
    own = marks(batch, ("audio", "text"))
    assert set(own) == {"id", "text/key"}
    np.testing.assert_array_equal(own["id"], [NEVER, 5, NEVER])
    np.testing.assert_array_equal(marks(batch, ("image",))["id"], batch["id"])


def test_an_objective_by_default_asks_for_nothing_and_keeps_nothing():
    plain = Objective()
    assert plain.memory(None, FACTS) == {} and plain.prepare({"text": 1}, None) == {}
    assert plain.parts == plain.more_negatives == frozenset() and plain.reads == () and plain.fills == {}
    assert plain.fitted(FACTS) is plain and plain.period == 0


def test_names_are_free_and_kinds_are_known():
    built = build_objectives(
        {"coarse": {"kind": "itc", "queue": 0}, "itc": {"queue": 8, "weight": ((0, 0.0), (5, 1.0))}}
    )
    assert built == {
        "coarse": ITC(name="coarse", queue=0),
        "itc": ITC(name="itc", queue=8, weight=((0, 0.0), (5, 1.0))),
    }


def test_weight_zero_leaves_an_objective_out():
    assert list(build_objectives({"itc": {}, "lm": {"weight": 0}})) == ["itc"]
    with pytest.raises(UserError, match="no objective with a weight; write one of itc"):
        build_objectives({"lm": {"weight": 0.0}})


@pytest.mark.parametrize(
    "section, sentence",
    [
        (
            {"itc": {"kind": "itcc"}},
            "config.objectives.itc.kind is 'itcc'; write one of itc, siglip, .*or FILE.py:CLASS",
        ),
        ({"itc": {"queu": 4}}, "'queu' is not a field of config.objectives.itc; did you mean 'queue'"),
        ({"itc": {"queue": 0.5}}, "config.objectives.itc.queue is 0.5; write a value of type int"),
        ({"itc": {"weight": "much"}}, "config.objectives.itc.weight is 'much'; write"),
        ({"itc": {"weight": ((0, "a"),)}}, "config.objectives.itc.weight is .*; write"),
        ({"itc": 4}, "config.objectives.itc is 4; write a dict"),
        ({"itc": {"alpha_steps": -1}}, "config.objectives.itc.alpha_steps is -1; write 0 or more"),
        ({"itm": {"hardness": -1.0}}, "config.objectives.itm.hardness is -1.0; write 0 or more"),
    ],
)
def test_mistakes_are_refused_with_what_to_write(section, sentence):
    with pytest.raises(UserError, match=sentence):
        build_objectives(section)


def test_matching_must_fit_the_rows_of_the_batch():
    section = {"match": {"kind": "itm", "every": 8}}
    for rows in (9, 4):
        with pytest.raises(UserError, match=f"match.every is 8, which does not divide the batch of {rows} rows"):
            build_objectives(section, rows)
    assert fit_objectives(build_objectives(section), tiny_config(batch_size=16), FACTS) == build_objectives(section, 16)
    with pytest.raises(UserError, match="config.objectives.match.every is 8, which must divide the 8 rows .* up to 4"):
        fit_objectives(build_objectives(section), tiny_config(), FACTS)


def test_a_schedule_read_back_from_json_equals_the_one_written():
    assert build_objectives({"itc": {"weight": [[0, 0], [5, 1.5]]}}) == {
        "itc": ITC(name="itc", weight=((0, 0), (5, 1.5)))
    }


def test_special_ids_are_those_of_the_fields_tokenizer():
    built = fit_objectives(build_objectives({"itc": {}, "lm": {}, "mlm": {}}), tiny_config(), FACTS)
    fitted = {"lm": LM(name="lm", bos_id=BOS), "mlm": MLM(name="mlm", mask_id=MASK, vocab_size=VOCAB)}
    assert built == {"itc": ITC(name="itc")} | fitted


def test_labels_of_a_data_set_without_any_are_refused():
    with pytest.raises(
        UserError,
        match="hash reads 'labels' .* the data set has no labels: prepare one that has, or write by_label=False",
    ):
        fit_objectives(build_objectives({"hash": {"by_label": True}}), tiny_config(), DataFacts())


def test_two_objectives_share_a_ring_of_the_same_keys_only():
    shared = {"itc": {"queue": 8}, "siglip": {"queue": 8}}
    rings = [item.memory(tiny_model(tiny_config()), FACTS) for item in build_objectives(shared).values()]
    assert [set(ring) for ring in rings] == [{KEYS}, {KEYS}]
    again = {"itc": {"queue": 8}, "again": {"kind": "itc", "queue": 8, "bridge": True}}
    sentence = (
        r"itc \(queue=8, bridge=False\) and .*again \(queue=8, bridge=True\) put different keys .*"
        r"objectives.again.keys='again'"
    )
    with pytest.raises(UserError, match=sentence):
        build_objectives(again)
    again["again"]["keys"] = "again"
    assert list(build_objectives(again)) == ["itc", "again"]


def test_parts_are_the_union():
    built = build_objectives({"itc": {}, "lm": {}, "hash": {}})
    assert parts(built) == {"fusion", "decoder", "vocabulary", "hash", "temperature"}


@pytest.mark.parametrize(
    "name, fields",
    [
        ("itc", {"queue": 0}),
        ("siglip", {"queue": 0}),
        ("ims", {}),
        ("lmim", {}),
        ("fused", {"queue": 0}),
        ("mvjrc", {}),
        ("hash_triplet", {}),
        ("hash_contrast", {}),
        ("hash_supcon", {}),
    ],
)
def test_one_row_without_a_queue_has_no_negative(name, fields):
    with pytest.raises(
        UserError, match=f"config.objectives.{name} .* has 1 row of config.batch_size=1; write a larger"
    ):
        build_objectives({name: fields}, 1)
    assert list(build_objectives({name: fields}, 2)) == [name]


def test_what_has_negatives_elsewhere_takes_one_row():
    kept = {"itc": {"queue": 8}, "ims": {}, "fused": {"queue": 8}, "hash_contrast": {"table": 20}, "lm": {}, "hash": {}}
    assert list(build_objectives(kept, 1)) == list(kept)
    with pytest.raises(UserError, match="config.objectives.fused .* has 1 row of config.batch_size=2"):
        build_objectives({"fused": {"queue": 0, "every": 2}}, 2)


def dots(jaxpr):
    """Every product in a traced function and what it calls."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from dots(inner)


KINDS = {
    "itc": {"queue": 4},
    "siglip": {"queue": 4},
    "ims": {},
    "distill": {},
    "hash": {},
    "hash_triplet": {},
    "hash_euclidean": {},
    "hash_contrast": {},
    "hash_supcon": {"by_label": False},
}


@pytest.mark.parametrize(("name", "ring"), [*((name, False) for name in KINDS), ("itc", True), ("siglip", True)])
def test_similarities_and_their_gradients_are_products_of_full_precision(name, ring, rng):
    """An accelerator rounds float32 factors to TF32 or bfloat16 unless each product says otherwise."""
    made = build_objectives({name: KINDS[name] | ({"ring": True} if ring else {})})[name]
    batch = {"id": np.arange(4, dtype=np.int32), "text/key": np.arange(4, dtype=np.int32)}
    sides = unit(rng, 4, 8), unit(rng, 4, 8)
    batch |= {"image/teacher": unit(rng, 4, 8), "text/teacher": unit(rng, 4, 8)}
    queue = {"image": unit(rng, 4, 8), "text": unit(rng, 4, 8), "id": batch["id"] + 9, "text/key": batch["id"] + 9}
    heads = {"codes": lambda side, x: jnp.tanh(x), "logit_bias": lambda: jnp.float32(-1)}

    def loss(image, text):
        fwd = Given(image, text, teacher=Given(*sides), memory={KEYS: queue}, heads=heads, batch=batch)
        return made(fwd, batch, jax.random.key(0)).mean()

    found = list(dots(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*sides).jaxpr))
    assert len(found) >= 3
    assert {eqn.params["precision"] for eqn in found} == {(jax.lax.Precision.HIGHEST,) * 2}
