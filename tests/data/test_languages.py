"""Fields of captions have languages of their own; translations are of the same record, one language a row or batch."""

import collections
import contextlib
import dataclasses
import re

import numpy as np
import pytest

from xmodal_jax.data.config import DataConfig, FieldConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.readers import InputSpec, Reader, joined
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.text import build_vocabulary, load_tokenizer, save_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

RECORDS, BATCH = 40, 8
WORDS = {"en": "english", "de": "deutsch", "fr": "francais"}


def caption(language, number, place):
    return f"{WORDS[language]} {'abcdefghijklmnopqrstuvwxyz'[number % 26]} {'rstuv'[number // 26]} {'xyz'[place]}"


def captions_of(number):
    """Return two captions in English and German, and in every fourth record in French."""
    spoken = ("en", "de", "fr") if number % 4 == 0 else ("en", "de")
    return {language: [caption(language, number, place) for place in range(2)] for language in spoken}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("languages")
    prepare(memory_source([Item(f"{n:02d}", {}, captions_of(n)) for n in range(RECORDS)]), place / "set")
    return place / "set"


@pytest.fixture(scope="module")
def tokenizer(folder):
    texts = [text for n in range(RECORDS) for own in captions_of(n).values() for text in own]
    save_tokenizer(build_vocabulary(texts * 2), folder / "words.json")
    return load_tokenizer(str(folder / "words.json"))


@contextlib.contextmanager
def opened(folder, tokenizer, fields, languages=("en",), told=(), starts=(), **more):
    """Open the set for training; all fields are read by one encoder, which tells the languages `told` apart.

    Captions are begun in `starts`.
    """
    named = {name: dataclasses.replace(own, encoder="text", medium="text") for name, own in fields.items()}
    cfg = DataConfig(fields=named, languages=languages, path=str(folder), **more)
    data = train_dataset(folder, "train", {"text": InputSpec(12, tokenizer, False, told, starts)}, cfg, 0, BATCH)
    with contextlib.closing(data):
        yield data


def read(tokenizer, rows):
    """Return (language, rest of the caption) of rows of ids; ("", "") of a missing one."""
    spoken = {word: language for language, word in WORDS.items()}
    texts = [tokenizer.decode(row) for row in rows]
    return [(spoken[text.split()[0]], text.partition(" ")[2]) if text else ("", "") for text in texts]


def test_a_field_reads_its_own_languages_and_its_translation_is_of_the_same_record(folder, tokenizer):
    fields = {"text": FieldConfig(languages=("de", "fr")), "english": FieldConfig(languages=("en",))}
    with opened(folder, tokenizer, fields) as data:
        seen = collections.Counter()
        for number in range(10):
            batch = data.batch_at(number)
            texts, english = read(tokenizer, batch["text"]), read(tokenizer, batch["english"])
            assert {language for language, _ in english} == {"en"}
            assert [own[:3] for _, own in texts] == [own[:3] for _, own in english], "of one record"
            seen.update(language for language, _ in texts)
    assert set(seen) == {"de", "fr"} and seen["de"] > 3 * seen["fr"], "as often as they have captions"


def test_draw_translation_takes_the_caption_at_the_same_place_of_another_language(folder, tokenizer):
    fields = {
        "text": FieldConfig(languages=("en", "de")),
        "text2": FieldConfig(of="text", languages=("en", "de", "fr"), draw="translation", required=False),
    }
    with opened(folder, tokenizer, fields) as data:
        for number in range(5):
            batch = data.batch_at(number)
            assert batch["text2/valid"].all()
            for one, two in zip(read(tokenizer, batch["text"]), read(tokenizer, batch["text2"]), strict=True):
                assert one[0] != two[0] and one[1] == two[1], "another language, the same place"


def test_a_record_without_a_translation_is_masked_or_left_out(folder, tokenizer):
    own = FieldConfig(of="text", languages=("fr",), draw="translation", required=False)
    fields = {"text": FieldConfig(languages=("en",), required=False), "text2": own}
    with opened(folder, tokenizer, fields) as data:
        batch = data.batch_at(0)
        texts, other = read(tokenizer, batch["text"]), read(tokenizer, batch["text2"])
        lacking = [int(row) % 4 > 0 for row in batch["index"]]
        assert all(two == ("", "") or one[1] == two[1] for one, two in zip(texts, other, strict=True))
        assert 0 < sum(lacking) < BATCH and [pair == ("", "") for pair in other] == lacking
        assert batch["text2/valid"].tolist() == [not lacks for lacks in lacking]
        assert not batch["text2"][np.array(lacking)].any() and (batch["text2/key"] == -1).tolist() == lacking
    strict = {"text": FieldConfig(languages=("en",)), "text2": dataclasses.replace(own, required=True)}
    with opened(folder, tokenizer, strict) as data:
        batch = data.batch_at(0)
        assert {int(row) % 4 for row in batch["index"]} == {0} and batch["text2"].any(1).all()


def languages_of(folder, tokenizer, own, batches=40):
    """Return the languages of each batch of a field."""
    with opened(folder, tokenizer, {"text": own}) as data:
        return [[language for language, _ in read(tokenizer, data.batch_at(n)["text"])] for n in range(batches)]


def test_one_language_a_batch_is_a_function_of_its_number(folder, tokenizer):
    own = FieldConfig(languages=("en", "de"), per="batch")
    found = languages_of(folder, tokenizer, own)
    assert all(len(set(batch)) == 1 for batch in found) and {batch[0] for batch in found} == {"en", "de"}
    assert found == languages_of(folder, tokenizer, own), "the same again"
    with opened(folder, tokenizer, {"text": own}) as data:
        parts = [data.batch_at(7, process, 2)["text"] for process in range(2)]
        assert np.array_equal(np.concatenate(parts), data.batch_at(7)["text"]), "on two processes as on one"
    some = languages_of(folder, tokenizer, dataclasses.replace(own, languages=("en", "fr"), required=False))
    assert any("" in batch for batch in some if "fr" in batch), "rows without the batch's language are missing"


@pytest.mark.parametrize("per", ["row", "batch"])
def test_temperature_evens_out_the_sizes_of_languages(folder, tokenizer, per):
    """English has 80 captions and French 20: chances 4 : 1 at temperature 1, alike at 0."""
    shares = {}
    for temperature in (1.0, 0.5, 0.0):
        own = FieldConfig(languages=("en", "fr"), per=per, temperature=temperature, required=False)
        found = [batch for batch in languages_of(folder, tokenizer, own, 150)]
        if per == "batch":
            found = [[next(filter(None, batch), "fr")] for batch in found]
        flat = [language for batch in found for language in batch if language]
        shares[temperature] = flat.count("fr") / len(flat)
    if per == "batch":
        wanted = {t: 1 / (1 + 4**t) for t in shares}
    else:  # a quarter of the records has French, as many captions as English
        wanted = {t: 0.25 / (1 + 4 ** (t - 1)) for t in shares}
    assert all(abs(shares[t] - wanted[t]) < (0.1 if per == "batch" else 0.03) for t in shares), (shares, wanted)


def test_an_encoder_that_tells_languages_apart_gets_their_places(folder, tokenizer):
    fields = {"text": FieldConfig(languages=("en", "de", "fr"), required=False)}
    with opened(folder, tokenizer, fields, told=("fr", "en")) as data:
        batch = data.batch_at(0)
        assert batch["text"].shape == (BATCH, 13)
        places = [{"fr": 0, "en": 1, "de": -1}[language] for language, _ in read(tokenizer, batch["text"][:, :12])]
        assert batch["text"][:, 12].tolist() == places and set(places) == {-1, 1}
        assert data.readers["text"].empty().shape == (13,)
        assert data.cut()["text"]["length"] == 12, "the place of a language is no token"
    spec = InputSpec(12, tokenizer, False, ("fr", "en"))
    assert spec.ids(["english a"])[0, -1] == -1 and spec.ids(["english a"], ["en"])[0, -1] == 1


def test_batches_carry_the_language_that_a_caption_begins_in(folder, tokenizer):
    """Its place among the starts; -1 of a missing caption, and of a language that none begins in."""
    view = FieldConfig(of="text", languages=("fr", "de"), draw="translation", required=False)
    both = FieldConfig(languages=("en", "de"), reader="parallel", required=False)
    fields = {"text": FieldConfig(languages=("en", "de", "fr")), "text2": view, "both": both}
    with opened(folder, tokenizer, fields) as data:
        plain = data.batch_at(0)
    with opened(folder, tokenizer, fields, starts=("de", "en")) as data:
        batch = data.batch_at(0)
    assert set(batch) - set(plain) == {"text/language", "text2/language"}, "a parallel text is in two"
    assert all((batch[name] == plain[name]).all() for name in plain), "nothing else is drawn"
    for name in ("text", "text2"):
        spoken = [language for language, _ in read(tokenizer, batch[name])]
        assert batch[f"{name}/language"].tolist() == [{"de": 0, "en": 1}.get(code, -1) for code in spoken]
        assert batch[f"{name}/language"].dtype == np.int32
    assert {*batch["text/language"], *batch["text2/language"]} == {0, 1, -1}


def test_units_of_pairs_keep_their_caption_in_fields_that_speak_its_language(folder, tokenizer):
    fields = {"text": FieldConfig(), "english": FieldConfig(languages=("en",))}
    with opened(folder, tokenizer, fields, ("en", "de"), unit="pair") as data:
        assert data.units == 4 * RECORDS
        batch = data.batch_at(0)
        own = data.split.sidecar
        for pair, text, english in zip(
            batch["pair"], read(tokenizer, batch["text"]), read(tokenizer, batch["english"]), strict=True
        ):
            language, said = own.languages[own.language[pair]], own.texts[int(pair)].partition(" ")[2]
            assert text == (language, said) and english[0] == "en" and (language != "en" or english[1] == said)


def test_pairs_are_those_of_the_first_field_of_captions(folder, tokenizer):
    with opened(folder, tokenizer, {"text": FieldConfig(languages=("de",))}, ("en",), unit="pair") as data:
        batch, own = data.batch_at(0), data.split.sidecar
        said = [own.texts[int(pair)] for pair in batch["pair"]]
        assert data.units == 2 * RECORDS and {text.split()[0] for text in said} == {"deutsch"}
        assert [text.partition(" ")[2] for text in said] == [text for _, text in read(tokenizer, batch["text"])]
    with pytest.raises(UserError, match="visits each caption once, and config.data.fields.text draws languages"):
        DataConfig(fields={"text": FieldConfig(temperature=0.5)}, unit="pair")


def test_a_record_whose_languages_differ_in_captions_has_no_translation(tokenizer, tmp_path):
    """Of three English captions and two German ones nobody knows which is which."""
    captions = {"en": ["english a x", "english b y", "english c z"], "de": ["deutsch a x", "deutsch c z"]}
    prepare(memory_source([Item("a", {}, captions), Item("b", {}, captions_of(1))]), tmp_path / "set")
    other = FieldConfig(of="text", languages=("en", "de"), draw="translation", required=False)
    fields = {"text": FieldConfig(languages=("en", "de")), "text2": other}
    fields["both"] = FieldConfig(languages=("en", "de"), reader="parallel", required=False)
    with opened(tmp_path / "set", tokenizer, fields) as data:
        batch = data.batch_at(0)
        whole = (batch["index"] == 1).tolist()
        assert batch["text2/valid"].tolist() == batch["both/valid"].tolist() == whole and 0 < sum(whole) < BATCH
        assert data.readers["both"].rows("").tolist() == [1]


def test_a_view_reads_the_languages_of_its_field_and_parallel_texts_may_be_one(folder, tokenizer):
    german = FieldConfig(languages=("de",))
    fields = {"text": german, "text2": FieldConfig(of="text")}
    fields["both"] = FieldConfig(languages=("en", "de"), reader="parallel")
    fields["both2"] = FieldConfig(of="both", languages=("en", "de"), reader="parallel")
    with opened(folder, tokenizer, fields) as data:
        batch = data.batch_at(0)
        assert {language for language, _ in read(tokenizer, batch["text2"])} == {"de"} and batch["both2"].any(1).all()
    told = {"both": FieldConfig(languages=("en", "de"), reader="parallel")}
    with (
        pytest.raises(UserError, match="config.encoders.text, which tells languages apart, and a row has two"),
        opened(folder, tokenizer, told, told=("en", "de")),
    ):
        pass


def test_a_run_of_one_language_a_batch_goes_on_where_a_batch_begins(folder, tokenizer):
    with opened(folder, tokenizer, {"text": FieldConfig(languages=("en", "de"), per="batch")}) as data:
        assert np.array_equal(data.batch_from(2 * BATCH)["text"], data.batch_at(2)["text"])
        with pytest.raises(UserError, match="goes on at example 12, where no batch of config.batch_size=8 begins"):
            data.batch_from(12)


def test_evaluation_reads_both_sides_in_their_languages(folder, tokenizer):
    named = {"english": FieldConfig("text", "text", languages=("en",)), "text": FieldConfig("text", "text")}
    cfg = DataConfig(fields=named, languages=("de", "fr"), path=str(folder))
    found = eval_split(folder, "train", {"text": InputSpec(12, tokenizer)}, cfg, pair=("english", "text"))
    assert (len(found.left), len(found.right)) == (2 * RECORDS, 2 * RECORDS + RECORDS // 2)
    assert {text.split()[0] for text in found.left.words} == {"english"}
    assert {text.split()[0] for text in found.right.words} == {"deutsch", "francais"}
    assert cfg.spoken() == ("en", "de", "fr") and cfg.spoken("none") == ()


@pytest.mark.parametrize(
    "own, said",
    [
        (FieldConfig(draw="translation"), "config.data.fields.text.of is empty; write the field that it translates"),
        (FieldConfig(draw="all"), "config.data.fields.text.draw is 'all'; write 'other' or 'translation'"),
        (FieldConfig(per="epoch"), "config.data.fields.text.per is 'epoch'; write 'row' or 'batch'"),
        (FieldConfig(temperature=2.0), "config.data.fields.text.temperature is 2; write a number from 0 to 1"),
        (FieldConfig(languages="en"), "config.data.fields.text.languages is 'en'; write a tuple, such as ('en',)"),
        (FieldConfig(medium="image", per="batch"), "text.per is 'batch', which is for captions, and it shows 'image'"),
    ],
)
def test_impossible_ways_to_draw_are_refused(own, said):
    with pytest.raises(UserError, match=re.escape(said)):
        DataConfig(fields={"text": own})


def test_a_language_that_the_set_lacks_is_refused_by_field(folder, tokenizer):
    said = re.escape("config.data.fields.text.languages: ") + ".* has no .'ja'.; write some of "
    with (
        pytest.raises(UserError, match=said),
        opened(folder, tokenizer, {"text": FieldConfig(languages=("ja",))}),
    ):
        pass


def test_the_parallel_reader_joins_a_caption_and_its_translation(folder, tokenizer):
    own = FieldConfig(languages=("en", "de", "fr"), reader="parallel", required=False)
    with opened(folder, tokenizer, {"both": own}) as data:
        batch = data.batch_at(0)
        assert set(batch) == {"both", "both/valid", "id", "index"} and batch["both"].shape == (BATCH, 12)
        for row, ids in zip(batch["index"], batch["both"], strict=True):
            middle, end = np.flatnonzero(ids == tokenizer.sep_id)
            texts = [tokenizer.decode(part) for part in (ids[1:middle], ids[middle + 1 : end])]
            (one, said), (two, other) = (text.split(" ", 1) for text in texts)
            assert ids[0] == tokenizer.cls_id and not ids[end + 1 :].any() and one != two and said == other, (
                "one text in two languages"
            )
            assert said in captions_of(int(row))["en"][0] or said in captions_of(int(row))["en"][1]


def test_two_long_texts_lose_their_ends_and_keep_their_separators(tokenizer):
    spec = InputSpec(10, tokenizer)
    ids = joined(spec, "english a r x english a r x", "deutsch a r y deutsch a r y")
    assert ids.shape == (10,) and ids[0] == tokenizer.cls_id and (ids != 0).all()
    assert np.flatnonzero(ids == tokenizer.sep_id).tolist() == [4, 9]
    short = joined(spec, "english", "deutsch a r y deutsch")
    assert np.flatnonzero(short == tokenizer.sep_id).tolist() == [2, 8], "the second takes what the first leaves"


def test_records_without_a_required_field_are_not_even_drawn(folder, tokenizer, caplog):
    """A quarter of the records are in French: each example takes one draw, however rare they are."""
    with opened(folder, tokenizer, {"text": FieldConfig(languages=("fr",))}) as data:
        assert "30 of 40 records of split 'train' lack a required field, and the next that has all" in caplog.text
        drawn, choose = [], data.readers["text"].choose
        data.readers["text"].choose = lambda row, rng: drawn.append(row.number) or choose(row, rng)
        rows = np.concatenate([data.batch_at(number)["index"] for number in range(5)])
    assert len(drawn) == 5 * BATCH and sorted(set(rows.tolist())) == [4 * n for n in range(10)]
    assert np.bincount(rows).max() == 4, "each comes for itself and for the three that have none"


class Numbered(Reader):
    """A reader of one's own, whose input no record keeps."""

    def empty(self):
        return np.zeros(1, np.int32)

    def choose(self, row, rng):
        return row.number

    def read(self, row, choice, rng):
        return np.array([choice], np.int32)


def test_a_reader_that_draws_anew_or_is_ones_own_loses_no_record(folder, tokenizer):
    """Only of pictures and captions does the sidecar tell which records have them."""
    both = FieldConfig(languages=("fr", "de"), reader="parallel", per="batch", temperature=0.0)
    with opened(folder, tokenizer, {"both": both}) as data:
        assert set(np.concatenate([data.batch_at(number)["index"] for number in range(9)]).tolist()) == set(
            range(0, RECORDS, 4)
        )
    fields = {"own": FieldConfig(encoder="text", medium="meta", reader=f"{__name__}:Numbered")}
    cfg = DataConfig(fields=fields, languages=("en",), path=str(folder))
    with contextlib.closing(train_dataset(folder, "train", {"text": InputSpec(12, tokenizer)}, cfg, 0, BATCH)) as data:
        assert sorted(np.concatenate([data.batch_at(n)["own"][:, 0] for n in range(5)]).tolist()) == list(
            range(RECORDS)
        )
