import base64
import shutil

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.encode import inputs
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.retrieve import query
from xmodal_jax.retrieve.pipeline import SearchPipeline
from xmodal_jax.search import writer
from xmodal_jax.search.hits import Hit, Hits
from xmodal_jax.search.index import Index


@pytest.fixture
def query_file(tiny_index, tmp_path):
    """The picture of row 3 of the index as a file (pictures this small are their own thumbnails)."""
    path = tmp_path / "query.png"
    path.write_bytes(base64.b64decode(Index.open(tiny_index).item(3)["thumbnail"]))
    return path


@pytest.mark.parametrize(("kind", "score"), [("dense", 1.0), ("codes", 0.0)])
def test_a_picture_of_the_index_finds_itself(tiny_index, query_file, kind, score):
    hits = query.answer(tiny_index, "", query_file, 5, SearchPipeline(kind))
    assert len(hits) == 5
    assert hits[0].score == pytest.approx(score, abs=1e-5)
    assert 3 in [hit.row for hit in hits if hit.score == pytest.approx(score, abs=1e-5)]


def test_words_are_ranked_by_cosine(tiny_index, opened_run):
    assembly, params = opened_run
    found = eval_split(assembly.config.data.path, "test", assembly.specs, assembly.config.data)
    number = 7
    text = Embedder(assembly.model, params).side(found.right, 64).embed[number]
    hits = query.answer(tiny_index, found.right.words[number], k=24)
    cosines = Index.open(tiny_index).vectors() @ text
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-5)


def test_queries_that_cannot_be_answered_are_refused(tiny_index, tmp_path):
    with pytest.raises(UserError, match="k 0 takes nothing of the 24 pictures of"):
        query.answer(tiny_index, "a red circle", k=0)
    with pytest.raises(UserError, match="knows no word"):
        query.answer(tiny_index, "Ω Ж", k=1)
    with pytest.raises(UserError, match="cannot be opened"):
        query.answer(tiny_index, "", tmp_path / "none.png", 1)
    with pytest.raises(UserError, match="is not an index"):
        query.answer(tmp_path, "a red circle")


def test_words_that_the_model_does_not_know_are_named(tiny_index, caplog):
    query.answer(tiny_index, "a red circle", k=1)
    assert not caplog.records
    query.answer(tiny_index, "Ω red Ж", k=1)
    assert caplog.messages == ["the model's tokenizer does not know Ω, Ж; the rest is searched"]
    with pytest.raises(UserError, match="the query is not UTF-8 text"):
        query.answer(tiny_index, "red \udcff", k=1)


def test_where_and_what_are_checked_before_the_search(tiny_index, tmp_path):
    for where, words in (
        (query.SearchTarget(tiny_index, "fiass"), "backend 'fiass' is not one of jax, numpy, sharded, faiss, milvus"),
        (query.SearchTarget(tiny_index, "jax", "rows.db"), "uri goes with backend 'milvus'"),
        (query.SearchTarget(tiny_index, "milvus"), "which wants one"),
        (query.SearchTarget(tiny_index, token="a:b"), "collection and token go with backend 'milvus'"),
        (query.SearchTarget(tiny_index, collection="a"), "collection and token go with backend 'milvus'"),
    ):
        with pytest.raises(UserError, match=words):
            query.answer(where, "a red circle")
        with pytest.raises(UserError, match=words):
            where.searcher(Index.open(tiny_index))


@pytest.mark.parametrize("backend", ["numpy", "sharded", "faiss", "milvus"])
def test_every_backend_answers_the_same(tiny_index, tmp_path, backend):
    for package in {"faiss": ["faiss"], "milvus": ["pymilvus", "milvus_lite"]}.get(backend, []):
        pytest.importorskip(package)
    uri = str(tmp_path / "rows.db") if backend == "milvus" else ""
    where = query.SearchTarget(tiny_index, backend, uri, collection="mine" if uri else "")
    want, found = (query.answer(one, "a red circle", k=24) for one in (tiny_index, where))
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in want], atol=1e-5)
    assert sorted(hit.row for hit in found) == list(range(24))


def test_a_connection_is_closed_whatever_happens(tiny_index, tmp_path, monkeypatch):
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    closed = []
    close = query.MilvusIndex.close
    monkeypatch.setattr(query.MilvusIndex, "close", lambda own: closed.append(own.count) or close(own))
    where = query.SearchTarget(tiny_index, "milvus", str(tmp_path / "rows.db"))
    query.answer(where, "a red circle", k=1)
    assert closed == [24]
    other = writer.write(tmp_path / "other", np.eye(16), [{}] * 16)
    with pytest.raises(UserError, match="write another collection name"):
        query.SearchTarget(other, "milvus", where.uri).searcher(Index.open(other))
    assert closed == [24, 16]


def test_an_index_of_another_checkpoint_is_refused(tiny_index, tmp_path):
    rows = Index.open(tiny_index)
    extra = rows.extra | {"workdir_from_index": "."}
    path = writer.write(tmp_path / "old", rows.vectors(), [{"key": "x"}] * 24, model="0123", extra=extra)
    with pytest.raises(UserError, match="was made by model 0123, .*was trained on since .* index again"):
        query.answer(path, "a red circle")
    shutil.rmtree(path)
    path = writer.write(path, rows.vectors(), [{"key": "x"}] * 24, model=rows.model, extra=extra)
    with pytest.raises(UserError, match="no hash codes"):
        query.answer(path, "a red circle", stages=SearchPipeline("codes"))
    nameless = writer.write(tmp_path / "nameless", rows.vectors(), [{"key": "x"}] * 24)
    with pytest.raises(UserError, match="names no work directory"):
        query.answer(nameless, "a red circle")


# --- many queries of one opening -------------------------------------------------------------------------------------


def rows_of(hits):
    return [hit.row for hit in hits]


def test_many_queries_are_answered_as_each_alone(tiny_index, query_file):
    asked = ["a red circle", query_file, "the bar is blue", Image.open(query_file), "a green square"]
    with query.Searcher(tiny_index) as searcher:
        found = searcher.search_many(asked, k=5)
        alone = [searcher.search(one, k=5) for one in asked]
        assert len(searcher) == 24 and searcher.search_many([]) == []
    want = [query.answer(tiny_index, "a red circle", k=5), query.answer(tiny_index, image=query_file, k=5)]
    for some, others in ((found, alone), (found[:2], want), (found[1:2], found[3:4])):
        for one, other in zip(some, others, strict=True):
            assert isinstance(one, Hits) and sorted(rows_of(one)) == sorted(rows_of(other))
            np.testing.assert_allclose([hit.score for hit in one], [hit.score for hit in other], atol=1e-5)


def test_index_run_and_backend_are_opened_once(tiny_index, monkeypatch):
    opened, origin = [], query.open_origin
    monkeypatch.setattr(query, "open_origin", lambda *given: (opened.append("open_origin"), origin(*given))[1])
    real_open, real_backend = query.SearchTarget.open, query.SearchTarget.searcher
    monkeypatch.setattr(query.SearchTarget, "open", lambda own: (opened.append("index"), real_open(own))[1])
    monkeypatch.setattr(
        query.SearchTarget, "searcher", lambda own, index: (opened.append("backend"), real_backend(own, index))[1]
    )
    with query.Searcher(query.SearchTarget(tiny_index, "numpy")) as searcher:
        for words in ("a red circle", "a blue bar"):
            searcher.search(words, k=1)
        searcher.search_many(["a red circle"] * 3, k=1, stages=SearchPipeline("codes"))
    assert opened == ["index", "open_origin", "backend"]


def test_queries_are_encoded_in_blocks_of_one_shape(opened_run, monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK", 4)
    shapes = []
    real = Embedder.rows
    monkeypatch.setattr(
        Embedder, "rows", lambda own, side, rows, *more: shapes.append(rows.shape) or real(own, side, rows, *more)
    )
    asked = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("bar", "circle", "square")]
    coded = query.encoded_queries(*opened_run, "text", asked)
    assert len(set(shapes)) == 1 and len(shapes) == 3 and shapes[0][0] == 4
    assert len(coded.embed) == len(coded.codes) == len(coded.tokens) == 9
    one = query.encoded_queries(*opened_run, "text", asked[8:], keep_tokens=False)
    np.testing.assert_allclose(one.embed[0], coded.embed[8], atol=1e-5)
    assert one.tokens is None


@pytest.mark.parametrize(
    "stages", [SearchPipeline("codes", 12, 6), SearchPipeline("codes", 0, 6), SearchPipeline("codes", 12)]
)
def test_stages_rank_many_queries_as_one(tiny_index, stages):
    asked = ["a red circle", "the bar is blue", "a green square"]
    with query.Searcher(tiny_index) as searcher:
        for words, hits in zip(asked, searcher.search_many(asked, 4, stages), strict=True):
            alone = searcher.search(words, 4, stages)
            assert [hit.kind for hit in hits] == ["match" if stages.rerank else "dense"] * 4
            np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "array", "grey"])
def test_a_picture_in_memory_is_read_as_its_file(tiny_index, query_file, mode):
    picture = Image.open(query_file).convert("RGB")
    if mode in ("array", "grey"):
        picture = np.asarray(picture if mode == "array" else picture.convert("L"))
    else:
        picture = picture.convert(mode)
    with query.Searcher(tiny_index) as searcher:
        found = searcher.search(picture, k=24)
        if mode not in ("grey", "CMYK"):
            want = searcher.search(query_file, k=24)
            np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in want], atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((4, 4, 3)), r"a picture is an array float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 5), np.uint8), r"a picture is an array uint8 \[4, 4, 5\]"),
        (np.zeros(4, np.uint8), "write uint8"),
        (7, "takes paths of files, Pillow pictures and arrays, and one input is int"),
        ("giraffe zebra", "knows no word of 'giraffe zebra'"),
    ],
)
def test_queries_that_are_none_are_refused(tiny_index, bad, words):
    with query.Searcher(tiny_index) as searcher, pytest.raises(UserError, match=words):
        searcher.search_many(["a red circle", bad], k=1)


def test_a_searcher_tells_where_and_how_many(tiny_index):
    with query.Searcher(tiny_index) as searcher:
        assert repr(searcher) == f"Searcher('{tiny_index}', {len(searcher)} pictures)"


def test_a_list_and_the_name_of_a_file_are_no_words(tiny_index, query_file):
    with query.Searcher(tiny_index) as searcher:
        with pytest.raises(UserError, match="takes one query, and this is a list of 2; call search_many"):
            searcher.search(["a red circle", "a blue square"])
        with pytest.raises(UserError, match="taken as words and names a file; for the picture write a pathlib.Path"):
            searcher.search(str(query_file))
        assert len(searcher.search("a red circle.png", k=2)) == 2  # words, if there is no such file
        with pytest.raises(UserError, match="takes a list of queries, and this is one str; call search"):
            searcher.search_many("a red circle")
        with pytest.raises(UserError, match="k is 2.5; write a whole number"):
            searcher.search("a red circle", k=2.5)


def test_hits_are_cards_in_a_notebook(tiny_index):
    hits = hits_of(tiny_index, ["a <b>cat</b>", 'a "dog"'])
    hits[1].item["thumbnail"] = "no base64!"
    shown = Hits(hits)._repr_html_()
    assert shown.count("<figure") == 2 and shown.count('src="data:image/png;base64,') == 1
    assert "a &lt;b&gt;cat&lt;/b&gt;" in shown and "<b>cat" not in shown and "a &quot;dog&quot;" in shown
    assert "<b>0.500</b> k0" in hits[0]._repr_html_()
    assert isinstance(Hits(hits)[:1], Hits) and Hits(hits)[1] is hits[1]
    assert Hit(3, 12.0, {}, "codes")._repr_html_().count("12 bits") == 1 and Hits()._repr_html_()
    odd = Hit(0, 0.5, {"key": "<i>", "captions": ["x"], "thumbnail": "PHNjcmlwdD4="})._repr_html_()
    assert "<img" not in odd and "&lt;i&gt;" in odd
    assert isinstance(query.answer(tiny_index, "a red circle", k=2), Hits)


def hits_of(tiny_index, captions, kind="dense"):
    thumbnail = Index.open(tiny_index).item(0)["thumbnail"]
    items = [
        {"key": f"k{i}", "view": "v", "captions": [text], "thumbnail": thumbnail} for i, text in enumerate(captions)
    ]
    return [Hit(i, 0.5, item, kind) for i, item in enumerate(items)]


def test_the_table_names_rank_score_key_and_caption(tiny_index):
    lines = query.as_table(hits_of(tiny_index, ["a cat", "a dog"])).splitlines()
    assert lines[0].split() == ["rank", "cosine", "key", "view", "caption"]
    assert lines[3].split() == ["2", "0.500", "k1", "v", "a", "dog"]
    assert "distance" in query.as_table(hits_of(tiny_index, ["a cat"], "codes"))


def test_hits_without_items_have_a_table_and_no_sheet(tmp_path):
    hits = [Hit(0, 0.5, {}), Hit(1, 0.25, {"key": 7, "view": "v", "captions": []})]
    lines = query.as_table(hits).splitlines()
    assert [line.split() for line in lines[2:]] == [["1", "0.500"], ["2", "0.250", "7", "v"]]
    with pytest.raises(UserError, match="no thumbnails .* leave out --show"):
        query.contact_sheet(hits, tmp_path / "sheet.png", "red")


def test_a_contact_sheet_grows_with_its_captions(tiny_index, query_file, tmp_path):
    short = query.contact_sheet(hits_of(tiny_index, ["a cat"] * 7), tmp_path / "new" / "short.png", "a cat")
    long = query.contact_sheet(
        hits_of(tiny_index, ["many words " * 30] * 7), tmp_path / "long.png", "a cat", query_file
    )
    sheets = [np.asarray(Image.open(path)) for path in (short, long)]
    assert sheets[0].shape[1] == sheets[1].shape[1] == 5 * query.TILE + 4 * 12 + 2 * 24
    assert sheets[0].shape[0] + 128 - 40 < sheets[1].shape[0] < 1000  # three lines at most, and the query's picture
    for sheet in sheets:
        assert (sheet[:20] == 255).all() and (sheet[:, -20:] == 255).all()
        assert (sheet[-200:, -300:] == 255).all()  # the second row has two pictures only
    with pytest.raises(UserError, match="ends in .png"):
        query.contact_sheet(hits_of(tiny_index, ["a cat"]), tmp_path / "sheet.words", "a cat")


def test_a_sheet_has_an_empty_frame_where_a_thumbnail_cannot_be_read(tiny_index, tmp_path):
    hits = hits_of(tiny_index, ["a cat"] * 4)
    damaged = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
    for hit, bad in zip(hits[1:], (damaged, "no base64!", None), strict=True):
        hit.item["thumbnail"] = bad
    with Image.open(query.contact_sheet(hits, tmp_path / "sheet.png", "a cat")) as sheet:
        assert sheet.width == 4 * query.TILE + 3 * 12 + 2 * 24
    empty = query.thumbnail(hits[1].item)
    assert empty.size == query.thumbnail(hits[0].item).size
    for hit in hits[2:]:
        assert query.thumbnail(hit.item).tobytes() == empty.tobytes() != query.thumbnail(hits[0].item).tobytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hits.xyz", "does not end as a picture"),
        ("hits", "does not end as a picture"),
        ("folder.png", "is a folder"),
        ("file/hits.png", "because of '.*file'"),
        ("no/file/hits.png", ""),
    ],
)
def test_where_a_sheet_cannot_go_is_told_before_the_search(tmp_path, name, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    if not words:
        query.refuse_unshowable(tmp_path / name)
        assert not (tmp_path / "no").exists()
        return
    with pytest.raises(UserError, match=words):
        query.refuse_unshowable(tmp_path / name)
