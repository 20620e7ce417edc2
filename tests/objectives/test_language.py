"""MLM and LM: masking statistics, label smoothing and soft targets against PyTorch, the output vocabulary."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import BOS, CLS, MASK, SEP, VOCAB, tiny_batch, tiny_config, tiny_objectives

from xmodal_jax.errors import UserError
from xmodal_jax.forward import Encoded
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.language import LM, MLM, cross_entropy, mask_tokens, output_index, row_term


class Words:
    """A Forward whose fused tokens and decoder states are given; `table` [V,D] is the token head."""

    def __init__(self, states, batch, table, output_ids=(), teacher=None, step=0):
        self.states, self.batch, self.table, self.teacher, self.step = states, batch, table, teacher, step
        self.model = SimpleNamespace(output_ids=output_ids)

    def encoder_of(self, field):
        """A field's own encoder."""
        return field

    def encode(self, field, encoder=""):
        """A field without tokens of its own; of words their ids."""
        return Encoded(self.states, ids=self.batch[field] if field != "image" else None, name=field)

    def fuse(self, memory, query):
        """The given states."""
        return Encoded(self.states)

    def decode(self, memory, field, language=""):
        """The given states, for words that an objective made; those of a language are moved by its place."""
        assert field in self.batch
        moved = 0.3 * self.batch[language].astype(jnp.float32)[:, None, None] if language else 0.0
        return self.states + moved

    def rowwise(self, run, key, *arrays):
        """All rows at once."""
        return run(key, *arrays)

    def call(self, method, hidden):
        """The token head."""
        assert method == "token_logits"
        return hidden @ self.table.T


ROWS, LENGTH, WIDTH = 8, 8, 6


@pytest.fixture(scope="module")
def arrays():
    """States of student and teacher, two token heads, and the tiny batch."""
    draw = np.random.default_rng(4)

    def make(*shape):
        return draw.normal(size=shape).astype(np.float32)

    states = {"student": make(ROWS, LENGTH, WIDTH), "teacher": make(ROWS, LENGTH, WIDTH)}
    return states | {"table": make(VOCAB, WIDTH), "batch": jax.tree.map(jnp.asarray, tiny_batch())}


@pytest.fixture(scope="module")
def masked_many():
    """3,000 rows of 41 tokens (30 real) masked at 15 %."""
    ids = np.random.default_rng(0).integers(5, 900, (3000, 41), dtype=np.int32)
    ids[:, 0], ids[:, 31:] = CLS, 0
    return ids, *(np.asarray(x) for x in jax.jit(lambda x: mask_tokens(jax.random.key(0), x, 0.15, 1000, MASK))(ids))


def test_masking_chooses_the_rate_of_the_words(masked_many):
    ids, masked, positions, chosen = masked_many
    assert (chosen.sum(1) == round(0.15 * 30)).all()
    assert (masked != ids).sum() <= chosen.sum()
    rows = np.arange(len(ids))[:, None]
    assert ((positions >= 1) & (positions <= 30))[chosen].all()  # never [CLS], never padding
    untouched = np.ones(ids.shape, bool)
    untouched[np.broadcast_to(rows, positions.shape)[chosen], positions[chosen]] = False
    np.testing.assert_array_equal(masked[untouched], ids[untouched])
    assert all(len(set(row)) == len(row) for row in positions)


def test_of_the_chosen_80_are_masked_10_random_10_kept(masked_many):
    ids, masked, positions, chosen = masked_many
    old, new = (np.take_along_axis(x, positions, 1)[chosen] for x in (ids, masked))
    error = 4 * np.sqrt(0.25 / len(old))
    assert abs((new == MASK).mean() - 0.8) < error
    assert abs((new == old).mean() - 0.1) < error
    other = new[(new != MASK) & (new != old)]
    assert abs(len(other) / len(old) - 0.1) < error
    assert other.min() >= 1 and other.max() < 1000 and abs(other.mean() - 500) < 30


def test_every_word_is_chosen_alike(masked_many):
    _, _, positions, chosen = masked_many
    share = np.bincount(positions[chosen], minlength=41)[1:31] / len(positions)
    assert np.abs(share - chosen.sum(1).mean() / 30).max() < 5 * np.sqrt(0.15 / 3000)


def test_short_texts_mask_at_least_one_word_and_empty_ones_none():
    ids = jnp.array([[CLS, 9, 0, 0], [CLS, 0, 0, 0]], jnp.int32)
    masked, positions, chosen = mask_tokens(jax.random.key(0), ids, 0.15, VOCAB, MASK)
    np.testing.assert_array_equal(chosen.sum(1), [1, 0])
    assert positions[0, 0] == 1
    np.testing.assert_array_equal(masked[1], ids[1])


def test_output_index_maps_words_to_rows_and_says_which_are_unknown():
    row, known = output_index(jnp.array([[3, 8, 4], [40, 1, 5]], jnp.int32), (1, 4, 8))
    np.testing.assert_array_equal(known, [[False, True, True], [False, True, False]])
    np.testing.assert_array_equal(np.asarray(row)[np.asarray(known)], [2, 1, 0])
    row, known = output_index(jnp.array([3, 8]), ())
    np.testing.assert_array_equal(row, [3, 8])
    assert known.all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(rng, smoothing):
    logits, target = rng.normal(size=(4, 3, 9)).astype(np.float32) * 3, rng.integers(0, 9, (4, 3))
    theirs = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")(
        theirs.flatten(0, 1), torch.tensor(target).flatten()
    )
    loss.sum().backward()

    def run(x):
        return cross_entropy(x, jnp.asarray(target), smoothing)

    np.testing.assert_allclose(run(jnp.asarray(logits)).ravel(), loss.detach(), rtol=1e-5)
    grad = jax.grad(lambda x: run(x).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_row_term_averages_over_tokens_not_rows():
    losses, mask = jnp.array([[1.0, 2.0], [4.0, 100.0], [9.0, 9.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    term = row_term(losses, (losses > 3).astype(jnp.float32), mask)
    assert term.metrics["accuracy"] == np.float32(1 / 3)
    np.testing.assert_allclose(term.values, [1.5, 4, 0])
    np.testing.assert_allclose(term.mean(), 7 / 3, rtol=1e-6)


def lm_gradient(objective, arrays, output_ids=()):
    """Loss, metrics and gradients for the decoder's states and the token head."""
    table = arrays["table"][list(output_ids)] if output_ids else arrays["table"]

    batch = arrays["batch"] | objective.prepare(arrays["batch"], None)

    def loss(states, table):
        term = objective(Words(states, batch, table, output_ids), batch, None)
        return term.mean(), term.metrics

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(arrays["student"], table)


def test_lm_is_pytorchs_next_token_loss(arrays):
    (loss, metrics), grads = lm_gradient(LM(name="lm"), arrays)
    states, table = (torch.tensor(arrays[name], requires_grad=True) for name in ("student", "table"))
    logits = (states @ table.T)[:, :-1].flatten(0, 1)
    target = torch.tensor(np.array(arrays["batch"]["text"][:, 1:], np.int64)).flatten()
    reference = torch.nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=0)(logits, target)
    reference.backward()
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-5)
    for mine, theirs in zip(grads, (states, table), strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)
    real = target != 0
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(1) == target)[real].float().mean(), rtol=1e-6)


def test_lm_leaves_out_words_without_an_output(arrays):
    text = np.asarray(arrays["batch"]["text"])
    output = tuple(sorted({SEP, *text[:, 1:3].ravel().tolist()}))
    (loss, _), _ = lm_gradient(LM(name="lm", smoothing=0.0), arrays, output)
    target = text[:, 1:]
    logits = torch.log_softmax(torch.tensor(arrays["student"] @ arrays["table"][list(output)].T), -1).numpy()[:, :-1]
    place = {word: row for row, word in enumerate(output)}
    losses = [-logits[i, j, place[word]] for (i, j), word in np.ndenumerate(target) if word in place]
    assert len(losses) < (target != 0).sum()
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_lm_reads_the_caption_from_the_start_token(arrays):
    caption = np.asarray(LM(name="lm", bos_id=BOS).prepare(arrays["batch"], None)["lm/ids"])
    assert (caption[:, 0] == BOS).all()
    np.testing.assert_array_equal(caption[:, 1:], arrays["batch"]["text"][:, 1:])


@pytest.mark.parametrize("every", [1, 2])
def test_lm_tells_the_decoder_the_language_of_each_row(arrays, every):
    """Its losses are those of a decoder whose states depend on the language of the row."""
    batch = arrays["batch"] | {"text/language": jnp.arange(ROWS, dtype=jnp.int32) % 3}
    plain, told = LM(name="lm", every=every), LM(name="lm", every=every, languages=True)
    states = arrays["student"][::every]
    moved = states + 0.3 * np.float32(np.arange(ROWS)[::every] % 3)[:, None, None]
    terms = [
        objective(Words(jnp.asarray(own), batch | objective.prepare(batch, None), arrays["table"]), batch, None)
        for objective, own in ((told, states), (plain, moved))
    ]
    np.testing.assert_allclose(terms[0].values, terms[1].values, rtol=1e-5)
    assert set(told.prepare(batch, None)) - set(plain.prepare(batch, None)) == {"lm/language"}
    assert told.parts - plain.parts == {"start:text"} and told.reads == ("image", "text", "text/language")


@pytest.mark.parametrize(
    ("languages", "own", "said"),
    [
        (("en",), (), "lm.languages is True, and the captions of config.data.fields.text are in en alone; write two"),
        (("en", "de"), ("fr",), "config.data.fields.text are in fr alone; write two or more in config.data.languages"),
        (("en", "de"), (), ""),
        (("en",), ("de", "fr"), ""),
    ],
)
def test_starts_by_language_want_two_languages(languages, own, said):
    fields = {"image": {}, "text": {"languages": own}}
    section = {"lm": {"languages": True}}
    config = tiny_config(data={"languages": languages, "fields": fields}, objectives=section)
    if said:
        with pytest.raises(UserError, match=said):
            tiny_objectives(section, config)
    else:
        assert tiny_objectives(section, config)["lm"].languages


@pytest.mark.parametrize(
    ("alpha", "ramp", "step", "share"),
    [(0.0, 0, 0, 0.0), (0.4, 0, 0, 0.4), (0.4, 10, 0, 0.0), (0.4, 10, 5, 0.2), (0.4, 10, 99, 0.4)],
)
def test_mlm_is_albefs_with_soft_targets(arrays, alpha, ramp, step, share):
    objective = MLM(name="mlm", rate=0.3, alpha=alpha, alpha_steps=ramp, mask_id=MASK, vocab_size=VOCAB)
    batch = arrays["batch"] | objective.prepare(arrays["batch"], jax.random.key(7))

    def loss(states, other):
        fwd = Words(states, batch, arrays["table"], teacher=Words(other, batch, arrays["table"]), step=step)
        return objective(fwd, batch, None).mean()

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(arrays["student"], arrays["teacher"])
    states = torch.tensor(arrays["student"], requires_grad=True)
    rows, slots = np.nonzero(np.asarray(batch["mlm/chosen"]))
    columns = np.asarray(batch["mlm/positions"])[rows, slots]
    table = torch.tensor(arrays["table"])
    logits = states[rows, columns] @ table.T
    hard = torch.nn.functional.cross_entropy(
        logits, torch.tensor(np.array(arrays["batch"]["text"])[rows, columns]).long()
    )
    soft = torch.softmax(torch.tensor(arrays["teacher"])[rows, columns] @ table.T, -1)
    reference = (1 - share) * hard - share * (torch.log_softmax(logits, -1) * soft).sum(-1).mean()
    reference.backward()
    np.testing.assert_allclose(value, reference.item(), rtol=1e-5)
    np.testing.assert_allclose(grads[0], states.grad, rtol=1e-4, atol=1e-6)
    assert (np.asarray(grads[1]) == 0).all()  # nothing flows into the teacher


@pytest.mark.parametrize(
    "section, sentence",
    [
        ({"mlm": {"rate": 0.0}}, "mlm.rate is 0.0"),
        ({"mlm": {"alpha": -1.0}}, "mlm.alpha is -1.0; write a rate from 0 to 1"),
        ({"mlm": {"alpha_steps": -1}}, "mlm.alpha_steps is -1; write 0 or more"),
        ({"lm": {"smoothing": 1.0}}, "lm.smoothing is 1.0; write 0 to below 1"),
        ({"lm": {"every": 0}}, "lm.every is 0; write 1 or more"),
    ],
)
def test_impossible_values_are_refused(section, sentence):
    with pytest.raises(UserError, match=sentence):
        build_objectives(section)


@pytest.mark.parametrize("kind", [MLM, LM])
def test_every_second_row_alone(arrays, kind):
    """The term is that of a batch that holds the second rows only."""
    half = {name: value[::2] for name, value in arrays["batch"].items()}
    special = {"name": "x"} | ({"mask_id": MASK, "vocab_size": VOCAB} if kind is MLM else {"bos_id": BOS})

    def term(objective, batch, states, other):
        batch = batch | objective.prepare(batch, jax.random.key(7))
        teacher = Words(other, batch, arrays["table"])
        return objective(Words(states, batch, arrays["table"], teacher=teacher), batch, None)

    states, other = arrays["student"][::2], arrays["teacher"][::2]
    expected = term(kind(**special), half, states, other)
    found = term(kind(**special, every=2), arrays["batch"], states, other)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)
    np.testing.assert_array_equal(found.weight, expected.weight)
