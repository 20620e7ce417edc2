"""Answers to the questions of a split: the accuracy by hand from VQA's files, by type and language, and the floor."""

import json
import pathlib

import jax
import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.errors import UserError
from xmodal_jax.eval.answering import Answered, answer_split, best_constant
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.forward import Forward
from xmodal_jax.training.log import METRICS_FILE
from xmodal_jax.workdir import open_run

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "vqa.py"
ASKED = {"colour": {"en": "which colour is it?", "de": "welche Farbe hat es?"}, "shape": "what is drawn?"}


@pytest.fixture(scope="module")
def files(shapes_files, tmp_path_factory):
    """VQA's files on the coloured shapes, colours asked in two languages: {question id: (split, type, answers)}."""
    folder, told = tmp_path_factory.mktemp("vqa"), {}
    written = {name: {"questions": [], "annotations": []} for name in ("train", "test")}
    for number, row in enumerate(map(json.loads, shapes_files.read_text().splitlines())):
        colour, shape = row["id"].split("-")
        dark = 6 if number % 6 == 0 else 3
        colours, shapes = ["dark"] * dark + [colour] * (10 - dark), [shape] * 8 + ["thing"] * (number % 3)
        if (row["id"], row["split"]) == ("purple-triangle", "test"):
            shapes = ["blob"] * 10  # which no training question has
        for place, (kind, answers) in enumerate((("colour", colours), ("shape", shapes))):
            key = 10 * number + place
            told[str(key)] = row["split"], kind, answers
            own = {"question_id": key, "image_id": row["views"]["filled"], "question": ASKED[kind]}
            written[row["split"]]["questions"].append(own)
            own = {"question_id": key, "answers": [{"answer": answer} for answer in answers], "question_type": kind}
            chosen = max(set(answers), key=answers.count)
            written[row["split"]]["annotations"].append(own | {"multiple_choice_answer": chosen})
    for split, content in written.items():
        for name, rows in content.items():
            (folder / f"{split}-{name}.json").write_text(json.dumps({name: rows}))
    return folder, told


@pytest.fixture(scope="module")
def run(files, shapes_files, tmp_path_factory):
    """A run of configs/vqa.py that was trained and evaluated: its folder, that of its data, and what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    names = {"questions": "train-questions", "annotations": "train-annotations"}
    names |= {"val-questions": "test-questions", "val-annotations": "test-annotations"}
    options = [f"--{option}={files[0] / name}.json" for option, name in names.items()]
    options += [f"--images={shapes_files.parent}", "--template={id}", "--answers=11", f"--out={folder / 'set'}"]
    assert main(["data", "prepare", "vqa", *options]) == 0
    changed = (f"data.path={folder / 'set'}", "data.languages=('en','de')", "steps=90", "eval.every=90")
    changed += ("evals.answering={'training':True,'types':False}", "data.eval_split=val", "eval.batch_size=5")
    changed = [
        f"--config.{item}"
        for item in (*changed, "encoders.image.size=16", "optimizer.lr=0.004", "teacher.momentum=0.8")
    ]
    assert main(["train", "--config", f"{CONFIG}:tiny", "--workdir", str(folder / "run"), *changed]) == 0
    assert main(["eval", "--workdir", str(folder / "run"), "--config.evals.answering={}"]) == 0
    return folder / "run", folder / "set"


@pytest.fixture(scope="module")
def opened(run):
    """The run's assembly and parameters, on eight devices."""
    return open_run(run[0])[:2]


@pytest.fixture(scope="module")
def result(run):
    """What `xmodal eval` found."""
    return json.loads((run[0] / "eval-val.json").read_text())["evals"]["answering"]


def earned(answer, answers):
    """The official accuracy of an answer, spelt out."""
    left_out = (answers[:place] + answers[place + 1 :] for place in range(len(answers)))
    return float(np.mean([min(1, others.count(answer) / 3) for others in left_out]))


def by_hand(run, opened, told):
    """[(type, answers given, language, answer told)] of each question, by one batch on one device."""
    (assembly, params), card = opened, Card.load(run[1])
    found = eval_split(run[1], "val", assembly.specs, assembly.config.data)
    owner = found.right.owner
    batch = {"image": np.stack([found.left.read(int(row), False) for row in owner]), "text": found.right.ids}

    @jax.jit
    def logits(params, batch):
        fwd = Forward(assembly.model, params, batch, None)
        return fwd.call("answer_logits", fwd.fuse(fwd.encode("image"), fwd.encode("text")).tokens)

    best = np.asarray(logits(jax.device_put(params, jax.devices()[0]), batch)).argmax(1)
    return [
        (*told[found.keys[row]][1:], card.languages[code], card.label_names[label])
        for row, code, label in zip(owner, found.right.language, best, strict=True)
    ]


def test_the_accuracy_is_that_of_the_files(run, opened, files, result):
    rows = by_hand(run, opened, files[1])

    def share(wanted=""):
        kept = (row for row in rows if wanted in ("", row[0], row[2]))
        return 100 * np.mean([earned(answer, given) for _, given, _, answer in kept])

    assert len(rows) == 36 == result["all"]["questions"], "12 colours in two languages, 12 shapes"
    assert result["all"]["right"] == pytest.approx(share())
    assert {name: own["right"] for name, own in result["en-question-type"].items()} == pytest.approx(
        {"colour": share("colour"), "shape": share("shape")}
    )
    assert {name: own["right"] for name, own in result["language"].items()} == pytest.approx(
        {"en": share("en"), "de": share("de")}
    )
    assert len({own[3] for own in rows}) > 2 and 20 < result["all"]["right"] < 90, "the numbers say something"


def test_the_floor_is_the_best_constant_answer_of_the_training_questions(files, result):
    told = files[1].values()
    for kind, own in result["en-question-type"].items():
        training, held_out = (
            [answers for split, named, answers in told if (split, named) == (part, kind)] for part in ("train", "test")
        )
        answers = sorted({answer for given in training for answer in given} - {"thing"})  # never the chosen one
        constant = max(answers, key=lambda answer: sum(earned(answer, given) for given in training))
        assert own["most frequent"] == pytest.approx(100 * np.mean([earned(constant, given) for given in held_out]))
        best = [max([0.0, *(earned(own, given) for own in set(given) - {"thing", "blob"})]) for given in held_out]
        assert own["possible"] == pytest.approx(100 * np.mean(best))
    assert result["en-question-type"]["colour"]["most frequent"] > 85, "three of ten say dark, or more"
    assert result["en-question-type"]["shape"]["possible"] == pytest.approx(100 * 11 / 12), "blob"
    assert "en-answer-type" not in result, "no type is told in the files"


def test_one_device_and_eight_answer_alike(run, opened, result):
    assembly, params = opened
    assert len(jax.tree.leaves(params)[0].devices()) == 8
    one = answer_split(Evaluator(assembly, jax.device_put(params, jax.devices()[0])), "val")
    assert one == result


def test_it_stands_in_the_log_and_the_report(run, result, capsys):
    lines = [json.loads(line) for line in (run[0] / METRICS_FILE).read_text().splitlines()]
    (quick,) = [line["eval"]["evals"]["answering"] for line in lines if "eval" in line]
    assert set(quick) == {"all", "language"} and quick["all"] == result["all"]
    assert main(["eval", "--workdir", str(run[0]), "--config.evals.answering={}"]) == 0
    assert "en-question-type/colour/right" in capsys.readouterr().out
    assert main(["report", "--workdir", str(run[0])]) == 0
    assert "all/most frequent" in (run[0] / "report.html").read_text("utf-8")


def test_rows_are_means_in_percent():
    scores = [{0: 0.3, 2: 1.0}, {1: 0.6}, {}]
    own = Answered(np.array([2, 0, 1, 0]), np.array([0, 0, 1, 2]), scores)
    assert own.row(np.arange(4), 2) == pytest.approx(
        {"right": 100 * (1.0 + 0.3 + 0.6) / 4, "most frequent": 50.0, "possible": 65.0, "questions": 4}
    )
    assert own.row(np.array([1]), -1)["right"] == pytest.approx(30) and own.row(np.array([1]), -1)["most frequent"] == 0
    assert best_constant(scores) == 2 and best_constant(scores, np.array([1, 2])) == 1
    assert best_constant([{0: 0.5, 1: 0.5}]) == 0 and best_constant([{}]) == -1


def test_what_cannot_be_answered_is_refused(run, opened, shapes_data, train_tiny, tmp_path, capsys):
    entry = "evals.answering={}"
    assert main(train_tiny(tmp_path / "run", entry)) == 2
    assert "config.evals.answering answers questions, and no objective trains that" in capsys.readouterr().err
    data = opened[0].config.data
    evaluator = Evaluator(*opened)
    moved = vars(opened[0].config) | {"data": type(data)(**vars(data) | {"path": str(shapes_data)})}
    other = type(opened[0])(**vars(opened[0]) | {"config": type(opened[0].config)(**moved)})
    with pytest.raises(UserError, match="are not the 11 answers that the run was trained on"):
        answer_split(Evaluator(other, evaluator.params), "test")
