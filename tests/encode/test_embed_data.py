"""`xmodal data embed`: a run or the start of a config embeds a data set, and another run learns from it."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.embeddings import Embeddings
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.encode.embed_data import refuse_other_caches
from xmodal_jax.errors import UserError

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
STILL = ("data.augment.crop_min_area=1.0", "data.augment.flip=0.0")


@pytest.fixture(scope="module")
def own_shapes(shapes_data, tmp_path_factory):
    """A copy of the shapes with embeddings of the tiny run ("old") and of what its config starts from ("start")."""
    folder = tmp_path_factory.mktemp("embedded") / "set"
    shutil.copytree(shapes_data, folder)
    return folder


@pytest.fixture(scope="module")
def by_the_run(own_shapes, tiny_run):
    """The card after the tiny run embedded the copy."""
    command = ["data", "embed", "--data", own_shapes, "--name", "old", "--workdir", tiny_run[0], "--batch", "5"]
    assert main(list(map(str, command))) == 0
    return Card.load(own_shapes)


def test_a_run_embeds_every_picture_and_caption(by_the_run, own_shapes, opened_run):
    assembly, params = opened_run
    entry, views = by_the_run.embedding("old"), ("filled", "outline")
    assert (entry["width"], entry["views"], entry["languages"]) == (16, list(views), ["en"])
    assert entry["teacher"] == f"{assembly.config.name} step 4" and entry["reads"] == "image 16, text 12"
    embedder, data = Embedder(assembly.model, params), assembly.config.data
    for split in ("train", "test"):
        found = Embeddings(own_shapes, by_the_run, "old", split, views, ["en"])
        for view in views:
            source = eval_split(own_shapes, split, assembly.specs, data, view)
            images, texts = (embedder.side(side, 8).embed for side in (source.left, source.right))
            for number, owner in enumerate(source.right.owner):
                caption = number - int(np.argmax(source.right.owner == owner))
                picks = {
                    "image": ("image", lambda own, view: own[view][0], view),
                    "text": ("text", lambda own, place: own["en"][place], caption),
                }
                image, text = found.vectors(int(owner), picks).values()
                np.testing.assert_allclose(image, images[owner], atol=1e-5)
                np.testing.assert_allclose(text, texts[number], atol=1e-5)
        found.close()


def test_a_start_is_a_teacher_that_its_own_run_agrees_with(own_shapes, train_tiny, tmp_path, capsys):
    """A run's first loss after its own start is zero: the pictures and captions that were embedded come again."""
    own = (
        "encoders.text.dropout=0.0",
        "joint.temperature=0.07",
        "objectives={'itc': {'queue': 8}}",
        "encoders.image.size=16",
    )
    command = ["data", "embed", "--data", own_shapes, "--name", "start", "--config", f"{CONFIG}:tiny"]
    assert main([*map(str, command), *(f"--config.{item}" for item in (*own, "batch_size=8"))]) == 0
    assert "embeddings 'start' of quickstart-tiny start: width 16 float32, 2 views" in capsys.readouterr().out
    distill = {"itc": {"queue": 8}, "distill": {"relation": 1.0, "feature": 1.0}}
    more = (
        "data.embeddings=start",
        "data.fields.image2={'of': 'image'}",
        "steps=2",
        "log_every=1",
        "optimizer.warmup=0",
        f"objectives={distill}",
    )
    changes = [f"data.path={own_shapes}", *own[:2], *more, *STILL]
    assert main(train_tiny(tmp_path / "run", *changes)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/distill"] for line in lines if "loss/distill" in line]
    assert len(losses) == 2 and abs(losses[0]) < 1e-5 < losses[1]
    assert main(train_tiny(tmp_path / "no", *changes, "data.embeddings=none")) == 2
    assert "has no embeddings 'none'" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_impossible_teachers_are_refused(by_the_run, own_shapes, tiny_run, tmp_path, capsys):
    command = ["data", "embed", "--data", str(own_shapes), "--name", "old"]
    run = ["--workdir", str(tiny_run[0])]
    for more, words in (
        ([], "name one teacher: --workdir RUN, or --config CONFIG"),
        ([*run, "--config", f"{CONFIG}:tiny"], "name one teacher"),
        ([*run, "--config.encoders.text.layers=3"], "would change a trained model"),
        ([*run, "--config.data.languages=('fr',)"], "has no ['fr']"),
        ([*run, "--config.eval.params=student"], "already has embeddings 'old' made with weights"),
        (["--workdir", str(tmp_path)], "holds no run"),
    ):
        assert main([*command, *more]) == 2
        assert words in capsys.readouterr().err, more
    assert main([*command, *run]) == 0, "the same again is no error"
    assert Card.load(own_shapes).embedding("old") == by_the_run.embedding("old")


def test_caches_of_another_tower_or_size_are_refused(opened_run, own_shapes):
    assembly, _ = opened_run
    data = dataclasses.replace(assembly.config.data, features=("grid",))
    config = dataclasses.replace(assembly.config, data=data)
    reads = dataclasses.replace(assembly, config=config, caches={"image": ({"tower": "lite0", "size": 128},)})
    card = dataclasses.replace(Card.load(own_shapes), features={"grid": {"tower": "lite0", "size": 192}})
    with pytest.raises(UserError, match="are of lite0 at 192 px, and the teacher reads lite0 at 128 px"):
        refuse_other_caches(reads, card)
