"""Two captions of a record in one batch: what text-text pairs are made of, and which rows are positives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import FACTS, input_specs, tiny_config, tiny_params

from xmodal_jax.data.config import PAIR, DataConfig, FieldConfig
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.forward import Forward
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.objectives import build_objectives, fit_objectives, parts
from xmodal_jax.objectives.base import marks, same

ROWS, TEXTS = 8, ("text", "text2")
FIELDS = dict.fromkeys(PAIR, FieldConfig()) | {"text2": FieldConfig(of="text")}
CAPTIONS = [["a", "b", "c"], ["d", "e"], ["f"], ["g"], ["f"], ["h", "f"], ["k", "l"], ["m", "n"]]  # "f" comes thrice


@pytest.fixture(scope="module")
def batch(tmp_path_factory, request):
    """All records in one batch, with two captions each, or one twice."""
    folder = tmp_path_factory.mktemp("texts") / "set"
    from PIL import Image

    path = folder.parent / "p.png"
    Image.new("RGB", (8, 8)).save(path)
    items = [Item(str(n), {"image": path.read_bytes()}, {"en": own}) for n, own in enumerate(CAPTIONS)]
    prepare(memory_source(items, "texts"), folder)
    specs = input_specs(load_tokenizer("data", folder))
    dataset = train_dataset(folder, "train", specs, DataConfig(fields=FIELDS), 0, ROWS)
    found = dataset.batch_at(0)
    dataset.close()
    return found


def test_a_record_with_one_caption_has_it_twice_and_others_two(batch):
    for row, index in enumerate(batch["index"]):
        alike = np.array_equal(batch["text"][row], batch["text2"][row])
        assert alike == (len(CAPTIONS[index]) == 1) == (batch["text/key"][row] == batch["text2/key"][row])


def test_rows_with_the_same_caption_are_positives_of_each_other(batch):
    order = np.argsort(batch["index"])
    match = np.asarray(same(marks(batch, TEXTS), marks(batch, TEXTS)))[np.ix_(order, order)]
    assert match.diagonal().all() and match[2, 4] and match[4, 2], "records 2 and 4 have one caption, the same"
    others = match & ~np.eye(ROWS, dtype=bool)
    assert not others[[0, 1, 3, 6, 7]].any(), "no other rows share a caption"


def test_a_caption_may_be_the_other_one_of_another_row():
    """Row 0 shows "h" and then "f", row 1 "f" and then "q": no column of keys alone tells that they share a text."""
    rows = {"id": jnp.array([0, 1, 2]), "text/key": jnp.array([7, 5, 1]), "text2/key": jnp.array([5, 8, -1])}
    match = np.asarray(same(rows, rows))
    assert match.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    other = rows | {"sound/key": jnp.array([5, 1, 7])}
    assert np.asarray(same(other, other)).tolist() == match.tolist(), "numbers of another medium mean something else"


def soft_cross_entropy(query, keys, match, temperature):
    """The mean over both directions of cross-entropies whose targets are spread over all positives."""
    target = torch.tensor(match / match.sum(1, keepdims=True)).float()
    logits = query @ keys.T / temperature
    return -0.5 * ((torch.log_softmax(logits, 1) * target).sum(1) + (torch.log_softmax(logits.T, 1) * target).sum(1))


def test_itc_takes_two_captions_for_a_pair(batch):
    config = tiny_config(
        data={"fields": {name: dataclasses.asdict(own) for name, own in FIELDS.items()}},
        objectives={"tt": {"kind": "itc", "pair": TEXTS, "queue": 0, "alpha": 0.0}},
    )
    objectives = fit_objectives(build_objectives(config.objectives, ROWS), config, FACTS)
    model = CrossModal(config)
    params = tiny_params(model, 0, parts(objectives))
    # the pictures of the batch are no cached tokens, and nothing asks for them
    rows = {name: jnp.asarray(own) for name, own in batch.items() if name != "image"}

    @jax.jit
    def loss(params):
        fwd = Forward(model, params, rows, None)
        fwd.teacher = Forward(model, jax.lax.stop_gradient(params), rows, None)
        term = objectives["tt"](fwd, rows, jax.random.key(0))
        return term.mean(), (term.values, [fwd.encode(field).unit for field in TEXTS])

    (_, (values, units)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    left, right = (torch.tensor(np.array(own)) for own in units)
    match = np.asarray(same(marks(batch, TEXTS), marks(batch, TEXTS)))
    expected = soft_cross_entropy(left, right, match, config.joint.temperature)
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-4)
    assert float(jnp.abs(grads["text"]["head"]["linear"]["kernel"]).max()) > 0
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(grads["image"]))
