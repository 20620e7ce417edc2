"""The losses on relaxed codes: each against its formula in PyTorch, value and gradient, alone and at nested lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given
from tiny import FACTS, ROWS, VOCAB, tiny_batch, tiny_config, tiny_model, tiny_params, tiny_recipe

from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.objectives import build_objectives, parts
from xmodal_jax.objectives.codes import batch_rows
from xmodal_jax.objectives.hash_contrast import HashContrast, HashSupCon
from xmodal_jax.objectives.hashing import HashDistance, HashEuclidean, HashQuality, HashTriplet, euclidean
from xmodal_jax.training.memory import update_memory
from xmodal_jax.training.step import create_state, train_step

BITS, RECORDS, SEEN = 8, 12, 9
LABELS = np.eye(4, dtype=np.float32)[[0, 1, 2, 0, 3, 3, 1, 2]] + np.eye(4, dtype=np.float32)[[0, 1, 2, 1, 3, 3, 1, 2]]
LABELS = (LABELS > 0).astype(np.float32)


@pytest.fixture(scope="module")
def arrays():
    """Numbers before tanh, [B,BITS] of images and texts; the batch, tower tokens and a memory of codes."""
    draw = np.random.default_rng(3)
    batch = tiny_batch() | {"labels": LABELS}
    codes = draw.normal(size=(RECORDS, BITS)).astype(np.float32)
    marks = {name: np.arange(RECORDS, dtype=np.int32) + batch[name][0] for name in ("id", "text/key")}
    marks["id"][SEEN:] = -1
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    codes[SEEN:] = 0
    towers = {"image": draw.random((ROWS, 3, 5)).astype(np.float32), "text": draw.normal(size=(ROWS, 8, 4))}
    towers["text"] = towers["text"].astype(np.float32)
    tables = {"codes": marks | {"codes": codes, "cursor": np.int32(0)}}
    sides = draw.normal(size=(2, ROWS, BITS)).astype(np.float32)
    return {"sides": sides, "batch": batch, "memory": tables, "towers": towers}


def ours(objective, arrays, step=0, nested=()):
    """The term, and the gradients of its mean."""
    heads = {"codes": lambda side, x: jnp.tanh(x)}
    more = {name: jax.tree.map(jnp.asarray, arrays.get(name)) for name in ("memory", "towers", "params")}
    batch = jax.tree.map(jnp.asarray, arrays["batch"])

    def loss(image, text):
        fwd = Given(image, text, heads=heads, step=step, nested=nested, batch=batch, **more)
        term = objective(fwd, batch, jax.random.key(5))
        return term.mean(), term

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*map(jnp.asarray, arrays["sides"]))


def agrees(objective, arrays, reference, **how):
    """Value of each row and gradient are those of `reference(image codes, text codes)` in PyTorch, which gives [B]."""
    grads, term = ours(objective, arrays, **how)
    inputs = [torch.tensor(x, requires_grad=True) for x in arrays["sides"]]
    lengths = (*how.get("nested", ()), BITS)
    codes = [torch.tanh(x) for x in inputs]
    rows = sum(reference(*(x[:, :bits] for x in codes)) for bits in lengths) / len(lengths)
    rows.mean().backward()
    np.testing.assert_allclose(term.mean(), rows.mean().detach(), rtol=1e-5)
    np.testing.assert_allclose(term.values, rows.detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(grads, inputs, strict=True):
        assert theirs.grad.abs().max() > 1e-4
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)
    return term


def matching(arrays, by_label):
    """S as a boolean matrix."""
    match = np.eye(ROWS, dtype=bool)
    match[0, 1] = match[1, 0] = True  # one caption
    return torch.tensor(match | (LABELS @ LABELS.T > 0) if by_label else match)


@pytest.mark.parametrize("nested", [(), (2, 5)], ids=str)
@pytest.mark.parametrize("by_label", [False, True], ids=["id", "label"])
def test_euclidean(arrays, by_label, nested):
    match = matching(arrays, by_label)

    def reference(image, text):
        """On the 2K-wide select vectors, pair by pair."""
        image, text = (torch.cat([(1 + c) / 2, (1 - c) / 2], 1) for c in (image, text))
        rows, most = [], (2 * image.shape[1] / 2 * 0.5) ** 0.5
        for i in range(ROWS):
            row = 0.0
            for left, right in ((image, text), (image, image), (text, text)):
                for j in range(ROWS):
                    if match[i, j]:
                        row = row + ((left[i] - right[j]) ** 2).sum()
                    else:
                        row = row + (most - ((left[i] - right[j]) ** 2).sum().sqrt().clamp(max=most)) ** 2
            rows.append(row / ROWS)
        return torch.stack(rows)

    agrees(HashEuclidean(by_label=by_label), arrays, reference, nested=nested)


def test_the_distance_of_equal_codes_has_a_gradient(rng):
    codes = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    grad = jax.grad(lambda x: euclidean(x, codes)[1].sum())(codes)
    assert np.isfinite(grad).all() and float(euclidean(codes, codes)[1][0, 0]) < 1e-3


@pytest.mark.parametrize(("step", "mean"), [(0, True), (3, False)])
@pytest.mark.parametrize("by_label", [False, True], ids=["id", "label"])
def test_triplet(arrays, by_label, step, mean):
    match = matching(arrays, by_label)

    def reference(image, text):
        image, text = (torch.nn.functional.normalize(x, dim=1) for x in (image, text))
        rows = []
        for i in range(ROWS):
            row = 0.0
            for left, right in ((image, text), (text, image)):
                others = [j for j in range(ROWS) if not match[i, j]]
                hinge = torch.relu(0.2 + right[others] @ left[i] - left[i] @ right[i])
                row = row + (hinge.mean() if mean else hinge.max())
            rows.append(row)
        return torch.stack(rows)

    agrees(HashTriplet(by_label=by_label, mean_steps=3), arrays, reference, step=step, nested=(4,))


@pytest.mark.parametrize("nested", [(), (2, 5)], ids=str)
@pytest.mark.parametrize("by_label", [False, True], ids=["id", "label"])
def test_supcon(arrays, by_label, nested):
    match = matching(arrays, by_label)

    def reference(image, text):
        cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=2)
        told = [torch.log_softmax(scores / 0.2, 1) for scores in (cosine, cosine.T)]
        return torch.stack([-sum(each[i, match[i]].mean() for each in told) / 2 for i in range(ROWS)])

    term = agrees(HashSupCon(temperature=0.2, by_label=by_label), arrays, reference, nested=nested)
    assert 0 < term.metrics["matched"] <= 1


def test_quality(arrays):
    def reference(image, text):
        rows = torch.zeros(ROWS)
        for codes in (image, text):
            gram = codes.T @ codes / ROWS
            alike = (gram - torch.diag(torch.diagonal(gram))).square().sum() / (BITS * (BITS - 1))
            rows = rows + 0.5 * (0.55 * (codes.abs() - 1).square().mean(1) + 0.3 * codes.mean(0).square().mean())
            rows = rows + 0.5 * 0.7 * alike
        return rows

    annealed = HashQuality(quantization=((0, 0.1), (10, 1.0)), balance=0.3, decorrelation=0.7)
    term = agrees(annealed, arrays, reference, step=5)
    assert set(term.metrics) == {"quantization", "balance", "decorrelation"}


def bags(ids, idf):
    """TF-IDF vectors [B,V] word by word."""
    vectors = np.zeros((len(ids), len(idf)), np.float32)
    for row, words in enumerate(ids.tolist()):
        for word in words:
            vectors[row, word] += idf[word]
    return vectors


@pytest.mark.parametrize("kind", ["tower", "centred", "label", "tfidf", "tfidf centred"])
def test_distance(arrays, kind):
    def distance(x):
        x = torch.nn.functional.normalize(torch.as_tensor(x), dim=1)
        return (1 - x @ x.T) / 2 * (1 - torch.eye(ROWS))

    mask, kind, centred = arrays["batch"]["text"] != 0, kind.split()[0], kind.endswith("centred")
    text = (arrays["towers"]["text"] * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    if kind == "tfidf":  # and not what its trained layer makes of it: that tower is not asked
        idf = np.where(np.arange(VOCAB) < 5, 0, 1 + np.arange(VOCAB) / 9).astype(np.float32)
        towers = {"image": arrays["towers"]["image"]}
        arrays, text = (
            arrays | {"params": {"text": {"tower": {"idf": idf}}}, "towers": towers},
            bags(arrays["batch"]["text"], idf),
        )
        text /= np.linalg.norm(text, axis=1, keepdims=True)
    pooled = [arrays["towers"]["image"].mean(1), text.astype(np.float32)]
    if centred:
        pooled = [x - x.mean(0) for x in pooled]
    wanted = [distance(x) for x in ([LABELS, LABELS] if kind == "label" else pooled)]

    def reference(*sides):
        parts = [((1 - x @ x.T / x.shape[1]) / 2 - d).square().mean(1) for x, d in zip(sides, wanted, strict=True)]
        return (parts[0] + parts[1]) / 2

    objective = HashDistance(center=centred, by_label=kind == "label")
    agrees(objective, arrays, reference, nested=(3,))


def test_distances_of_a_tfidf_model_do_not_move_with_its_trained_layer():
    model, batch = tiny_model(tiny_config(text={"kind": "tfidf", "width": 6})), tiny_batch()
    idf, draw = np.linspace(0, 3, VOCAB, dtype=np.float32), np.random.default_rng(0)
    for _ in range(2):
        words = {"kernel": draw.normal(size=(VOCAB, 6)).astype(np.float32), "bias": np.zeros(6, np.float32)}
        params = {"log_temperature": np.float32(0), "image": {}, "text": {"tower": {"idf": idf, "words": words}}}
        fwd = Forward(model, params, jax.tree.map(jnp.asarray, batch), None)
        found = HashDistance(center=False).shared(fwd, batch, batch_rows(batch, ("image", "text"), False), None)[1]
        vectors = bags(batch["text"], idf)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        expected = 0.5 * (1 - vectors @ vectors.T) * (1 - np.eye(ROWS))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("records", "step"), [(0, 0), (RECORDS, 0), (RECORDS, 4)])
def test_contrast_and_ranking(arrays, records, step):
    match, table, batch = matching(arrays, False), arrays["memory"]["codes"], arrays["batch"]
    objective = HashContrast(table=records, negatives=6, warmup=4)
    drawn = np.asarray(jax.random.randint(jax.random.key(5), (6,), 0, RECORDS)) if records and step >= 4 else []

    def sign(x):
        return torch.where(x > 0, 1.0, -1.0)

    def memory_logits(i, query):
        far = [r for r in drawn if r < SEEN and table["id"][r] != batch["id"][i]]
        far = [r for r in far if table["text/key"][r] != batch["text/key"][i]]
        codes = torch.tensor(table["codes"][far]).reshape(-1, BITS)[:, : query.shape[1]]
        return sign(codes) @ query[i]

    def reference(image, text):
        bits = image.shape[1]
        unit = [torch.nn.functional.normalize(x, dim=1) for x in (image, text)]  # as UCCH's networks end
        heat, keys = 0.9 * bits**0.5, sign(sum(unit).detach() / 2)
        rows = []
        for i in range(ROWS):
            others = [j for j in range(ROWS) if not match[i, j]]
            known = len(drawn) and batch["index"][i] < SEEN
            own = sign(torch.tensor(table["codes"][batch["index"][i]])[:bits]) if known else keys[i]
            told, ranked = 0.0, 0.0
            for query, other in (unit, unit[::-1]):
                logits = torch.cat([(query[i] @ own)[None], keys[others] @ query[i], memory_logits(i, query)]) / heat
                told = told - torch.log_softmax(logits, 0)[0]
                score = other @ query[i]
                kept = torch.where(score >= score[i] - 0.2, score, score - 0.1)[[i, *others]]
                ranked = ranked + torch.logsumexp(kept, 0) - score[i] + 0.2
            rows.append(0.7 * told + 0.3 * ranked)
        return torch.stack(rows)

    term = agrees(objective, arrays, reference, step=step, nested=(4,))
    if not records:
        assert term.write == {}
        return
    index, rows = term.write["codes"]
    np.testing.assert_array_equal(index, batch["index"])
    np.testing.assert_array_equal(rows["id"], batch["id"])
    np.testing.assert_allclose(rows["codes"], ucch_memory(arrays, 0.4 if step >= 4 else 0.0), rtol=1e-4, atol=1e-6)


def ucch_memory(arrays, momentum):
    """Compute the batch's rows of UCCH's memory after a step: its networks' outputs and its memory have length one."""
    rows = []
    for image, text, index in zip(*np.tanh(arrays["sides"].astype(np.float64)), arrays["batch"]["index"], strict=True):
        fresh = image / np.sqrt(image @ image) + text / np.sqrt(text @ text)
        angle = fresh / np.sqrt(fresh @ fresh)
        row = momentum * arrays["memory"]["codes"]["codes"][index] + (1 - momentum) * angle
        rows.append(row / np.sqrt(row @ row))
    return rows


def test_the_length_of_a_code_does_not_count_in_the_memory(arrays):
    """Only directions are remembered: codes ten times as long, of one side or of both, move a row no further."""
    heads = {"codes": lambda side, x: x}
    memory, batch = jax.tree.map(jnp.asarray, (arrays["memory"], arrays["batch"]))

    def written(*scales):
        fwd = Given(*(scale * x for scale, x in zip(scales, arrays["sides"], strict=True)), heads=heads, memory=memory)
        return HashContrast(table=RECORDS)(fwd, batch, jax.random.key(5)).write["codes"][1]["codes"]

    for scales in ((10.0, 10.0), (0.1, 1.0)):
        np.testing.assert_allclose(written(*scales), written(1.0, 1.0), rtol=1e-4, atol=1e-6)


def test_the_memory_holds_a_row_for_each_record():
    model = tiny_model(tiny_config(objectives={"hash_contrast": {"table": RECORDS}}))
    memory = build_objectives(model.config.objectives)["hash_contrast"].memory(model, FACTS)
    assert memory["codes"]["codes"].shape == (RECORDS, 8) and (memory["codes"]["id"] == -1).all()
    assert HashContrast().memory(model, FACTS) == {}


HASHING = {
    "hash": {"exact": True},
    "hash_triplet": {"mean_steps": 1},
    "hash_euclidean": {"per_bit": True},
    "hash_contrast": {"table": RECORDS, "negatives": 5},
    "hash_supcon": {},
    "hash_quality": {"quantization": ((0, 0.1), (4, 1.0)), "balance": 0.1, "decorrelation": 0.1},
    "hash_distance": {},
}


def precisions(jaxpr):
    """The precision of every matrix product in a program, and in the programs inside it."""
    for step in jaxpr.eqns:
        if step.primitive.name == "dot_general":
            yield step.params["precision"]
        for inner in jax.tree.leaves(list(step.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from precisions(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", [*HASHING, "mean"])
def test_every_product_of_codes_is_in_full_float32(arrays, name):
    """On accelerators the default is bfloat16 or TF32, and distances of codes are differences of large numbers."""
    objective = build_objectives(HASHING | {"mean": {"kind": "hash"}})[name]
    with jax.default_matmul_precision("default"):  # the tests' own is the highest
        found = list(precisions(jax.make_jaxpr(lambda arrays: ours(objective, arrays))(arrays).jaxpr))
    assert len(found) >= 2 and set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_eight_devices_equal_one(arrays):
    """All losses in one program over a batch that is split over eight devices."""
    from jax.sharding import NamedSharding, PartitionSpec

    heads = {"codes": lambda side, x: jnp.tanh(x)}
    objectives = build_objectives(HASHING)

    @jax.jit
    def run(sides, batch, memory, towers):
        def loss(sides):
            fwd = Given(*sides, heads=heads, memory=memory, towers=towers, nested=(4,), batch=batch)
            terms = [objective(fwd, batch, jax.random.key(5)) for objective in objectives.values()]
            return sum(term.mean() for term in terms), [(term.values, term.metrics, term.write) for term in terms]

        return jax.value_and_grad(loss, has_aux=True)(sides)

    inputs = tuple(arrays["sides"]), arrays["batch"], arrays["memory"], arrays["towers"]
    one = run(*inputs)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    places = [
        jax.tree.map(lambda _, place=place: place, x)
        for x, place in zip(inputs, (rows, rows, whole, rows), strict=True)
    ]
    many = run(*jax.device_put(inputs, tuple(places)))
    assert len(jax.tree.leaves(many)[1].devices()) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), many, one)


def test_a_step_of_all_of_them_fits_the_state_and_writes_the_memory(arrays):
    """Traced, not compiled: the state after a step has the shapes of the one before; the table is left as it is."""
    section = HASHING | {"hash_contrast": {"table": FACTS.records, "negatives": 5}}
    recipe = tiny_recipe(tiny_config(joint={"bits": 16, "nested": (8,)}, objectives=section))
    used = parts(recipe.objectives)
    state = jax.eval_shape(lambda: create_state(recipe, tiny_params(recipe.model, 0, used), 0))
    after, metrics = jax.eval_shape(lambda state: train_step(recipe, state, arrays["batch"]), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {"hash_triplet/loss_8", "hash_contrast/ranking", "loss/hash_distance"} < set(metrics)
    _, term = ours(HashContrast(table=RECORDS), arrays)
    table = update_memory(
        arrays["memory"] | {"codes": jax.tree.map(jnp.asarray, arrays["memory"]["codes"])}, {"one": term}
    )
    np.testing.assert_array_equal(table["codes"]["id"][:ROWS], arrays["batch"]["id"])
    np.testing.assert_allclose(table["codes"]["codes"][:ROWS], term.write["codes"][1]["codes"])
    np.testing.assert_array_equal(table["codes"]["codes"][ROWS:], arrays["memory"]["codes"]["codes"][ROWS:])


def test_each_nested_length_is_logged(arrays):
    _, term = ours(HashTriplet(), arrays, nested=(2, 4))
    assert {"loss_2", "loss_4", "loss_8"} < set(term.metrics)
    alone = [ours(HashTriplet(), arrays | {"sides": arrays["sides"][:, :, :bits]})[1].mean() for bits in (2, 4, 8)]
    np.testing.assert_allclose([term.metrics[f"loss_{bits}"] for bits in (2, 4, 8)], alone, rtol=1e-5)
    np.testing.assert_allclose(term.mean(), np.mean(alone), rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"hash_triplet": {"margin": 0.0}}, "hash_triplet.margin is 0.0; write a cosine"),
        ({"hash_triplet": {"mean_steps": -1}}, "hash_triplet.mean_steps is -1; write 0 or more"),
        ({"hash_euclidean": {"vartheta": 1.5}}, "hash_euclidean.vartheta is 1.5"),
        ({"hash_contrast": {"alpha": 2.0}}, "hash_contrast.alpha is 2.0; write a rate from 0 to 1"),
        ({"hash_contrast": {"temperature": 0.0}}, "hash_contrast.temperature is 0.0"),
        ({"hash_supcon": {"temperature": 0.0}}, "hash_supcon.temperature is 0.0"),
        ({"hash_contrast": {"table": -1}}, "hash_contrast.table is -1"),
        ({"hash_quality": {"quantization": ((5, 1.0), (0, 0.1))}}, "steps do not ascend"),
    ],
)
def test_impossible_values_are_refused(section, sentence):
    with pytest.raises(UserError, match=sentence):
        build_objectives(section)


@pytest.mark.parametrize("nested", [(12,), (16, 8), (8, 8), (128,), (0, 8)])
def test_nested_lengths_that_cannot_be_are_refused(nested):
    with pytest.raises(UserError, match="config.joint.nested is .*; write ascending multiples of 8, at most"):
        tiny_config(joint={"bits": 64, "nested": nested})


def test_nested_lengths_end_with_the_whole_code():
    assert tiny_config(joint={"bits": 64, "nested": (16, 32)}).joint.lengths == (16, 32, 64)
    assert tiny_config(joint={"bits": 64, "nested": (16, 64)}).joint.lengths == (16, 64)
    assert tiny_config(joint={"bits": 64}).joint.lengths == (64,)
