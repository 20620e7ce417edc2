"""The objective protocol: what the package asks an objective, and what a config may say of one."""

import ast
import functools
import pathlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import FACTS, FIVE, tiny_batch, tiny_config, tiny_objectives, tiny_params, tiny_recipe

import xmodal_jax
from xmodal_jax.config_file import freeze
from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives, fit_objectives, parts
from xmodal_jax.objectives.base import Objective, Steps, Term, row_weight, steps_of
from xmodal_jax.training.memory import refresh
from xmodal_jax.training.step import create_state, run_objectives, term_metrics, train_step
from xmodal_jax.types import DataFacts

PACKAGE = pathlib.Path(xmodal_jax.__file__).parent


@dataclass(frozen=True)
class Keeping(Objective):
    """A loss for tests: the batch's mean in a table, and every `period` steps the table's sum in its last place."""

    size: int = 64

    def memory(self, model, facts):
        """One number for each record, and one for the sum."""
        return {self.name: {"seen": jnp.zeros(self.size + 1)}}

    def refresh(self, memory, step):
        """The sum so far, and the step it was taken at."""
        own = memory[self.name]["seen"]
        total = own[:-1].sum() + 1000.0 * step.astype(jnp.float32)
        return memory | {self.name: memory[self.name] | {"seen": own.at[-1].set(total)}}

    def __call__(self, fwd, batch, key):
        """The embeddings' mean square; every visit adds one to the record's place."""
        values = jnp.square(fwd.encode("image").embed).mean(1)
        visits = fwd.memory[self.name]["seen"][batch["index"]] + 1.0
        return Term(values, row_weight(batch, ("image",)), write={self.name: (batch["index"], {"seen": visits})})


@dataclass(frozen=True)
class Remembering(Keeping):
    """Its period is a field."""

    period: Steps = 3


class Hourly(Keeping):
    """Its period is one of the class."""

    period = "0.5 epochs"


class Computed(Keeping):
    """Its period is a property."""

    @property
    def period(self):
        """Half of an epoch."""
        return "0.5 epochs"


def run_of(objectives, steps):
    """The states after each of `steps` steps of one compiled program, and the number of times it was traced."""
    recipe = tiny_recipe(tiny_config(objectives={"itc": {"queue": 0}}))
    recipe = type(recipe)(recipe.config, recipe.model, objectives, recipe.optimizer, facts=FACTS)
    state, traced = create_state(recipe, tiny_params(recipe.model, 0, frozenset({"temperature"})), 0), []

    def step(state, batch):
        traced.append(1)
        return train_step(recipe, state, batch)[0]

    run, states = jax.jit(step), []
    for number in range(steps):
        state = run(state, tiny_batch(number))
        states.append(state)
    return states, len(traced)


def test_a_refresh_runs_inside_the_step_at_its_period():
    entries = {name: Remembering(name=name, period=period) for name, period in (("three", 3), ("two", 2))}
    states, traced = run_of(entries, 6)
    assert traced == 1
    for number, state in enumerate(states, 1):
        for name, period in (("three", 3), ("two", 2)):
            last = number // period * period  # the step of the newest refresh; each step visits 8 records once
            own = np.asarray(state.memory[name]["seen"])
            assert own[:-1].sum() == 8 * number
            assert own[-1] == (1000 * last + 8 * last if last else 0)


@pytest.mark.parametrize("kind", [Hourly, Computed])
def test_a_period_in_epochs_may_be_said_by_the_class(kind):
    """FACTS has 8 steps an epoch."""
    states, _ = run_of(fit_objectives({"own": kind(name="own")}, tiny_config(), FACTS), 5)
    own = [float(state.memory["own"]["seen"][-1]) for state in states]
    assert own == [0, 0, 0, 4000 + 8 * 4, 4000 + 8 * 4]


def test_a_period_of_a_class_that_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(Hourly, "period", "half an epoch")
    with pytest.raises(
        UserError, match="config.objectives.own.period is 'half an epoch'; write a number of steps such as 1000, or"
    ):
        fit_objectives({"own": Hourly()}, tiny_config(), FACTS)


def test_a_refresh_goes_on_bit_for_bit_after_a_restart():
    whole, _ = run_of({"three": Remembering(name="three")}, 5)
    recipe = tiny_recipe(tiny_config(objectives={"itc": {"queue": 0}}))
    recipe = type(recipe)(
        recipe.config, recipe.model, {"three": Remembering(name="three")}, recipe.optimizer, facts=FACTS
    )
    state = jax.tree.map(jnp.asarray, jax.device_get(whole[1]))
    for number in range(2, 5):
        state = jax.jit(functools.partial(train_step, recipe))(state, tiny_batch(number))[0]
    jax.tree.map(np.testing.assert_array_equal, state.memory, whole[-1].memory)


@pytest.mark.parametrize(
    ("section", "field", "steps"),
    [
        ({"itc": {"alpha_steps": "2 epochs"}}, "alpha_steps", 16),
        ({"itc": {"alpha_steps": "0.5 epochs"}}, "alpha_steps", 4),
        ({"itc": {"alpha_steps": "0.01 epochs"}}, "alpha_steps", 1),
        ({"itc": {"alpha_steps": 7}}, "alpha_steps", 7),
        ({"hinge": {"mean_steps": "7"}}, "mean_steps", 7),
        ({"itc": {"weight": ((0, 0.0), ("1 epoch", 1.0))}}, "weight", ((0, 0.0), (8, 1.0))),
        ({"hash_quality": {"balance": (("1 epoch", 0.5), ("3 epochs", 1.0))}}, "balance", ((8, 0.5), (24, 1.0))),
    ],
)
def test_schedules_may_be_in_epochs(section, field, steps):
    found = next(iter(tiny_objectives(section).values()))
    assert getattr(found, field) == steps


def test_a_number_of_epochs_is_at_least_a_step():
    assert steps_of("1 epoch", DataFacts()) == 1  # planning without a data set
    assert steps_of("1.5 epochs", DataFacts(steps_per_epoch=3.0)) == 4


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (
            {"itc": {"alpha_steps": "two epochs"}},
            "alpha_steps is 'two epochs'; write a number of steps such as 1000, or '2 epochs'",
        ),
        ({"itc": {"alpha_steps": 2.5}}, "alpha_steps is 2.5; write a number of steps"),
        ({"itc": {"weight": (("2 epochs", 0.0), ("1 epoch", 1.0))}}, "steps do not ascend"),
        ({"itc": {"weight": ((5, 0.0), ("1 epoch", 1.0))}}, "steps do not ascend"),
        ({"itc": {"name": "other"}}, "itc.name is 'other'; the entry's own key is its name"),
    ],
)
def test_what_is_no_schedule_is_refused(section, sentence):
    with pytest.raises(UserError, match=sentence):
        build_objectives(section)


def test_two_entries_of_one_kind_keep_their_fields_apart():
    """Two MLM entries mask by themselves, and each has the loss that it has alone."""
    two = {
        "mlm": {"rate": 0.3},
        "other": {"kind": "mlm", "rate": 0.5},
        "lm": {},
        "again": {"kind": "lm", "smoothing": 0.3},
    }
    config = tiny_config(objectives=two, text={"dropout": 0.0})
    recipe = tiny_recipe(config)
    state = create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0)

    def losses_of(objectives):
        own = type(recipe)(config, recipe.model, objectives, recipe.optimizer, facts=FACTS)

        def losses(params, state, batch):
            return term_metrics(run_objectives(own, params, state, batch, jax.random.key(3))[0])

        return jax.jit(losses)(state.params, state, tiny_batch())

    together = losses_of(recipe.objectives)
    for name in two:
        alone = losses_of({name: recipe.objectives[name]})
        np.testing.assert_allclose(together[f"loss/{name}"], alone[f"loss/{name}"], rtol=1e-6)
    assert len({float(together[f"loss/{name}"]) for name in two}) == len(two)


@pytest.mark.parametrize(
    ("section", "data", "sentence"),
    [
        (
            {"distill": {}},
            {},
            "distill reads 'image/teacher' of the batch, which is not there; write config.data.embeddings=NAME",
        ),
        ({"mvjrc": {}}, {}, "mvjrc reads 'image2' of the batch, which is not there; add config.data.fields.image2"),
        ({"hash": {"by_label": True}}, {"labels": False}, "hash reads 'labels' .*; write config.data.labels=True"),
        ({"itc": {"pair": ("image", "audio")}}, {}, "itc reads 'audio' of the batch, which is not there"),
        ({"itc": {"second_view_keys": True}}, {}, "no field of config.data.fields is another view"),
        ({"hash_contrast": {"table": 10}}, {}, "table is 10, and the data set '' has 64 training records; write 64"),
    ],
)
def test_what_the_batch_does_not_have_is_refused_with_what_to_write(section, data, sentence):
    config = tiny_config(objectives=section, data=data)
    with pytest.raises(UserError, match=sentence):
        fit_objectives(build_objectives(section), config, FACTS)


def test_ims_takes_the_queue_of_a_pair_that_lacks_its_other_captions():
    """The ring has the caption keys of the pair that fills it; the batch has more."""
    section = {"itc": {"queue": 8}, "ims": {"sides": ("image",)}}
    config = tiny_config(objectives=section, data={"fields": {"text2": {"of": "text"}}})
    recipe = tiny_recipe(config)
    batch = tiny_batch() | {"text2": tiny_batch()["text"], "text2/key": tiny_batch()["text/key"]}
    state = create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0)
    for _ in range(2):
        state, metrics = jax.jit(functools.partial(train_step, recipe))(state, batch)
    assert np.isfinite(float(metrics["loss/ims"])) and "text2/key" not in state.memory["keys"]


def test_two_memories_of_codes_have_names_of_their_own():
    two = {"hash_contrast": {"table": 64}, "other": {"kind": "hash_contrast", "table": 64}}
    with pytest.raises(UserError, match="put different keys into one ring, 'codes/codes'; write .*other.keys='other'"):
        build_objectives(two)
    assert len(build_objectives(two | {"other": two["other"] | {"keys": "other"}})) == 2


def test_a_view_of_a_field_that_may_be_missing_may_be_missing_too():
    fields = {"image": {"required": False}, "image2": {"of": "image"}}
    assert not tiny_config(data={"fields": fields}).data.fields["image2"].required


def test_a_skipped_step_refreshes_nothing():
    memory = {"three": {"seen": jnp.zeros(65)}}
    for good, value in ((False, 0.0), (True, 3000.0)):
        found = refresh({"three": Remembering(name="three")}, memory, jnp.int32(3), jnp.asarray(good))
        assert float(found["three"]["seen"][-1]) == value


def test_a_field_that_is_a_view_of_none_is_refused():
    for of in ("image2", "nothing"):
        with pytest.raises(UserError, match=f"config.data.fields.image2.of is '{of}'; write another field"):
            tiny_config(data={"fields": {"image2": {"of": of}}})


def test_a_field_may_be_added_from_the_command_line():
    from xmodal_jax.config_file import override
    from xmodal_jax.settings import defaults

    config = defaults()
    config.objectives = FIVE
    override(config, "data.fields.image2={'of': 'image'}")
    own = freeze(config).data.fields["image2"]
    assert (own.encoder, own.medium, own.required) == ("image", "image", True)


def test_nobody_asks_an_objective_what_the_protocol_does_not_say():
    """Outside `objectives/`, no getattr with a default and no isinstance on an objective or a class of one."""
    kinds = {cls.__name__ for cls in xmodal_jax.objectives.OBJECTIVES.values()} | {"Objective", "Contrast", "CodeLoss"}
    found = []
    for file in PACKAGE.rglob("*.py"):
        if (
            file.parent.name == "objectives" or "data" in file.relative_to(PACKAGE).parts
        ):  # whose items are those of sources
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr", "isinstance")
            ):
                continue
            names = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
            if names & kinds or names & {"objective", "item"} and node.func.id != "isinstance":
                found.append(f"{file.name}:{node.lineno}")
    assert not found, found


def test_the_model_does_not_read_the_objectives():
    for file in (PACKAGE / "models").glob("*.py"):
        assert "config.objectives" not in file.read_text(), file.name
