import json

import numpy as np
import pytest

from xmodal_jax.data.split import split_captions
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.eval import tables
from xmodal_jax.eval.retrieval import Places, recall_of_places, summary


def summary_of(*ranks):
    side = recall_of_places(Places(np.array(ranks) - 1, *np.ones((2, len(ranks)), int)))
    return summary(side, side)


def result_of(views=("a", "b"), combine="add"):
    view = {
        "itc": summary_of(1, 2, 20),
        "rerank": {k: {**summary_of(1, 1, 20), "seconds": 0.25, "pairs": 6} for k in ("16", "4")},
        "codes": {**summary_of(3, 3, 3), "bits": 64.0},
        "labels": {side: {"MAP@ALL": 0.5, "MAP@ALL random": 0.125} for side in ("i2t", "t2i")},
    }
    result = {"split": "test", "records": 3, "captions": 3, "rerank_score": combine, "weight": 0.07}
    result |= {"views": {name: view for name in views}, "mean": view}
    return result | ({"ensemble": summary_of(1, 1, 1)} if len(views) > 1 else {})


def test_rows_are_views_then_their_mean_then_the_ensemble():
    rows = tables.retrieval_rows(result_of())
    assert [row.view for row in rows] == ["a"] * 4 + ["b"] * 4 + ["mean of the views"] * 4 + ["views averaged"]
    assert [row.name for row in rows[:4]] == [
        "embeddings",
        "ITM re-ranks the best 4",
        "ITM re-ranks the best 16",
        "64-bit codes (Hamming)",
    ]
    assert [row.view for row in tables.retrieval_rows(result_of(("image",)))] == ["image"] * 4


def test_numbers_stand_under_their_heads():
    head, _, first, *_ = str(tables.retrieval_grid(result_of())).splitlines()
    assert head.split()[:2] == ["pictures", "ranked"]
    end = head.index("t2i R@5") + len("t2i R@5")
    assert first[:end].endswith(" 66.7")  # two of three ranks are within 5
    start = head.index("rSum") - 3
    assert first[start : head.index("rSum") + 4].strip() == f"{2 * (100 / 3 + 200 / 3 + 200 / 3):.1f}"


def test_every_line_of_a_table_has_its_columns_in_the_same_place():
    grid = tables.Grid(["name", "how", "x"], [["a", "long words", "1"], ["bbbbbb", "b", "1000"]])
    assert str(grid).splitlines() == [
        "name    how            x",
        "------------------------",
        "a       long words     1",
        "bbbbbb  b           1000",
    ]


def test_map_has_the_value_of_random_codes_beside_it():
    grid = tables.label_grid(result_of(("image",)))
    assert grid.head[2:] == ["MAP@ALL", "MAP@ALL random"]
    assert grid.rows == [["image", "image to text", "0.500", "0.125"], ["image", "text to image", "0.500", "0.125"]]
    without = result_of()
    for found in (*without["views"].values(), without["mean"]):
        found.pop("labels", None)
    assert tables.label_grid(without) is None


def test_codes_stand_between_the_embeddings_and_chance():
    result = result_of(("image",))
    assert tables.codes_grid(result) is None  # made before bytes were counted
    side = {"R@1": 0.5, "R@5": 2.5, "R@10": 5.0}
    view = result["mean"]
    whole = view["codes"] | {"bytes": 8.0, "float_bytes": 1024.0, "chance": {"i2t": side, "t2i": side}}
    short = {"codes": whole | {"bits": 16.0, "bytes": 2.0}, "labels": view["labels"]}
    view["int8"] = view["relaxed"] = view["itc"]
    view |= {"codes": whole, "nested": {"16": short, "8": {**short, "codes": short["codes"] | {"bytes": 1.0}}}}
    grid = tables.codes_grid(result)
    assert [row[1:3] for row in grid.rows] == [
        ["float32 embedding", "1024"],
        ["int8 embedding", "256"],
        ["64 numbers, before their signs are taken", "256"],
        ["64-bit code", "8"],
        ["16-bit code", "2"],
        ["8-bit code", "1"],
        ["nothing (a random order)", "0"],
    ]
    assert grid.rows[-1][3:6] == ["0.5", "2.5", "5.0"] and str(grid) in tables.as_text(result)
    assert [row[1] for row in tables.label_grid(result).rows[::2]] == [
        "image to text",
        "image to text, 16 bits",
        "image to text, 8 bits",
    ]


@pytest.mark.parametrize(
    ("combine", "words"),
    [
        ("add", "cosine + 0.07 x ITM log-odds l1 - l0 (add; BLIP adds l1, the logit of a match, with weight 1)"),
        ("replace", "the ITM log-odds l1 - l0 alone order the shortlist (replace; ALBEF orders by l1,"),
    ],
)
def test_the_text_says_the_tie_rule_and_how_scores_combine(combine, words):
    text = tables.as_text(result_of(combine=combine) | {"step": 5})
    assert words in text and "expectation of a hit over random orders of tied items" in text and "step 5" in text


def test_a_view_of_few_pictures_has_no_recall_at_more():
    """R@10 is among the columns where any view has it; the other view's cells are empty."""
    result = json.loads(json.dumps(result_of()))
    for table in ("itc", "codes"):
        for side in ("i2t", "t2i"):
            del result["views"]["b"][table][side]["R@10"]
    cells = {(row[0], row[1]): row[2:8] for row in tables.retrieval_grid(result).rows}
    assert cells["b", "embeddings"] == ["33.3", "66.7", "", "33.3", "66.7", ""]
    assert cells["a", "embeddings"] == ["33.3", "66.7", "66.7"] * 2


def test_the_text_says_how_many_captions_are_cut():
    found = {"share": 12.5, "length": 16, "enough": 20, "longest": 31, "encoder": "text"}
    said = "12.5 % of the captions lose their end: config.encoders.text.length is 16 tokens; 20 would keep 99 %"
    assert said in tables.as_text(result_of() | {"cut": found})
    assert "lose their end" not in tables.as_text(result_of() | {"cut": found | {"share": 0.0}})


def test_a_real_result_reads_the_same_from_its_file(tiny_run):
    result = json.loads((tiny_run[0] / "eval-test.json").read_text())
    lengths = load_tokenizer(str(tiny_run[0] / "tokenizer-text.json")).lengths(split_captions(tiny_run[1], "test"))
    longest = int(max(lengths))
    assert longest <= 12 and result["cut"] == {
        "share": 0,
        "length": 12,
        "enough": longest,
        "longest": longest,
        "encoder": "text",
    }
    text = tables.as_text(result)
    assert "12 records, 24 captions" in text and "16-bit codes" in text and "MAP@ALL random" in text
    assert text.count("ITM re-ranks the best 8") == 3  # two views and their mean
    assert max(len(line) for line in text.splitlines()) < 160


def test_a_set_that_re_ranking_makes_worse_is_told():
    result = result_of()
    assert tables.worse_reranked(result) == []
    for row in result["mean"]["rerank"].values():
        row["rSum"] = result["mean"]["itc"]["rSum"] - 5.0
    (said,) = tables.worse_reranked(result)
    assert "Re-ranking makes this set worse" in said and said in tables.notes(result)
