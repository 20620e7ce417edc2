import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import Evaluator, ensure_weight
from xmodal_jax.retrieve import pipeline, query
from xmodal_jax.retrieve.pipeline import SearchPipeline
from xmodal_jax.search import codes, writer
from xmodal_jax.search.index import Index

WORDS = "a red circle"


def test_a_shortlist_is_the_cosines_of_the_nearest_codes(tmp_path, rng):
    rows, bits = rng.normal(size=(50, 6)), rng.normal(size=(50, 8))
    opened = Index.open(writer.write(tmp_path / "index", rows, None, bits, block_rows=16))
    asked = rng.normal(size=(3, 6)), rng.normal(size=(3, 8))
    cosine, found = pipeline.shortlisted(opened, opened, asked[1], asked[0], 20, 5)
    every = asked[0] @ rows.T / np.linalg.norm(asked[0], axis=1)[:, None] / np.linalg.norm(rows, axis=1)[None]
    distance = (codes.unpack(codes.pack(asked[1]))[:, None] != codes.unpack(codes.pack(bits))[None]).sum(2)
    for i in range(3):
        near = np.argsort(distance[i], kind="stable")[:20]
        want = near[np.argsort(-every[i][near])[:5]]
        np.testing.assert_array_equal(found[i], want)
        np.testing.assert_allclose(cosine[i], every[i][want], atol=1e-6)
    whole = pipeline.shortlisted(opened, opened, asked[1], asked[0], 50, 5)
    np.testing.assert_array_equal(whole[1], opened.nearest(asked[0], 5)[1])


@pytest.mark.parametrize(
    ("given", "k", "words"),
    [
        (SearchPipeline("dense", 8), 3, "write kind 'codes'"),
        (SearchPipeline("codes", 8, 4), 5, "k 5 is more than rerank 4 leaves"),
        (SearchPipeline("codes", 8, 9), 5, "rerank 9 is more than shortlist 8 leaves"),
        (SearchPipeline("codes", 4), 5, "k 5 is more than shortlist 4 leaves"),
        (SearchPipeline("codes", 8), 25, "k 25 is more than shortlist 8 leaves"),
        (SearchPipeline("dense", 0, -1), 5, "rerank -1 takes nothing"),
        (SearchPipeline("dense"), 0, "k 0 takes nothing of the 24 rows"),
    ],
)
def test_stages_that_do_not_follow_each_other_are_refused(given, k, words):
    with pytest.raises(UserError, match=words):
        given.fitted(k, 24)
    assert SearchPipeline("codes", 24, 8).fitted(8, 24) == (SearchPipeline("codes", 24, 8), 8)


@pytest.mark.parametrize(
    ("given", "k", "want", "said"),
    [
        (SearchPipeline("dense"), 99, (SearchPipeline("dense"), 24), ["k 99"]),
        (SearchPipeline("codes", 40), 5, (SearchPipeline("codes", 24), 5), ["shortlist 40"]),
        (
            SearchPipeline("codes", 40, 30),
            25,
            (SearchPipeline("codes", 24, 24), 24),
            ["k 25", "rerank 30", "shortlist 40"],
        ),
        (SearchPipeline("codes", 24, 30), 5, (SearchPipeline("codes", 24, 24), 5), ["rerank 30"]),
    ],
)
def test_what_is_more_than_there_is_takes_all_and_says_so(given, k, want, said, caplog):
    assert given.fitted(k, 24, "pictures of x") == want
    assert caplog.messages == [f"{one} is more than the 24 pictures of x: all are taken" for one in said]


@pytest.mark.parametrize(
    ("given", "count", "want"),
    [
        (SearchPipeline("dense"), 24, 10),
        (SearchPipeline("dense"), 7, 7),
        (SearchPipeline("codes", 16, 4), 24, 4),
        (SearchPipeline("codes", 5), 24, 5),
    ],
)
def test_who_does_not_say_how_many_gets_ten_or_what_there_is_without_a_word(given, count, want, caplog):
    assert given.fitted(None, count)[1] == want
    assert not caplog.messages
    assert given.fitted(None, 0)[1] == 0


@pytest.mark.parametrize(
    "given", [SearchPipeline("codes", 16, 8), SearchPipeline("dense", 0, 8), SearchPipeline("codes", 0, 8)]
)
def test_the_matching_head_orders_the_best(tiny_index, opened_run, given):
    """Its score of each picture with the words, from the tokens of both sides, added to the cosine."""
    assembly, params = opened_run
    hits = query.answer(tiny_index, WORDS, k=8, stages=given)
    text = query.encoded_queries(assembly, params, "text", [WORDS])
    encode = Embedder(assembly.model, params)
    weight = ensure_weight(Evaluator(assembly, params), encode, print)
    opened = Index.open(tiny_index)
    first = SearchPipeline(given.kind, given.shortlist)
    before = query.answer(tiny_index, WORDS, k=8, stages=first)
    assert {hit.row for hit in hits} == {hit.row for hit in before}
    want = {}
    for view in ("filled", "outline"):
        split = eval_split(assembly.config.data.path, "test", assembly.specs, assembly.config.data, view)
        image = encode.side(split.left, 64, keep_tokens=True)

        def many(x):
            return jnp.repeat(jnp.asarray(x), 12, axis=0)

        pair = (image.tokens, image.embed), (many(text.tokens), many(text.embed), many(text.mask))
        itm = assembly.model.apply({"params": params}, *pair, method="score")
        for number, key in enumerate(split.keys):
            want[key, view] = float(image.embed[number] @ text.embed[0] + weight * itm[number])
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.kind == "match"
        assert hit.score == pytest.approx(want[hit.item["key"], hit.item["view"]], abs=1e-4)
        assert opened.item(hit.row)["key"] == hit.item["key"]


def test_pictures_that_are_gone_are_not_matched(tiny_index, tiny_run, tmp_path):
    opened = Index.open(tiny_index)
    items = [opened.item(row) for row in range(24)]
    given = {"model": opened.model, "extra": opened.extra}

    def answer(name, items, **changed):
        path = writer.write(tmp_path / name, opened.vectors(), items, **{**given, **changed})
        return query.answer(path, WORDS, k=2, stages=SearchPipeline("dense", 0, 24))

    with pytest.raises(UserError, match="does not say where its records are"):
        answer("old", [{k: v for k, v in item.items() if k != "row"} for item in items])
    with pytest.raises(UserError, match="no longer has 'unknown' in row"):
        answer("other", [item | {"key": "unknown"} for item in items])
    with pytest.raises(UserError, match="gone' holds no data set: write the folder where"):
        answer("moved", items, extra=opened.extra | {"data": str(tmp_path / "gone")})
    moved = writer.write(
        tmp_path / "set",
        opened.vectors(),
        items,
        model=opened.model,
        extra=opened.extra | {"data": str(tmp_path / "gone"), "sets": {}},
    )
    found = query.answer(query.SearchTarget(moved, data=tiny_run[1]), WORDS, k=2, stages=SearchPipeline("dense", 0, 24))
    whole = query.answer(tiny_index, WORDS, k=2, stages=SearchPipeline("dense", 0, 24))
    assert [(hit.row, hit.item) for hit in found] == [(hit.row, hit.item) for hit in whole]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in whole], abs=1e-6)
    with pytest.raises(UserError, match="ask with words"):
        query.answer(tiny_index, "", "x.png", 2, SearchPipeline("dense", 0, 4))


# --- the command line: one sentence, exit code 2 --------------------------------------------------------------------


def torn(path, name="dense-00000.npy"):
    (path / name).write_bytes((path / name).read_bytes()[:-9])


def two_blocks(tiny_index, tmp_path):
    """The tiny index in blocks of 16 rows."""
    opened = Index.open(tiny_index)
    items = [opened.item(row) for row in range(24)]
    bits = codes.unpack(opened.vectors("codes"))
    return writer.write(tmp_path / "blocks", opened.vectors(), items, bits, opened.model, 16, extra=opened.extra)


def test_search_prints_each_stage_and_the_usable_rows(tiny_index, tmp_path, capsys, caplog):
    ask = ["search", WORDS, "-k", "2", "--index"]
    assert main([*ask, str(tiny_index), "--kind", "codes", "--shortlist", "8", "--rerank", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[1] == "match"
    assert main([*ask, str(tiny_index), "--kind", "codes", "--shortlist", "8", "--backend", "numpy"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[1] == "cosine"
    path = two_blocks(tiny_index, tmp_path)
    torn(path, "codes-00001.npy")
    assert main([*ask, str(path), "--prefix"]) == 0
    assert "searching the first 16 of 24 rows" in caplog.text and "codes-00001.npy is torn" in caplog.text


def damaged(tiny_index, tmp_path, change):
    path = shutil.copytree(tiny_index, tmp_path / "index")
    change(path)
    return path


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (torn, [], "dense-00000.npy is torn or was changed"),
        (lambda path: torn(path, "items-00000.jsonl"), [], "items-00000.jsonl is torn or was changed"),
        (lambda path: torn(path), ["--prefix"], "dense-00000.npy is torn"),
        (lambda path: (path / "codes-00000.npy").unlink(), [], "codes-00000.npy is missing"),
        (lambda path: torn(path, writer.HEADER), [], "index.json is damaged"),
        (lambda path: (path / writer.HEADER).write_text('{"version": 1}'), [], "index.json is damaged"),
        (shutil.rmtree, [], "is not an index"),
        (lambda path: None, ["-k", "-1"], "k -1 takes nothing of the 24 pictures"),
        (lambda path: None, ["--show", "hits.xyz"], "'hits.xyz' does not end as a picture"),
        (lambda path: None, ["--shortlist", "12"], "write kind 'codes'"),
        (lambda path: None, ["--rerank", "4", "-k", "10"], "k 10 is more than rerank 4"),
        (lambda path: None, ["--backend", "milvus"], "uri goes with backend 'milvus'"),
        (lambda path: None, ["--uri", "rows.db"], "uri goes with backend 'milvus'"),
    ],
)
def test_bad_searches_end_with_one_sentence(tiny_index, tmp_path, capsys, change, arguments, words):
    path = damaged(tiny_index, tmp_path, change)
    assert main(["search", WORDS, "--index", str(path), *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("xmodal: ") and words in said[0]


def test_bad_appends_end_with_one_sentence(tiny_run, tiny_index, tmp_path, capsys):
    opened = Index.open(tiny_index)
    other = writer.write(tmp_path / "other", np.ones((2, 5)), [{}, {}], model=opened.model, extra=opened.extra)
    foreign = writer.write(tmp_path / "foreign", opened.vectors(), [{}] * 24, model="0123")
    for path, words in (
        (tmp_path / "none", "is not an index"),
        (other, "are 5 wide and the new ones 16"),
        (foreign, "made by model 0123"),
    ):
        assert main(["index", "--workdir", str(tiny_run[0]), "--out", str(path), "--append"]) == 2
        assert words in capsys.readouterr().err
