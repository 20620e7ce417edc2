"""The tables of codes at every length, with chance and the spread of ties beside them."""

import dataclasses

import numpy as np
import pytest

from xmodal_jax.data.evaluation import EvalSplit, Side
from xmodal_jax.encode.embed import Embedded
from xmodal_jax.eval import code_tables, hashing, retrieval
from xmodal_jax.eval.folds import mean_tables
from xmodal_jax.eval.tables import notes
from xmodal_jax.search import numpy_engine, writer
from xmodal_jax.search.index import Index

RECORDS, BITS = 12, 32


def split_of(owner, labels=None):
    """A split without files: one picture for each record and captions of these owners, no two alike."""
    records = int(owner.max()) + 1

    def side(field, own):
        return Side(field, field, own, np.arange(len(own)), None)

    return EvalSplit(
        "", range(records), np.arange(records), side("image", np.arange(records)), side("text", owner), labels
    )


@pytest.fixture(scope="module")
def case():
    """Codes of two captions a picture that are those of the picture with some bits flipped; labels; their tables."""
    rng = np.random.default_rng(4)
    image = rng.normal(size=(RECORDS, BITS)).astype(np.float32)
    text = np.repeat(image, 2, axis=0) * np.where(rng.random((2 * RECORDS, BITS)) < 0.2, -1, 1).astype(np.float32)
    labels = np.eye(3, dtype=np.float32)[np.arange(RECORDS) % 3]
    owner = np.repeat(np.arange(RECORDS), 2)
    split = split_of(owner, labels)
    sides = [Embedded(rng.normal(size=(len(x), 6)).astype(np.float32), codes=x) for x in (image, text)]
    return *sides, split, code_tables.all_tables(*sides, split, (8, 16, BITS))


def test_every_length_is_that_of_the_first_bits(case):
    image, text, split, tables = case
    assert list(tables["nested"]) == ["8", "16"]
    to_text, to_image = retrieval.positives_from_owners(split.right.owner, split.right.numbers, RECORDS)
    for bits, own in ((8, tables["nested"]["8"]), (16, tables["nested"]["16"]), (BITS, tables)):
        codes, sides = own["codes"], (image.codes[:, :bits], text.codes[:, :bits])
        assert codes["i2t"] == hashing.hamming_recall(*sides, to_text) and codes["bits"] == bits
        assert codes["t2i"] == hashing.hamming_recall(*sides[::-1], to_image) and codes["bytes"] == bits // 8
        both = hashing.Labelled(*sides, split.labels, split.labels[split.right.owner])
        labels = hashing.label_table(both, both, RECORDS)
        assert labels["i2t"].items() <= own["labels"]["i2t"].items()
        assert own["labels"]["t2i"]["P random"] == pytest.approx(1 / 3)
    assert tables["codes"]["float_bytes"] == 24 and tables["codes"]["rSum"] > tables["nested"]["8"]["codes"]["rSum"]


def test_relaxed_codes_are_ranked_by_their_cosine(case):
    image, text, split, tables = case
    rights = retrieval.positives_from_owners(split.right.owner, split.right.numbers, RECORDS)
    for bits, own in ((8, tables["nested"]["8"]), (BITS, tables)):
        sides = [side.codes[:, :bits] for side in (image, text)]
        for name, pair, right in zip(("i2t", "t2i"), (sides, sides[::-1]), rights, strict=True):
            cosine = np.array([[a @ b / np.sqrt(a @ a * (b @ b)) for b in pair[1]] for a in pair[0]])
            best = [row[own[own >= 0]].max() for row, own in zip(cosine, right, strict=True)]
            ranks = 1 + (cosine > np.array(best)[:, None] + 1e-6).sum(1)
            assert own["relaxed"][name]["R@1"] == pytest.approx(100 * np.mean(ranks <= 1))
    assert tables["relaxed"]["i2t"] != tables["codes"]["i2t"]


def test_int8_is_the_gallery_in_whole_numbers_and_the_query_as_it_is(case, tmp_path):
    image, text, split, tables = case
    kept = {}
    for name, rows in (("image", image.embed), ("text", text.embed)):
        whole = np.array([np.round(row / np.abs(row).max() * 127) for row in rows])
        kept[name] = (whole / np.linalg.norm(whole, axis=1, keepdims=True)).astype(np.float32)
    to_text, to_image = retrieval.positives_from_owners(split.right.owner, split.right.numbers, RECORDS)
    assert tables["int8"]["i2t"] == retrieval.recall(image.embed, kept["text"], to_text, (1, 5, 10))
    assert tables["int8"]["t2i"] == retrieval.recall(text.embed, kept["image"], to_image, (1, 5, 10))


def test_int8_finds_what_a_search_of_an_int8_index_finds(tmp_path, rng):
    """Rows so close that quantised queries would be ranked otherwise."""
    image = (1 + 0.02 * rng.normal(size=(60, 16))).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text = image + (0.01 * rng.normal(size=image.shape)).astype(np.float32)
    split = split_of(np.arange(60))
    opened = Index.open(writer.write(tmp_path / "index", image, None, dtype="int8"), engine="numpy")
    _, rows = opened.nearest(text, 10)
    found = code_tables.int8_table(image, text, split)["t2i"]
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(100 * (rows[:, :k] == np.arange(60)[:, None]).any(1).mean())
    quantised = [numpy_engine.unit_rows(writer.as_int8(rows)) for rows in (image, text)]
    assert found != code_tables.cosine_table(*quantised, split)["t2i"]


def test_ties_lie_between_all_won_and_all_lost(case):
    codes = case[3]["nested"]["8"]["codes"]
    for side in ("i2t", "t2i"):
        for name in ("R@1", "R@5", "R@10"):
            low, high = (codes[kind][side][name] for kind in ("pessimistic", "optimistic"))
            assert low <= codes[side][name] <= high
    assert codes["pessimistic"] != codes["optimistic"]


def test_chance_stands_beside_recall_and_precision(case):
    codes = case[3]["codes"]
    assert codes["chance"]["t2i"]["R@1"] == pytest.approx(100 / RECORDS)
    assert codes["chance"]["i2t"]["R@1"] == pytest.approx(100 * 2 / (2 * RECORDS))
    assert codes["precision"]["t2i"]["P random"] == pytest.approx(1 / RECORDS)
    assert codes["precision"]["t2i"]["P@1"] == pytest.approx(codes["t2i"]["R@1"] / 100, abs=0.05)


def test_a_gallery_of_other_records_is_what_labels_are_looked_for_in(case, rng):
    """By hand: the average precision of each query over the other records, ties in every order."""
    image, text, split, tables = case
    other = hashing.Labelled(
        rng.normal(size=(9, BITS)),
        rng.normal(size=(15, BITS)),
        np.eye(3)[[0] * 5 + [1] * 4],
        np.eye(3)[[0] * 10 + [2] * 5],
    )
    found = code_tables.all_tables(image, text, split, (8, BITS), other)
    for bits, own in ((8, found["nested"]["8"]), (BITS, found)):
        for side, query, gallery, wanted, has in (
            ("i2t", image.codes, other.text, split.labels, other.text_labels),
            ("t2i", text.codes, other.image, split.labels[split.right.owner], other.image_labels),
        ):
            scores = np.sign(query[:, :bits]) @ np.sign(gallery[:, :bits]).T
            right = wanted @ has.T > 0
            values = [expected_precision(*row) for row in zip(scores, right, strict=True) if row[1].any()]
            assert own["labels"][side]["MAP@ALL"] == pytest.approx(np.mean(values), abs=1e-5)
            shares = right.mean(1)[right.any(1)]
            assert own["labels"][side]["P random"] == pytest.approx(shares.mean())
    assert found["codes"] == tables["codes"] and found["int8"] == tables["int8"]
    assert "mAP@9" in found["labels"]["t2i"] and "P@10" not in found["labels"]["t2i"]


def expected_precision(scores, right):
    """Average precision expected over all orders of equal scores (McSherry and Najork 2008), a tie at a time."""
    total, before, found = 0.0, 0, 0
    for score in sorted(set(scores), reverse=True):
        tied = scores == score
        n, r = int(tied.sum()), int(right[tied].sum())
        for place in range(1, n + 1):
            others = (r - 1) * (place - 1) / (n - 1) if n > 1 else 0.0
            total += r / n * (found + others + 1) / (before + place)
        before, found = before + n, found + r
    return total / right.sum()


def test_without_labels_there_are_no_label_tables(case):
    image, text, split, _ = case
    plain = dataclasses.replace(split, labels=None)
    assert set(code_tables.all_tables(image, text, plain, (BITS,))) == {"codes", "int8", "relaxed"}


def test_means_reach_into_lists_and_leave_out_what_is_missing():
    tables = [{"a": [1, None, None], "b": "x", "c": 2}, {"a": [3, 5.0, None], "b": "x", "c": 4}]
    assert mean_tables(tables) == {"a": [2.0, 5.0, None], "b": "x", "c": 3.0}
    assert mean_tables([{"codes": 1.0, "labels": 2.0}, {"codes": 3.0}]) == {"codes": 2.0, "labels": 2.0}
    assert mean_tables([{"codes": 3.0}, {"codes": 1.0, "labels": {"x": 2.0}}]) == {"codes": 2.0, "labels": {"x": 2.0}}
    assert mean_tables([{"names": ["a"]}, {"names": ["a", "b"]}]) == {"names": ["a"]}


def test_a_head_that_gives_signs_has_nothing_before_them(case):
    image, text, split, tables = case
    signed = [Embedded(side.embed, codes=np.sign(side.codes)) for side in (image, text)]
    found = code_tables.all_tables(*signed, split, (8, BITS))
    assert "relaxed" not in found and "relaxed" not in found["nested"]["8"]
    assert found["codes"]["i2t"] == tables["codes"]["i2t"]


def test_codes_that_are_all_one_are_told(case):
    """One side whose first 8 bits are the same everywhere, the other as trained: that length is named, and no other."""
    image, text, split, tables = case

    def result(found):
        return {"captions": 1, "records": 1, "views": {}, "mean": found | {"itc": tables["codes"]}}

    assert not any("nearly all one code" in line for line in notes(result(tables)))
    same = image.codes.copy()
    same[:, :8] = 1.0
    found = code_tables.all_tables(Embedded(image.embed, codes=same), text, split, (8, BITS))
    assert found["nested"]["8"]["codes"]["alike"] == 1.0 and found["codes"]["alike"] < 0.5
    said = [line for line in notes(result(found)) if "nearly all one code" in line]
    assert len(said) == 1 and said[0].startswith("The codes of 8 bits are")


def test_how_alike_codes_are_does_not_depend_on_how_many_there_are(rng):
    for rows in (2, 20, 2000):
        drawn = [code_tables.alike(rng.normal(size=(rows, 64))) for _ in range(40)]
        assert abs(np.mean(drawn)) < 0.05
    quarter = np.where(np.arange(400) % 4 == 0, 1.0, -1.0)[:, None]  # bits with mean -0.5
    assert code_tables.alike(quarter) == pytest.approx(0.25, abs=0.003)
    assert code_tables.alike(np.ones((3, 8))) == 1.0 and code_tables.alike(np.ones((1, 8))) == 0.0
