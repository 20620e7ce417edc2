"""VQA's JSON files: answers in the official normal form with the official accuracy, skips, and refused files."""

import itertools
import json

import numpy as np
import pytest
from tiny import input_specs

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.sidecar import COLUMNS, Sidecar
from xmodal_jax.data.source import Item, Skip
from xmodal_jax.data.sources.vqa import vqa_source
from xmodal_jax.data.sources.vqa_answers import CONTRACTIONS, accuracy, answer_scores, normal_answer, spellings
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

TRAIN = (  # question id, picture, question, answers of ten people, type
    (11, 1, "How many dogs are there?", ["2"] * 6 + ["two."] * 2 + ["3", "a few"], "how many"),
    (12, 1, "Is it day?", ["yes"] * 9 + ["no"], "is it"),
    (13, 2, "Is it day?", ["no"] * 7 + ["yes"] * 3, "is it"),
    (14, 2, "What is that?", ["dog", "the dog", "a puppy", *map(str, range(7))], "what is"),
)
VAL = (
    (21, 3, "What is that?", ["zebra"] * 10, "what is"),
    (22, 3, "Is it night?", ["no"] * 2 + ["yes"] * 8, "is it"),
)


def question(row):
    return {"question_id": row[0], "image_id": row[1], "question": row[2]}


def annotation(row, **changes):
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(row[3], 1)]
    own = {"question_id": row[0], "image_id": row[1], "answers": answers, "multiple_choice_answer": row[3][0]}
    return own | {"question_type": row[4], "answer_type": "other"} | changes


def write(folder, split, questions, annotations, **more):
    for name, rows in (("questions", questions), ("annotations", annotations)):
        content = {name: rows, "data_subtype": f"{split}2014"} | more
        (folder / f"{split}_{name}.json").write_text(json.dumps(content))


@pytest.fixture
def files(tmp_path, encoded):
    """The files of both splits in the official form, and their pictures; the options that name them."""
    write(tmp_path, "train", list(map(question, TRAIN)), list(map(annotation, TRAIN)))
    write(tmp_path, "val", list(map(question, VAL)), list(map(annotation, VAL)))
    (tmp_path / "images").mkdir()
    for split, number in (("train", 1), ("train", 2), ("val", 3)):
        picture = encoded(np.full((8, 8, 3), 50 * number, np.uint8), "JPEG")
        (tmp_path / "images" / f"COCO_{split}2014_{number:012d}.jpg").write_bytes(picture)
    names = ("questions", "annotations")
    options = {name: tmp_path / f"train_{name}.json" for name in names} | {"images": tmp_path / "images"}
    return options | {f"val_{name}": tmp_path / f"val_{name}.json" for name in names}


def test_accuracy_is_the_mean_over_all_who_are_left_out():
    """The official definition, spelt out: of the nine others, how many gave the answer, a third each, at most 1."""
    for given in itertools.combinations_with_replacement("abc", 10):
        for answer in set(given):
            left_out = [[own for at, own in enumerate(given) if at != place] for place in range(10)]
            expected = np.mean([min(1, others.count(answer) / 3) for others in left_out])
            assert answer_scores(given, "a")[answer] == pytest.approx(expected)
    assert accuracy(0, 10) == 0.0 and answer_scores(["a", "b"], "b") == {"b": 1.0} and answer_scores([], "") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("the  Dog\n", "dog"),
        ("none", "0"),
        ("t-shirt", "t shirt"),  # a mark between letters becomes a space
        ("red - blue", "red blue"),  # one beside a space goes
        ("1,000 (one)", "1000 1"),  # a number with a comma: all marks go
        ("3.5", "3.5"),
        ("st. james", "st james"),
        ("wont", "won't"),
        ("shouldn'tve", "shouldn't've"),
        ("it's", "it's"),
        ("a", ""),
    ],
)
def test_the_normal_form_of_answers(text, expected):
    assert normal_answer(text) == expected and normal_answer(expected) == expected


def test_contractions_are_no_other_words():
    words = {"well", "were", "ill", "its", "wed", "shed", "hell", "shell", "id", "lets"}
    assert not words & set(CONTRACTIONS) and all("'" in word for word in CONTRACTIONS.values())
    assert set(spellings("y'all'd've")) >= {"yalldve", "yall'd've", "y'alld've", "y'all'dve"}


def test_a_question_is_a_record(files):
    source = vqa_source(**files, answers=3)
    found = list(source.items())
    assert all(isinstance(item, Item) for item in found) and source.total == len(found) == 6
    many, day, _, what, zebra, night = found
    assert many.key == "11" and many.group == "1" and many.split == "train"
    assert many.captions == {
        "en": ["How many dogs are there?"],
        "en-question-type": ["how many"],
        "en-answer-type": ["other"],
    }
    assert many.labels == ("2",) and many.scores == (1.0,), "eight of ten; 3 and few are rare"
    assert day.labels == ("no",) and day.scores == (pytest.approx(0.3),), "2, dog, no: of answers as frequent by name"
    assert what.labels == ("dog", "2") and what.scores == (pytest.approx(0.6), pytest.approx(0.3))
    assert zebra.labels == () and zebra.split == night.split == "val", "an answer that no training question has"
    assert night.images["image"] == (files["images"] / "COCO_val2014_000000000003.jpg").read_bytes()
    assert [item.labels for item in vqa_source(**files, answers=9).items()][1] == ("yes", "no")


def test_scores_are_kept_beside_the_labels(files, tmp_path):
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in files.items()]
    assert main(["data", "prepare", "vqa", *arguments, "--answers", "9", "--out", str(tmp_path / "set")]) == 0
    card = Card.load(tmp_path / "set")
    assert card.languages == ["en", "en-answer-type", "en-question-type"] and "zebra" not in card.label_names
    own = Sidecar(tmp_path / "set", card, "train")
    labels = [[card.label_names[label] for label in own.labels(row)] for row in range(4)]
    told = [dict(zip(names, own.scores(row), strict=True)) for row, names in enumerate(labels)]
    assert told[2] == {"no": 1.0, "yes": pytest.approx(0.9)} and told[1] == {"yes": 1.0, "no": pytest.approx(0.3)}
    assert sorted(card.splits["train"]["columns"]) == sorted((*COLUMNS, "scores"))
    assert main(["data", "prepare", "vqa", *arguments, "--answers", "9", "--out", str(tmp_path / "set")]) == 0


def test_batches_and_evaluation_have_scores(files, tmp_path, tokenizer):
    prepare(vqa_source(**files, answers=4), tmp_path / "set")
    names = Card.load(tmp_path / "set").label_names
    data, specs = DataConfig(), input_specs(tokenizer)
    training = train_dataset(tmp_path / "set", "train", specs, data, 0, 4)
    batch = training.batch_at(0)
    assert batch["labels"].shape == (4, 4)
    assert batch["labels"][batch["index"] == 1, names.index("no")] == pytest.approx(0.3)
    training.close()
    found = eval_split(tmp_path / "set", "val", specs, data)
    assert found.labels[1].tolist() == pytest.approx([{"no": 0.6, "yes": 1.0}.get(name, 0.0) for name in names])
    assert not found.labels[0].any() and len(found.right) == 2, "the types are no questions"


def test_a_set_whose_labels_are_wholly_right_keeps_no_scores(tiny_set):
    card = Card.load(tiny_set)
    assert "scores" not in card.splits["train"]["columns"]
    assert Sidecar(tiny_set, card, "train").scores(0) == [1.0, 1.0]


def test_what_cannot_be_used_is_skipped(files):
    folder = files["images"].parent
    rows = [question(row) for row in TRAIN]
    rows[0]["image_id"], rows[1]["question"] = 77, "  "
    rows[2]["question"] = {"en": "Is it day?", "de": "Ist es Tag?"}
    questions = [*rows, {"question_id": 99, "image_id": 1, "question": "x?"}, 3, {"question_id": 98}]
    annotations = [*map(annotation, TRAIN), annotation(TRAIN[0], question_id=97), annotation(TRAIN[0], question_id=96)]
    annotations[3]["answers"] = [3]
    del annotations[5]["multiple_choice_answer"]
    write(folder, "train", questions, annotations)
    skips = [item for item in vqa_source(**files).items() if isinstance(item, Skip)]
    assert [(skip.reason, skip.where.split(" (")[0].split("COCO")[0].split(str(folder))[0]) for skip in skips] == [
        ("missing image", "11: "),
        ("broken question", "questions[1]: ValueError('the question is empty')"),
        ("broken annotation", "annotations[3]: TypeError(\"'int' object is not subscriptable\")"),
        ("question without an annotation", "questions[4]: 99"),
        ("question without an annotation", "questions[5]: "),
        ("question without an annotation", "questions[6]: 98"),
        ("annotation without a question", "97"),
        ("annotation without a question", "96"),
    ]
    kept = [item for item in vqa_source(**files).items() if isinstance(item, Item) and item.split == "train"]
    assert [item.captions["de"] for item in kept] == [["Ist es Tag?"]], "13, in two languages"


def test_names_of_pictures_and_the_language_are_options(files, encoded):
    folder = files["images"].parent
    rows = [question(row) | {"image_id": "pets/one"} for row in TRAIN]
    write(folder, "train", rows, [annotation(row, answers=None, question_type=None) for row in TRAIN])
    (folder / "images" / "pets").mkdir()
    (folder / "images" / "pets" / "one.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    del files["val_questions"], files["val_annotations"]
    first, *_ = found = list(vqa_source(**files, template="{id}.png", language="de", licence="mine").items())
    assert len(found) == 4 and first.captions == {"de": ["How many dogs are there?"], "de-answer-type": ["other"]}
    assert first.labels == ("2",) and first.scores == (1.0,) and first.group == "pets/one"
    skips = list(vqa_source(**files).items())
    assert {skip.reason for skip in skips} == {"broken question"}, "a text does not fit {id:012d}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"questions": "none.json"}, "file of questions none.json does not exist"),
        ({"questions": "{folder}/train_annotations.json"}, r"is not VQA's questions \(JSON .* but VQA's file of annot"),
        ({"annotations": "{folder}/list.json"}, r"is not VQA's annotations \(JSON with a list 'annotations'"),
        ({"annotations": "{folder}/cut.json"}, "cut.json is not JSON"),
        ({"annotations": "{folder}/val_annotations.json"}, "no question of .* has an annotation in .* of one split"),
        ({"images": "{folder}/none"}, "image folder .* does not exist"),
        ({"val_annotations": ""}, "val_questions and val_annotations are the files of one split; write both"),
        ({"template": "picture.jpg"}, r"template is 'picture.jpg'; write the name of a picture with \{id\} in it"),
        ({"template": "{id}{"}, "write the name of a picture with"),
        ({"template": "{id}-{split}.jpg"}, "write the name of a picture with"),
        ({"answers": 0}, "answers is 0; write how many"),
    ],
)
def test_files_that_cannot_be_read_are_refused(files, changes, sentence):
    folder = files["images"].parent
    (folder / "cut.json").write_text('{"annotations": [')
    (folder / "list.json").write_text("[]")
    changes = {name: str(value).replace("{folder}", str(folder)) for name, value in changes.items()}
    changes |= {"answers": int(changes.get("answers", 3))}
    with pytest.raises(UserError, match=sentence):
        vqa_source(**files | changes)


def test_a_template_with_a_subtype_that_no_file_tells(files):
    write(files["images"].parent, "train", list(map(question, TRAIN)), list(map(annotation, TRAIN)), data_subtype="")
    with pytest.raises(UserError, match="has no 'data_subtype', which template"):
        vqa_source(**files)
