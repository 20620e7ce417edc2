"""Further evaluations as entries of `config.evals`: built in, and of a file of a user's own."""

import dataclasses
import json

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.errors import UserError
from xmodal_jax.eval.captioning import caption_split
from xmodal_jax.eval.evaluate import Evaluator
from xmodal_jax.eval.evaluations import (
    Captioning,
    Classification,
    build_evaluations,
    checked_once,
    further,
    numbers_of,
)
from xmodal_jax.eval.zeroshot import TEMPLATES, classify
from xmodal_jax.training.log import METRICS_FILE
from xmodal_jax.workdir import open_run

OWN = """
from dataclasses import dataclass

from xmodal_jax.eval.evaluations import Evaluation


@dataclass(frozen=True)
class Spread(Evaluation):
    times: float = 1.0

    def __call__(self, evaluator, split, say):
        found = evaluator.open(split, "filled")
        return {"spread": {"left": self.times * float(evaluator.embedder.side(found.left, 8).embed.std())}}
"""
ENTRIES = (
    "evals.names={'kind':'classification','templates':('a {}',),'training':True}",
    "evals.captioning={'beam':1,'limit':3}",
)


def test_entries_are_built_with_their_fields():
    built = build_evaluations({"classification": {}, "words": {"kind": "captioning", "beam": 2}})
    assert built == {"classification": Classification(templates=TEMPLATES), "words": Captioning("captioning", beam=2)}
    for section, sentence in (
        ({"noise": {}}, "config.evals.noise.kind is 'noise'; write one of classification, captioning, answering"),
        ({"captioning": {"beams": 2}}, "'beams' is not a field of config.evals.captioning; did you mean 'beam'"),
        ({"captioning": {"beam": 0}}, "config.evals.captioning.beam is 0; write 1 or more"),
        ({"captioning": 3}, "config.evals.captioning is 3; write a dict"),
    ):
        with pytest.raises(UserError, match=sentence):
            build_evaluations(section)


def test_what_an_evaluation_gives_becomes_plain_numbers():
    found = numbers_of({"a": np.float32(0.5), "b": {"c": 3, "d": np.array(2)}}, "config.evals.own")
    assert json.loads(json.dumps(found)) == {"a": 0.5, "b": {"c": 3.0, "d": 2.0}}
    for wrong in ("much", None, np.zeros(2)):
        with pytest.raises(UserError, match="config.evals.own gave .*; let it return a dict of numbers"):
            numbers_of({"a": wrong}, "config.evals.own")


def test_a_run_evaluates_its_entries_while_it_trains_and_after(train_tiny, tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    own = f"evals.own={{'kind':'{tmp_path}/own.py:Spread','times':2.0,'training':True}}"
    assert (
        main(train_tiny(tmp_path / "run", *ENTRIES, own, "eval.every=4", "objectives={'itc': {'queue': 8}, 'lm': {}}"))
        == 0
    )
    assert "names at step 4: top-1/right " in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS_FILE).read_text().splitlines()]
    (quick,) = [line["eval"]["evals"] for line in lines if "eval" in line]
    assert set(quick) == {"names", "own"} and quick["names"]["top-1"]["chance"] == 25.0
    assert main(["eval", "--workdir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "eval-test.json").read_text())
    assembly, params, _ = open_run(tmp_path / "run")
    assert result["evals"]["names"] == quick["names"] == classify(assembly, params, "test", ("a {}",))["mean"]
    assert result["evals"]["captioning"] == caption_split(assembly, params, "test", 3, 1)[1]
    assert result["evals"]["own"]["spread"]["left"] == pytest.approx(quick["own"]["spread"]["left"], rel=1e-5)
    assert "top-1/right" in said and "CIDEr" in said and "spread/left" in said
    assert main(["eval", "--workdir", str(tmp_path / "run"), "--config.evals.names.classes=split"]) == 2
    assert "write the whole entry, as --config.evals.names={'kind': ...}" in capsys.readouterr().err
    assert main(["report", "--workdir", str(tmp_path / "run")]) == 0
    assert "spread/left" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_what_cannot_be_evaluated_is_refused_before_training(train_tiny, tmp_path, capsys):
    for entry, sentence in (
        ("evals.c={'kind':'captioning'}", "config.evals.c writes captions, and no objective trains a decoder"),
        (
            "evals.c={'kind':'classification','templates':('a',)}",
            "config.evals.c.templates, 'a', must have one {} for the name",
        ),
    ):
        objectives = "objectives={'itc':{'queue':0}}"
        assert main(train_tiny(tmp_path / "run", entry, objectives)) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_trains_checks_its_entries_once(opened_run, monkeypatch):
    def with_templates(*templates: str) -> Evaluator:
        config = dataclasses.replace(opened_run[0].config, evals={"classification": {"templates": templates}})
        return Evaluator(dataclasses.replace(opened_run[0], config=config), opened_run[1])

    opened = []
    monkeypatch.setattr(Card, "load", lambda path, load=Card.load: opened.append(path) or load(path))
    checked_once.cache_clear()
    for _ in range(3):
        assert further(with_templates("a {}"), "test", True, print) == {}
    assert len(opened) == 1
    for _ in range(2):
        with pytest.raises(UserError, match="must have one {} for the name"):
            further(with_templates("a"), "test", True, print)
