"""Zero-shot classification: heads and tables by hand, blocks against the whole, and a run through the command line."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.eval import zeroshot
from xmodal_jax.eval.captioning import caption_split
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.eval.retrieval import Places

TREE = Taxonomy(
    "species",
    ("kingdom", "genus"),
    {
        "avis prima": ("animalia", "avis"),
        "avis secunda": ("animalia", "avis"),
        "avis": ("animalia", ""),
        "herba viridis": ("plantae", "herba"),
    },
    {"avis prima": "First bird", "herba viridis": "green-herb"},
)
NAMES = TREE.labels


def letters(texts):
    """Unit embeddings of texts: how often a, b and c occur."""
    counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


# --- the class head -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_class_is_the_mean_of_its_templates(batch):
    sizes = set()

    def encode(texts):
        sizes.add(len(texts))
        return letters(texts)

    head = zeroshot.class_head(encode, ["aa", "b", "c"], ("{}", "{}b"), batch)
    wanted = letters(["aa", "b", "c"]) + letters(["aab", "bb", "cb"])
    np.testing.assert_allclose(head, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=1e-6)
    assert sizes == {{1: 2, 4: 4, 100: 6}[batch]}  # one shape, so one compilation


def test_a_head_of_nothing_or_of_nan_is_refused():
    for names, templates in (([], ("{}",)), (["a"], ())):
        with pytest.raises(UserError, match="There are no"):
            zeroshot.class_head(letters, names, templates)
    with pytest.raises(UserError, match="not finite"):
        zeroshot.class_head(lambda texts: np.full((len(texts), 3), np.nan, np.float32), ["a"])


def test_the_best_classes_are_those_of_the_whole_matrix(rng):
    image, head = rng.normal(size=(37, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    head[7] = head[3]  # a tie: the lower class first
    whole = (image / np.linalg.norm(image, axis=1, keepdims=True)) @ head.T
    wanted = np.argsort(-whole, axis=1, kind="stable")[:, :3]
    for block_scores in (1, 70, 1 << 22):
        np.testing.assert_array_equal(zeroshot.best_classes(image, head, 3, block_scores), wanted)


# --- tables ---------------------------------------------------------------------------------------------------------


def in_order(best, labels):
    """Where the first right class stands in rows of classes [n,k], best first; behind them where it is in none."""
    right = np.array([[*np.isin(row, own), True] for row, own in zip(best, labels, strict=True)])
    return Places(right.argmax(axis=1), *np.ones((2, len(labels)), int))


def test_accuracy_by_hand():
    best, labels = np.array([[0, 1, 2], [1, 0, 2], [2, 3, 1], [3, 2, 1]]), [[0], [0], [0], [3]]
    got = zeroshot.accuracy(in_order(best, labels), labels, 4)
    assert got["top-1"] == {"right": 50.0, "chance": 25.0}
    assert got["top-3"] == {"right": 75.0, "chance": pytest.approx(75.0)}
    # class 0: one picture of three; class 3: its only one
    assert got["macro"] == {"right": pytest.approx(100 * (1 / 3 + 1) / 2), "chance": pytest.approx(25.0)}


def test_any_of_several_labels_is_right():
    best, labels = np.array([[0, 1], [1, 2]]), [[0, 2], [0, 2]]
    got = zeroshot.accuracy(in_order(best, labels), labels, 4)
    assert got["top-1"] == {"right": 50.0, "chance": pytest.approx(50.0)}
    assert "top-3" not in zeroshot.accuracy(in_order(best, labels), labels, 2)
    assert got["macro"]["right"] == 50.0  # both classes have both pictures


def test_chance_is_what_random_orders_reach(rng):
    labels = [[0], [0, 1], [2], [1], [4, 3, 2]]
    draws = [np.stack([rng.permutation(5)[:3] for _ in labels]) for _ in range(3000)]
    found = [zeroshot.accuracy(in_order(best, labels), labels, 5) for best in draws]
    for name, row in found[0].items():
        assert np.mean([one[name]["right"] for one in found]) == pytest.approx(row["chance"], abs=2)


def test_ranks_by_hand():
    # secunda for prima: right at genus; avis (no genus) for prima: right at kingdom; herba for herba; prima for avis
    got = zeroshot.rank_accuracy([[1], [2], [3], [0]], [[0], [0], [3], [2]], NAMES, TREE)
    assert list(got) == ["genus", "kingdom"]
    assert got["genus"]["right"] == pytest.approx(100 * 2 / 3)  # the fourth has no genus to be right at
    assert got["genus"]["chance"] == pytest.approx(100 * (2 + 2 + 1) / 12)
    assert got["kingdom"] == {"right": 100.0, "chance": pytest.approx(100 * (3 + 3 + 1 + 3) / 16)}


def test_a_rank_that_no_picture_has_is_left_out():
    assert list(zeroshot.rank_accuracy([[0]], [[2]], NAMES, TREE)) == ["kingdom"]


def test_classes_that_are_alike_are_drawn_from(rng):
    """Two of four classes share an embedding and are the best of both pictures: neither the first nor both count."""
    head = letters(["a", "b", "a", "c"])
    image, names = head[[0, 0, 1]] * 2, ["avis prima", "avis secunda", "herba viridis", "avis"]
    tables, pictures = zeroshot.view_tables(image, [["avis prima"], ["herba viridis"], ["avis"]], head, names, TREE)
    assert pictures == 3
    assert tables["top-1"]["right"] == pytest.approx(100 * (0.5 + 0.5 + 0) / 3)
    # the third: class b, then the three at 0 in any order, avis with probability 2/3 in the two places that are left
    assert tables["top-3"]["right"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)
    assert tables["genus"]["right"] == pytest.approx(100 * (0.5 + 0.5) / 2)  # avis alone has no genus to be right at
    assert tables["kingdom"]["right"] == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)


def test_a_model_that_tells_no_classes_apart_has_chance():
    head, names = letters(["ab"] * 4), NAMES
    tables, _ = zeroshot.view_tables(head[:3], [[NAMES[0]], [NAMES[1], NAMES[3]], [NAMES[2]]], head, names, TREE)
    for name, row in tables.items():
        assert row["right"] == pytest.approx(row["chance"]), name


# --- names and templates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "words"),
    [("animals/birds", "animals birds"), ("Food & Drink: food-fruit", "Food & Drink food-fruit"), ("a_b", "a b")],
)
def test_labels_are_spoken_as_words(label, words):
    assert zeroshot.spoken(label) == words


def test_templates_come_from_a_file(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\n\n {} {again}\n")
    assert zeroshot.read_templates(path) == ("a {}.", "{} {again}")
    path.write_text("a {}.\nno name\n")
    with pytest.raises(UserError, match="line 2 of .*'no name', must have one {}"):
        zeroshot.read_templates(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        zeroshot.read_templates(path)
    with pytest.raises(UserError, match="there is no file"):
        zeroshot.read_templates(tmp_path / "none")


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A photo of Avis  prima, a bird.", {"avis prima"}),
        ("the first bird of the family", {"avis prima"}),  # its common name
        ("a green herb", {"herba viridis"}),
        ("one of avis.", {"avis"}),
        ("avis near avis secunda", {"avis secunda"}),  # the longest
        ("avis secunda or avis prima", {"avis secunda"}),  # the first
        ("a preavis prima", set()),  # whole words only
        ("", set()),
    ],
)
def test_the_longest_name_in_a_caption_counts(caption, named):
    assert zeroshot.named_labels(caption, zeroshot.name_index(TREE)) == named


def test_names_that_differ_by_a_vowel_sign_are_two():
    index = {("कुल",): {"total"}, ("कल",): {"yesterday"}}
    assert zeroshot.named_labels("यह कल है", index) == {"yesterday"}
    assert zeroshot.named_labels("यह कुल है", index) == {"total"}


def test_naming_accuracy_is_a_share_of_the_captions():
    captions = ["avis prima", "avis", "a bird", "a green herb"]
    got = zeroshot.naming_accuracy(
        captions, [["avis prima"], ["avis prima"], ["avis"], ["avis", "herba viridis"]], TREE
    )
    assert got == {"species named": 0.75, "species right": 0.5}


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def species_run(opened_run, tmp_path_factory):
    """The tiny run on its shapes with a taxonomy: round and angular shapes, and one that no picture shows."""
    assembly, params = opened_run
    folder = tmp_path_factory.mktemp("species") / "shapes"
    shutil.copytree(assembly.config.data.path, folder)
    kinds = {"circle": "round", "square": "angular", "triangle": "angular", "bar": "angular", "oval": "round"}
    Taxonomy("species", ("kind",), {name: (kind,) for name, kind in kinds.items()}).save(folder)
    data = dataclasses.replace(assembly.config.data, path=str(folder))
    return dataclasses.replace(assembly, config=dataclasses.replace(assembly.config, data=data)), params


def test_a_run_is_classified_as_by_hand(species_run):
    assembly, params = species_run
    templates = ("{}", "a {}")
    result = zeroshot.classify(assembly, params, "test", templates)
    assert (result["classes"], result["pictures"], result["unlabelled"]) == (5, 12, 0)
    names, embedder = ["circle", "square", "triangle", "bar", "oval"], Embedder(assembly.model, params)
    texts = [template.format(name) for name in names for template in templates]
    ids = assembly.tokenizer.encode(texts, assembly.config.encoders["text"].length)
    head = embedder.rows("text", ids).embed.reshape(5, 2, -1).mean(1)
    head /= np.linalg.norm(head, axis=1, keepdims=True)
    for view, tables in result["views"].items():
        found = Evaluator(assembly, params).open("test", view)
        image = embedder.side(found.left, 8).embed
        best = [names[row] for row in np.argmax(image @ head.T, axis=1)]
        true = [key.split("-")[1] for key in found.keys]
        right = np.mean([one == other for one, other in zip(best, true, strict=True)])
        assert tables["top-1"] == {"right": pytest.approx(100 * right), "chance": pytest.approx(20)}
        kind = np.mean(
            [(one in ("circle", "oval")) == (other == "circle") for one, other in zip(best, true, strict=True)]
        )
        assert tables["kind"]["right"] == pytest.approx(100 * kind)
    own = zeroshot.classify(assembly, params, "test", templates, "split")
    assert own["classes"] == 4 and own["mean"]["top-1"]["chance"] == 25  # no oval
    mean = np.mean([tables["top-1"]["right"] for tables in result["views"].values()])
    assert result["mean"]["top-1"]["right"] == pytest.approx(mean)


def test_captions_of_a_run_are_searched_for_names(species_run, opened_run):
    rows, scores = caption_split(*species_run, "test", limit=4, beam=1)
    named = [
        {shape for shape in ("circle", "square", "triangle", "bar") if shape in row["caption"].split()} for row in rows
    ]
    assert scores["species named"] == np.mean([bool(own) for own in named])
    assert 0 <= scores["species right"] <= scores["species named"]
    assert set(caption_split(*opened_run, "test", limit=1, beam=1)[1]) == {"BLEU-4", "CIDEr"}  # no taxonomy there


def test_the_command_prints_and_keeps_a_table(tiny_run, tmp_path, capsys):
    (tmp_path / "templates.txt").write_text("a {}\nthe {}\n")
    command = ["classify", "--workdir", str(tiny_run[0]), "--templates", str(tmp_path / "templates.txt")]
    assert main([*command, "--config.eval.batch_size=4"]) == 0
    said = capsys.readouterr().out
    assert "12 pictures, 4 classes, 2 templates" in said and "mean of the views" in said and "25.00" in said
    kept = json.loads((tiny_run[0] / "classify-test.json").read_text())
    assert (
        kept["step"] == 4
        and set(kept["mean"]) == {"top-1", "top-3", "macro"}
        and set(kept["views"]) == {"filled", "outline"}
    )
    assert main([*command, "--split", "none"]) == 2
    assert "has no split 'none'" in capsys.readouterr().err
    assert main([*command, "--config.encoders.text.width=4"]) == 2
    assert "only eval, evals, data, mesh can be changed" in capsys.readouterr().err


def test_a_set_without_labels_has_no_classes(opened_run, tmp_path):
    from xmodal_jax.data.card import Card

    assembly, params = opened_run
    shutil.copytree(assembly.config.data.path, tmp_path / "bare")
    dataclasses.replace(Card.load(tmp_path / "bare"), label_names=[]).save(tmp_path / "bare")
    data = dataclasses.replace(assembly.config.data, path=str(tmp_path / "bare"))
    bare = dataclasses.replace(assembly, config=dataclasses.replace(assembly.config, data=data))
    with pytest.raises(UserError, match="has no labels, so no classes"):
        zeroshot.classify(bare, params)
