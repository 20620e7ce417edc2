"""MLA end to end: a trained English model learns German, then French by one command, and nothing else changes."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import xmodal_jax as xmodal
from xmodal_jax.cli import main
from xmodal_jax.retrieve.query import answer

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
CONFIGS = f"{FOLDER}/m_clip.py:tiny", f"{FOLDER}/mla.py:tiny"
NAMES = {
    "de": {"red": "rot", "green": "grün", "blue": "blau", "circle": "Kreis", "square": "Quadrat"},
    "fr": {"red": "rouge", "green": "vert", "blue": "bleu", "circle": "cercle", "square": "carré"},
}
OTHERS = "^(image|english)/|^text/head/|^text/tower/(layers/|embed/(word|position|type|norm))|temperature"
TOWER = (
    "text/tower/layers",
    "text/tower/embed/position",
    "text/tower/embed/type",
    "text/tower/embed/norm",
    "text/head",
)
PATHS = tuple((path, path.replace("text/", "english/", 1)) for path in TOWER)
TOWER_SIZES = {"width": 32, "layers": 2, "heads": 2, "hidden": 64}
ENCODERS = {  # those of the tiny config without that of other languages
    "image": {"kind": "vit", "size": 16, "patch": 8, **TOWER_SIZES},
    "english": {"kind": "bert", "length": 12, "positions": 16, **TOWER_SIZES},
}
SMALL = ("batch_size=8", "log_every=2", "encoders.image.size=16", "eval.rerank=()", "eval.views=()")


def translated(text, language):
    """The English caption word by word; words without a translation stay."""
    return " ".join(NAMES[language].get(word, word) for word in text.split())


@pytest.fixture(scope="module")
def folder(shapes_files, tmp_path_factory):
    """The shapes with their captions in three languages."""
    place = tmp_path_factory.mktemp("shapes")
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    for row in rows:
        own = row["caption"]
        row["caption"] = {"en": own} | {code: [translated(text, code) for text in own] for code in NAMES}
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = place / "set"
    command = ["data", "prepare", "jsonl", "--path", str(place / "pairs.jsonl"), "--root", str(shapes_files.parent)]
    assert main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """The work directories of English, of German, and of French added to it."""
    place = tmp_path_factory.mktemp("runs")

    def train(name, config, *overrides):
        given = [f"--config.{item}" for item in (f"data.path={folder}", *SMALL, *overrides)]
        assert main(["train", "--config", config, "--workdir", str(place / name), *given]) == 0
        return place / name

    itc = "{'kind': 'itc', 'pair': ('image', 'english'), 'queue': 0, 'alpha': 0.0}"
    transfer = "objectives={'transfer': {'pair': ('english', 'text')}}"
    alone = (
        "data.fields={'image': {}, 'english': {'medium': 'text', 'languages': ('en',)}}",
        "fusion.pair=('image','english')",
    )
    pairs = ("eval.pairs=(('image','english'),)", f"objectives={{'english_itc': {itc}}}")
    english = train("english", CONFIGS[0], "steps=6", *alone, *pairs, f"encoders={ENCODERS}")
    words = str(english / "tokenizer-english.json")
    mla = (CONFIGS[1], transfer, f"encoders.text.tokenizer={words}", "optimizer.weight_decay=0.0", "steps=4")
    german = train(
        *("german", *mla, f"init={english}", f"init_paths={PATHS}", "data.languages=('de',)"),
        f"optimizer.freeze={OTHERS.replace('word|', '')}",
        "eval.languages=('de',)",
    )
    french = train(
        *("french", *mla, f"init={german}", "data.languages=('fr',)", "eval.languages=('de','fr')"),
        f"optimizer.freeze={OTHERS}|embed/project",
    )
    return english, german, french


@pytest.fixture(scope="module")
def opened(runs):
    return [xmodal.load(run) for run in runs]


def leaves(run):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(run.params, sep="/").items()}


def test_the_blocks_are_those_of_english_and_stay_so(opened):
    english, german, _ = map(leaves, opened)
    for path, leaf in german.items():
        if path.startswith(("english/", "image/")):
            assert np.array_equal(leaf, english[path]), path
        if path.startswith(TOWER):
            assert np.array_equal(leaf, english[path.replace("text/", "english/", 1)]), path
    assert np.abs(german["text/tower/acquirers/up/kernel"]).max() > 0, "it learned"


def test_adding_a_language_touches_its_acquirers_and_nothing_else(opened):
    assert [run.config.encoders["text"].languages for run in opened[1:]] == [("de",), ("de", "fr")]
    german, french = map(leaves, opened[1:])
    assert german.keys() == french.keys()
    for path, leaf in german.items():
        if "/acquirers/" in path:
            assert np.array_equal(french[path][:1], leaf) and len(french[path]) == 2
        else:
            assert np.array_equal(french[path], leaf), path
    assert np.abs(french["text/tower/acquirers/up/kernel"][1]).max() > 0, "French learned"


def test_outputs_in_the_other_languages_are_the_same_bit_for_bit(opened):
    english, german, french = opened
    assert np.array_equal(*(run.encode("english", ["a red circle"]) for run in (english, french)))
    texts = ["a rot Kreis", "the Quadrat is blau"]
    assert np.array_equal(*(run.encode_texts(texts, language="de") for run in (german, french)))
    own, other = (french.encode_texts(texts, language=code) for code in ("de", "fr"))
    assert not np.array_equal(own, other), "a language reads with its own acquirers"
    assert np.array_equal(
        french.encode_texts(["a red circle"], language="en"), english.encode("english", ["a red circle"])
    )
    with pytest.raises(xmodal.UserError, match="the run knows captions in .*, not in 'ja'; write one of these"):
        french.encode_texts(texts, language="ja")
    only = dataclasses.replace(french.config, eval=dataclasses.replace(french.config.eval, languages=("fr",)))
    assert "de" in only.languages_of("text"), "it has acquirers of German"


def test_evaluation_and_search_take_each_language(runs, opened, tmp_path, capsys):
    tables = opened[2].evaluate("test", keep=False)
    assert {"de", "fr"} == set(tables["views"]["filled"]["languages"])
    assert set(tables["pairs"]) == {"image-english", "english-text"}
    out = tmp_path / "index"
    assert main(["index", "--workdir", str(runs[2]), "--split", "test", "--out", str(out)]) == 0
    scores = {}
    for language in ("de", "fr"):
        hit = answer(out, "a rot Kreis", k=1, language=language)[0]
        rows = opened[2].encode_texts(["a rot Kreis"], language=language)
        scores[language] = hit.score
        assert rows.shape[0] == 1 and -1 <= hit.score <= 1
    assert scores["de"] != scores["fr"]
    capsys.readouterr()
    assert main(["search", "--index", str(out), "a rot Kreis", "--language", "fr", "-k", "1"]) == 0
    assert f"{scores['fr']:.3f}" in capsys.readouterr().out
    assert main(["search", "--index", str(out), "a rot Kreis", "--language", "tlh"]) == 2
    assert "not in 'tlh'; write one of these" in capsys.readouterr().err


def test_a_plan_counts_the_languages_of_the_run_that_it_begins_with(runs, folder, tmp_path, capsys):
    given = [f"--config.{item}" for item in (f"data.path={folder}", *SMALL, "data.languages=('fr',)")]
    given.append(f"--config.encoders.text.tokenizer={runs[0] / 'tokenizer-english.json'}")
    for start, languages in ((runs[1], 2), (tmp_path / "none", 1)):
        plan = ["plan", "--config", CONFIGS[1], "--explain", *given, f"--config.init={start}"]
        assert main(plan) == 0
        found = [line for line in capsys.readouterr().out.splitlines() if "acquirers/up/bias" in line]
        assert found and all(f"({languages}, 2, 32)" in line for line in found), found


def test_what_would_be_ignored_is_refused(runs, folder, tmp_path, capsys):
    given = [f"--config.{item}" for item in (f"data.path={folder}", *SMALL, "steps=6", "data.languages=('de','fr')")]
    words = f"--config.encoders.text.tokenizer={runs[0] / 'tokenizer-english.json'}"
    assert main(["train", "--config", CONFIGS[1], "--workdir", str(runs[1]), *given, words]) == 2
    assert "has captions in 'fr', and config.encoders.text acquirers of de" in capsys.readouterr().err
    other = ["--config.init_paths=(('txet/','english/'),)", f"--config.init={runs[0]}"]
    assert main(["train", "--config", CONFIGS[1], "--workdir", str(tmp_path / "run"), *given, *other]) == 2
    assert "config.init_paths has 'txet/', which no parameter begins with" in capsys.readouterr().err
    assert main(["train", "--config", CONFIGS[1], "--workdir", str(tmp_path / "run"), *given, other[0]]) == 2
    assert "config.init_paths is set, and config.init is ''" in capsys.readouterr().err


def test_pictures_of_a_set_without_the_languages_are_indexed(runs, shapes_files, tmp_path):
    """Fields of captions in languages that the set lacks do not keep its pictures out."""
    rows = [json.loads(line) for line in shapes_files.read_text().splitlines()]
    rows = [row | {"caption": {"it": row["caption"]}} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["data", "prepare", "jsonl", "--path", str(tmp_path / "pairs.jsonl"), "--root", str(shapes_files.parent)]
    assert main([*command, "--out", str(tmp_path / "set")]) == 0
    index = ["index", "--workdir", str(runs[2]), "--data", str(tmp_path / "set"), "--split", "test"]
    assert main([*index, "--out", str(tmp_path / "index")]) == 0


def test_a_table_of_runs_counts_what_a_language_adds(runs, opened, tmp_path, monkeypatch, capsys):
    """benchmarks/languages_table.py, of the run of two languages: one layer's acquirer has 32 x 8 weights twice."""
    monkeypatch.syspath_prepend(str(FOLDER.parent / "benchmarks"))
    import languages_table

    own = opened[2].evaluate("test")["mean"]["languages"]
    languages_table.main([f"MLA={runs[2]}", f"MLA={runs[2]}", f"again={runs[2]}", "--out", str(tmp_path / "table")])
    (found, _), (again,) = json.loads((tmp_path / "table.json").read_text()).values()
    recall = {code: [table["itc"][side]["R@1"] for side in ("i2t", "t2i")] for code, table in own.items()}
    assert found == again and found["R@1"] == {code: pytest.approx(np.mean(recall[code]), abs=0.01) for code in own}
    assert (found["a language"], found["trained"]) == (2 * (32 * 8 * 2 + 8 + 32), 2 * found["a language"])
    shown = capsys.readouterr().out
    assert f"| fr | {np.mean(recall['fr']):.1f} ± 0.0 | {np.mean(recall['fr']):.1f} |" in shown.replace(" *", "")
    assert "| parameters trained | 2,208 | 2,208 |" in shown and "| seeds | 2 | 1 |" in shown
    with pytest.raises(xmodal.UserError, match="has no recall by language; run xmodal eval --workdir"):
        languages_table.main([f"English={runs[0]}", "--out", str(tmp_path / "none")])
    result = json.loads((runs[2] / "eval-test.json").read_text())
    other = {"seen": ["de"], "unseen": ["fr"]}
    (runs[2] / "eval-other.json").write_text(json.dumps(result | {"by_language": result["by_language"] | other}))
    own, other = (languages_table.measured(runs[2], split) for split in ("test", "other"))
    with pytest.raises(xmodal.UserError, match="has other languages, trained or asked, than 'french'; write"):
        languages_table.refuse_other_languages({"MLA": [own], "other": [other]})
    with pytest.raises(xmodal.UserError, match="'MLA' is no NAME=WORKDIR"):
        languages_table.main(["MLA", "--out", str(tmp_path / "none")])
