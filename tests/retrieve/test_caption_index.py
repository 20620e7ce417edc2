"""An index of captions: a picture asks for words, by cosine, by codes and with the matching head."""

import base64
import io
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from xmodal_jax.cli import main
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import Evaluator, ensure_weight
from xmodal_jax.retrieve import build, query
from xmodal_jax.retrieve.pipeline import SearchPipeline
from xmodal_jax.search import codes, writer
from xmodal_jax.search.index import Index

CAPTIONS = 24


@pytest.fixture(scope="module")
def caption_index(tiny_run, tmp_path_factory):
    """The captions of the test pictures of `tiny_run`, indexed through the command line."""
    out = tmp_path_factory.mktemp("captions") / "index"
    assert main(["index", "--workdir", str(tiny_run[0]), "--field", "text", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def picture(tiny_index, tmp_path_factory):
    """A file of a picture: the thumbnail of the first row."""
    path = tmp_path_factory.mktemp("asked") / "asked.png"
    path.write_bytes(base64.b64decode(Index.open(tiny_index).item(0)["thumbnail"]))
    return path


@pytest.fixture(scope="module")
def split(opened_run):
    """The test split, its first view."""
    data = opened_run[0].config.data
    return eval_split(data.path, "test", opened_run[0].specs, data)


def test_every_caption_is_a_row_with_its_picture(caption_index, opened_run, split):
    opened = Index.open(caption_index)
    assert (
        opened.count == CAPTIONS == len(split.right.words) and opened.extra["field"] == "text" and opened.extra["words"]
    )
    items = [opened.item(row) for row in range(CAPTIONS)]
    assert [item["captions"] for item in items] == [[caption] for caption in split.right.words]
    assert [item["key"] for item in items] == [split.keys[owner] for owner in split.right.owner]
    assert all(Image.open(io.BytesIO(base64.b64decode(item["thumbnail"]))).size for item in items)
    coded = Embedder(*_model(opened_run)).side(split.right, 64)
    np.testing.assert_allclose(opened.vectors(), coded.embed, atol=1e-5)
    np.testing.assert_array_equal(opened.vectors("codes"), codes.pack(coded.codes))


def _model(opened_run):
    return opened_run[0].model, opened_run[1]


@pytest.mark.parametrize("kind", ["dense", "codes"])
def test_a_picture_asks_for_words(caption_index, opened_run, split, picture, kind):
    hits = query.answer(caption_index, image=picture, k=5, stages=SearchPipeline(kind))
    asked = query.encoded_queries(*opened_run, "image", [picture])
    texts = Embedder(*_model(opened_run)).side(split.right, 64)
    if kind == "dense":
        want = np.sort(texts.embed @ asked.embed[0])[::-1][:5]
    else:
        want = np.sort((np.sign(texts.codes) != np.sign(asked.codes)).sum(1))[:5]
    np.testing.assert_allclose([hit.score for hit in hits], want, atol=1e-5)
    assert all(hit.item["captions"] == [split.right.words[hit.row]] for hit in hits)


@pytest.mark.parametrize("given", [SearchPipeline("dense", 0, 8), SearchPipeline("codes", 16, 8)])
def test_the_matching_head_orders_the_best_captions(caption_index, opened_run, split, picture, given):
    """Its score of the picture with each caption, from the tokens of both sides, added to the cosine."""
    assembly, params = opened_run
    hits = query.answer(caption_index, image=picture, k=8, stages=given)
    asked, encode = query.encoded_queries(assembly, params, "image", [picture]), Embedder(assembly.model, params)
    weight, text = ensure_weight(Evaluator(assembly, params), encode, print), encode.side(split.right, 64, True)

    def many(x):
        return jnp.repeat(jnp.asarray(x), CAPTIONS, axis=0)

    pair = (many(asked.tokens), many(asked.embed)), (text.tokens, text.embed, text.mask)
    itm = assembly.model.apply({"params": params}, *pair, method="score")
    want = text.embed @ asked.embed[0] + weight * np.asarray(itm)
    assert [hit.kind for hit in hits] == ["match"] * 8
    np.testing.assert_allclose([hit.score for hit in hits], [want[hit.row] for hit in hits], atol=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_captions_of_records_without_the_first_view_are_rows_too(opened_run, tiny_run, shapes_files, tmp_path):
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    held = [row for row in rows if row["split"] == "test"]
    for row in held[::3]:
        del row["views"]["filled"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["data", "prepare", "jsonl", "--path", tmp_path / "pairs.jsonl", "--root", shapes_files.parent]
    assert main([*map(str, command), "--out", str(tmp_path / "set")]) == 0
    index = ["index", "--workdir", str(tiny_run[0]), "--field", "text", "--codes-only", "--data", str(tmp_path / "set")]
    assert main([*index, "--out", str(tmp_path / "index")]) == 0
    opened = Index.open(tmp_path / "index")
    items = [opened.item(row) for row in range(opened.count)]
    assert opened.count == CAPTIONS and opened.width == 0
    told = {(item["key"], *item["captions"], item["view"]) for item in items}
    assert told == {
        (row["id"], text, "filled" if "filled" in row["views"] else "outline")
        for row in held
        for text in row["caption"]
    }
    encode, tokenizer = Embedder(*_model(opened_run)), opened_run[0].tokenizer
    ids = tokenizer.encode([item["captions"][0] for item in items], opened_run[0].config.encoders["text"].length)
    np.testing.assert_array_equal(opened.vectors("codes"), codes.pack(encode.rows("text", ids).codes))


def test_an_index_replaced_by_one_of_the_other_side_is_not_appended_to(
    caption_index, tiny_index, tiny_run, opened_run, tmp_path, monkeypatch
):
    """While the lock is another's: the check before the work sees pictures, and the rows would go to captions."""
    path = shutil.copytree(tiny_index, tmp_path / "index")
    appending = writer.appending

    def late(*args):
        shutil.rmtree(path)
        shutil.copytree(caption_index, path)
        return appending(*args)

    monkeypatch.setattr(writer, "appending", late)
    with pytest.raises(UserError, match="has captions, and pictures cannot be appended"):
        build.build_index(*opened_run, str(tiny_run[0]), str(path), how=build.IndexOptions(append=True))
    assert Index.open(path).count == CAPTIONS


def test_an_index_that_does_not_say_what_its_rows_are_is_refused(tiny_index, tmp_path):
    opened = Index.open(tiny_index)
    extra = {name: value for name, value in opened.extra.items() if name != "field"}
    items = [opened.item(row) for row in range(opened.count)]
    old = writer.write(tmp_path / "old", opened.vectors(), items, model=opened.model, extra=extra)
    with pytest.raises(UserError, match="does not say what its rows are; index again"):
        query.answer(old, "a red circle", k=2, stages=SearchPipeline("dense", 0, 4))


def test_a_field_of_no_pair_is_refused(tiny_run, tmp_path, capsys):
    assert main(["index", "--workdir", str(tiny_run[0]), "--field", "audio", "--out", str(tmp_path / "index")]) == 2
    assert "field is 'audio', which is in none of config.eval.pairs" in capsys.readouterr().err


def test_words_are_not_matched_with_captions(caption_index):
    with pytest.raises(UserError, match="has captions: ask with a picture"):
        query.answer(caption_index, "a red circle", k=2, stages=SearchPipeline("dense", 0, 4))
    assert len(query.answer(caption_index, "a red circle", k=2)) == 2


def test_rows_of_one_side_are_appended_to_it_alone(caption_index, tiny_index, tiny_run, tmp_path, capsys):
    index = ["index", "--workdir", str(tiny_run[0]), "--append", "--out"]
    copies = [str(shutil.copytree(path, tmp_path / name)) for path, name in ((caption_index, "c"), (tiny_index, "p"))]
    assert main([*index, copies[0]]) == 2
    assert "has captions, and pictures cannot be appended to them; write field 'text'" in capsys.readouterr().err
    assert main([*index, copies[1], "--field", "text"]) == 2
    assert "has pictures, and captions cannot be appended to them; write field 'image'" in capsys.readouterr().err
    assert main([*index, copies[0], "--field", "text", "--split", "train"]) == 0
    assert "indexed 48 captions" in capsys.readouterr().out
    np.testing.assert_array_equal(Index.open(copies[0]).vectors()[:CAPTIONS], Index.open(caption_index).vectors())


def test_a_sheet_shows_the_captions_with_their_pictures(caption_index, picture, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    ask = ["search", "--index", str(caption_index), "--image", str(picture), "-k", "3", "--show", str(sheet)]
    assert main(ask) == 0
    said = capsys.readouterr().out
    assert "caption" in said.splitlines()[0] and said.count("\n1 ") == 1
    with Image.open(sheet) as found:
        assert found.size[0] > 500
