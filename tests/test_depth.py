"""A third modality of a user's own: a small float array for each record, which a third of the records lack.

Encoder, reader, objective and scorer are this file's; the package is not touched. What is tested is the outline of the
house.
"""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import changed, input_specs

from xmodal_jax.assemble import assemble, assemble_without_data
from xmodal_jax.cli import main
from xmodal_jax.config_build import limited
from xmodal_jax.config_file import freeze
from xmodal_jax.data.card import Card
from xmodal_jax.data.fields import batch_fields
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.readers import InputSpec, Reader
from xmodal_jax.data.records import CorruptRecord
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.encode.embed import Embedder, PairScorer
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import Evaluator, ensure_weight, evaluate
from xmodal_jax.eval.tables import as_text
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.pair_score import ScorerConfig
from xmodal_jax.objectives.base import Objective, Term, mean_over, row_weight
from xmodal_jax.retrieve.pipeline import SearchPipeline
from xmodal_jax.retrieve.query import answer
from xmodal_jax.settings import defaults
from xmodal_jax.training.loop import train
from xmodal_jax.workdir import open_run

SHAPES, COLOURS = ("circle", "square", "star", "moon"), ("red", "green", "blue", "gold", "grey", "pink")
SIDE = 6  # of a depth map


class DepthTower(nn.Module):
    """A depth map [B,S,S] -> its rows as tokens [B,S,D]."""

    width: int

    @nn.compact
    def __call__(self, x, key=None):
        """Tokens [B,S,D]."""
        return nn.Dense(self.width, name="rows")(x.astype(jnp.float32) - 0.5)


@dataclass(frozen=True)
class DepthConfig(EncoderConfig):
    """The encoder of depth maps."""

    kind: str = ""
    width: int = limited(24, least=1)

    reads: ClassVar[str] = "depth"

    def input(self, facts):
        """A depth map."""
        return (SIDE, SIDE), "float32"

    def module(self, dtype):
        """The tower."""
        return DepthTower(self.width)


class DepthReader(Reader):
    """Depth maps as they are stored, in float32."""

    @classmethod
    def of_file(cls, path, spec):
        """A map from a file."""
        return np.frombuffer(path.read_bytes(), "<f4").reshape(SIDE, SIDE)

    def empty(self):
        """Nothing in front of the camera."""
        return np.zeros((SIDE, SIDE), np.float32)

    def choose(self, row, rng):
        """The one map of a record, or None."""
        return next(iter(row.media(self.own.medium)), None)

    def read(self, row, choice, rng):
        """The map [S,S]."""
        data = row.media(self.own.medium)[choice]
        if len(data) != 4 * SIDE * SIDE:
            raise CorruptRecord(f"row {row.number} has a depth map of {len(data)} bytes")
        return np.frombuffer(data, "<f4").reshape(SIDE, SIDE)


class PlainScore(nn.Module):
    """A dense layer on the product of both embeddings."""

    @nn.compact
    def __call__(self, one, two):
        """Scores [b]."""
        return nn.Dense(1, name="product", kernel_init=nn.initializers.ones)(one.embed * two.embed)[:, 0]


@dataclass(frozen=True)
class PlainScorer(ScorerConfig):
    """The pair score of this file."""

    kind: str = ""

    reads_tokens: ClassVar[bool] = False

    def module(self, width, embed):
        """The network."""
        return PlainScore()


@dataclass(frozen=True)
class Ranked(Objective):
    """A hinge on the pair scores of all pairs of a batch."""

    pair: tuple[str, str] = ("depth", "text")
    margin: float = limited(0.2, least=0)

    contrasts: ClassVar[bool] = True

    @property
    def parts(self):
        """The scorer."""
        return frozenset({"scorer"})

    @property
    def reads(self):
        """Both fields."""
        return self.pair

    def __call__(self, fwd, batch, key):
        """Losses [B]."""
        one, two = (fwd.encode(field) for field in self.pair)
        weight, scores = row_weight(batch, self.pair), fwd.scores(one, two, 4)
        others = (1.0 - jnp.eye(len(scores))) * weight[None, :]
        hinge = (jax.nn.relu(self.margin + scores - jnp.diagonal(scores)[:, None]) * others).sum(1)
        return Term(hinge / jnp.maximum(others.sum(1), 1.0), weight, {"hinge": mean_over(hinge, weight)})


def picture_of(shape, colour):
    """A PNG whose pixels tell the shape and the colour."""
    image = np.full((16, 16, 3), 30 + 30 * colour, np.uint8)
    image[: 4 * (shape + 1), :, shape % 3] = 250
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def depth_of(shape, colour):
    """A depth map that tells the same, as bytes."""
    depth = np.full((SIDE, SIDE), colour / 6, np.float32)
    depth[: shape + 1] += np.linspace(0, 1, SIDE, dtype=np.float32)
    return depth.astype("<f4").tobytes()


def items():
    """48 records, each shape in each colour twice; every third lacks its depth map, every sixth its picture."""
    found = []
    for number in range(48):
        shape, colour, again = number % 4, number // 4 % 6, number // 24
        media = {} if number % 3 == 2 else {"depth": {"map": depth_of(shape, colour)}}
        images = {} if number % 6 == 1 else {"photo": picture_of(shape, colour)}
        captions = {"en": [f"a {COLOURS[colour]} {SHAPES[shape]}"]}
        split = "test" if again else "train"
        found.append(Item(f"thing-{number}", images, captions, group=f"{number}", split=split, media=media))
    return found


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory):
    """The prepared data set."""
    folder = tmp_path_factory.mktemp("depth") / "set"
    prepare(memory_source(items(), "depth", "none"), folder)
    return folder


def depth_specs(tokenizer):
    """What the three encoders take."""
    return input_specs(tokenizer) | {"depth": InputSpec()}


def depth_config(path, **changes):
    """Image, text and depth in one space; the depth's classes are of this file."""
    config, here = defaults(), __name__
    config.name, config.batch_size, config.steps, config.log_every = "depth", 16, 40, 20  # all runs have one program
    config.data.path = str(path)
    small = {"width": 24, "layers": 1, "heads": 2, "hidden": 32}
    config.encoders = {
        "image": {"kind": "vit", "size": 16, "patch": 8} | small,
        "text": {"kind": "bert", "length": 8, "positions": 8} | small,
        "depth": {"kind": f"{here}:DepthConfig"},
    }
    config.data.fields = {
        "image": {"required": False},
        "text": {},
        "depth": {"reader": f"{here}:DepthReader", "required": False},
    }
    config.scorer = {"kind": f"{here}:PlainScorer"}
    config.fusion.update({"layers": 1, "heads": 2, "hidden": 32})
    config.joint.update({"embed": 16, "bits": 16})
    config.optimizer.update({"lr": 5e-3, "warmup": 0})
    config.checkpoint.every = config.steps // 2
    config.objectives = {
        "itc": {"queue": 24, "alpha": 0.2},
        "dt": {"kind": "itc", "pair": ("depth", "text"), "queue": 24, "alpha": 0.2},
        "di": {"kind": "siglip", "pair": ("depth", "image")},
        "ranked": {"kind": f"{here}:Ranked"},
        "hash": {"pair": ("depth", "text")},
    }
    for name, value in changes.items():
        config[name] = value if name != "eval" else {**config[name], **value}
    return freeze(config)


def test_a_batch_has_what_the_records_have(depth_set):
    config = depth_config(depth_set)
    tokenizer = load_tokenizer("data", depth_set)
    dataset = train_dataset(depth_set, "train", depth_specs(tokenizer), config.data, 0, 24)
    batch = dataset.batch_at(0)
    dataset.close()
    whole = items()
    for place, number in enumerate(batch["index"]):
        item = [item for item in whole if item.split == "train"][number]
        assert batch["depth/valid"][place] == ("depth" in item.media) and batch["image/valid"][place] == bool(
            item.images
        )
        expected = np.frombuffer(item.media["depth"]["map"], "<f4") if "depth" in item.media else np.zeros(SIDE * SIDE)
        np.testing.assert_array_equal(batch["depth"][place].ravel(), expected)
        assert batch["image"][place].any() == bool(item.images)
    assert (batch["depth/valid"].sum(), batch["image/valid"].sum(), len(batch["id"])) == (16, 20, 24)
    assert "text/valid" not in batch and "depth/key" not in batch


def test_records_without_a_required_field_are_left_out(depth_set):
    fields = {"depth": {"reader": f"{__name__}:DepthReader"}, "text": {}}
    config = freeze_fields(depth_set, fields)
    dataset = train_dataset(depth_set, "train", depth_specs(load_tokenizer("data", depth_set)), config, 0, 16)
    assert all(number % 3 != 2 for number in dataset.batch_at(0)["index"])
    dataset.close()


def freeze_fields_of(path):
    """A config without pictures."""
    config = defaults()
    config.data.path, config.data.fields = str(path), {"depth": {"reader": f"{__name__}:DepthReader"}, "text": {}}
    config.encoders = {"text": {"kind": "bert"}, "depth": {"kind": f"{__name__}:DepthConfig"}}
    config.eval.pairs = (("depth", "text"),)
    return freeze(config)


def freeze_fields(path, fields):
    """The data section with other fields."""
    config = defaults()
    config.data.path = str(path)
    config.data.fields = fields
    config.encoders = {"text": {"kind": "bert"}, "depth": {"kind": f"{__name__}:DepthConfig"}}
    config.eval.pairs = (("depth", "text"),)
    return freeze(config).data


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"text": {}},
            "config.encoders.depth is for no field; write config.data.fields.depth={}, or leave the encoder out",
        ),
        (
            {"text": {}, "depth": {}, "image": {}},
            "config.data.fields.image.encoder is 'image', and config.encoders has none",
        ),
        (
            {"text": {}, "depth": {}, "a/b": {"encoder": "depth"}},
            "config.data.fields has 'a/b'; write a name without '/'",
        ),
        ({"text": {}, "depth": {}, "labels": {"encoder": "depth"}}, "has 'labels', which every batch has of its own"),
        ({"text": {}, "depth": {"reader": "dept"}}, "config.data.fields.depth.reader is 'dept'; .*or FILE.py:CLASS"),
        (
            {"text": {}, "depth": {"reader": f"{__name__}:DepthConfig"}},
            "derive the class from xmodal_jax.data.readers.Reader",
        ),
    ],
)
def test_fields_and_encoders_that_do_not_fit_are_refused(depth_set, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        train_dataset(
            depth_set, "train", depth_specs(load_tokenizer("data", depth_set)), freeze_fields(depth_set, fields), 0, 2
        )


KILLED = """
import os, pathlib, signal, sys, time

import conftest  # the devices and the exactness of the tests
import test_depth
from xmodal_jax.training.loop import train


def kill(run, state, poll):
    while not (pathlib.Path(sys.argv[2]) / "checkpoints" / "20").is_dir():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


train(test_depth.depth_config(sys.argv[1], eval={"every": 30}), sys.argv[2], kill)
"""


@pytest.mark.slow  # tests/training/test_survival.py kills a run of two fields
def test_it_is_killed_and_goes_on_bit_for_bit(depth_set, tmp_path):
    """A run with a third of the depth maps missing equals one that was killed after 30 steps and went on."""
    config = depth_config(depth_set)
    whole = train(config, tmp_path / "whole")
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(depth_set), str(tmp_path / "again")]
    place = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": place}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "again" / "checkpoints").glob("[0-9]*")] == ["20"]
    again = train(config, tmp_path / "again")
    assert int(whole.step) == int(again.step) == 40 and int(whole.skipped) == 0
    assert {"image", "text", "depth", "id", "text/key", "image/valid", "depth/valid", "cursor"} == set(
        whole.memory["keys"]
    )
    assert {"tower", "head", "hash"} <= set(whole.params["depth"])
    for one, other in zip(*map(jax.tree.leaves, (jax.device_get(whole), jax.device_get(again))), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_the_plan_knows_its_fields(depth_set):
    from xmodal_jax.planning.program import batch_shapes
    from xmodal_jax.training.loop import make_run

    for assembly in (assemble(depth_config(depth_set)), assemble_without_data(depth_config(""))):
        shapes = batch_shapes(make_run(assembly))
        assert shapes["depth"].shape == (16, SIDE, SIDE) and shapes["depth/valid"].dtype == bool
        assert "image/valid" in shapes and "text/key" in shapes and "text/valid" not in shapes


@pytest.fixture(scope="module")
def depth_run(depth_set, tmp_path_factory):
    """A run that trains until depth maps find their captions."""
    workdir = tmp_path_factory.mktemp("run") / "depth"
    pairs = (("depth", "text"), ("depth", "image"))
    train(depth_config(depth_set, eval={"pairs": pairs}), workdir)
    return workdir


def test_depth_is_evaluated_against_text_and_pictures(depth_run, depth_set):
    assembly, params, _ = open_run(depth_run)
    result = evaluate(assembly, params)
    whole = [item for item in items() if item.split == "test"]
    assert (result["records"], result["captions"]) == (sum("depth" in item.media for item in whole),) * 2
    own = result["pairs"]["depth-image"]
    both = sum("depth" in item.media and bool(item.images) for item in whole)
    assert (own["records"], own["captions"]) == (both, both)
    chance = 100 * 10 / result["records"]
    assert result["mean"]["itc"]["i2t"]["R@10"] > chance and sorted(result["mean"]["rerank"]) == [result["records"]]
    said = as_text(json.loads(json.dumps(result)))
    assert "depth>text R@1" in said and "image>depth R@1" in said and "depth-image: " in said


def test_folds_are_of_the_first_pair_alone(depth_run):
    assembly, params, _ = open_run(depth_run)
    result = evaluate(changed(assembly, eval={"folds": 2, "fold_pictures": 8}), params)
    assert "folds" in result["mean"] and set(result["pairs"]["depth-image"]["mean"]) == {"itc"}
    assert "2 folds" in as_text(json.loads(json.dumps(result)))


def test_depth_is_indexed_and_searched_by_words(depth_run, depth_set, tmp_path, capsys):
    assert main(["index", "--workdir", str(depth_run), "--field", "depth", "--out", str(tmp_path / "index")]) == 0
    assert "indexed 16 rows of depth" in capsys.readouterr().out
    assembly, params, _ = open_run(depth_run)
    found = Evaluator(assembly, params).open("test", "")
    left, right = (Embedder(assembly.model, params).side(side, 8) for side in (found.left, found.right))
    for number in (0, 7, 15):
        hits = answer(tmp_path / "index", found.right.words[number], k=3)
        best = np.argsort(-(left.embed @ right.embed[number]), kind="stable")[:3]
        assert [hit.row for hit in hits] == best.tolist()
        assert hits[0].item["captions"] and hits[0].item["key"] == found.keys[int(best[0])]


def test_a_file_of_it_asks_for_its_like_and_for_words(depth_run, depth_set, tmp_path, capsys):
    run, maps = str(depth_run), [item for item in items() if item.split == "test" and "depth" in item.media]
    (tmp_path / "map.bin").write_bytes(maps[3].media["depth"]["map"])
    for field in ("depth", "text"):
        assert main(["index", "--workdir", run, "--field", field, "--out", str(tmp_path / field)]) == 0
    hit = answer(tmp_path / "depth", file=tmp_path / "map.bin", k=1)[0]
    assert hit.item["key"] == maps[3].key and hit.score == pytest.approx(1.0, abs=1e-5)
    assembly, params, _ = open_run(depth_run)
    found = Evaluator(assembly, params).open("test", "")
    left, right = (Embedder(assembly.model, params).side(side, 8, True) for side in (found.left, found.right))
    hits = answer(tmp_path / "text", file=tmp_path / "map.bin", k=2, stages=SearchPipeline(rerank=len(right.embed)))
    place = list(found.keys).index(maps[3].key)
    weight = ensure_weight(Evaluator(assembly, params), Embedder(assembly.model, params), print)
    odds = PairScorer(assembly.model, params, left, right)(
        np.full(len(right.embed), place, np.int32), np.arange(len(right.embed), dtype=np.int32)
    )
    want = np.sort(right.embed @ left.embed[place] + weight * np.asarray(odds))[::-1][:2]
    np.testing.assert_allclose([hit.score for hit in hits], want, rtol=1e-4)
    ask = ["search", "--index", str(tmp_path / "text")]
    assert main([*ask, "--file", str(tmp_path / "map.bin"), "--as", "depth", "--rerank", "4", "-k", "2"]) == 0
    capsys.readouterr()
    for wrong, sentence in (
        (["--file", "map.bin", "--as", "deep"], "the query's field is 'deep'; write one of depth, image, text"),
        (["words", "--as", "depth"], "--as says what --file is; leave it out"),
        (["--file", str(tmp_path / "gone")], "No such file"),
        (
            ["--file", str(tmp_path / "map.bin"), "--as", "text"],
            "takes strings, and one input is PosixPath",
        ),
    ):
        assert main([*ask, *wrong]) == 2
        assert sentence in capsys.readouterr().err


def test_the_report_shows_its_tables(depth_run, depth_set, capsys):
    assert main(["eval", "--workdir", str(depth_run)]) == 0
    assert main(["report", "--workdir", str(depth_run)]) == 0
    (page,) = depth_run.glob("**/*.html")
    text = page.read_text("utf-8")
    assert "depth&gt;text" in text or "depth>text" in text
    assert "depth-image" in text


def test_encoders_that_would_take_the_place_of_parts_are_refused(depth_set):
    for name in ("fusion", "joint", "a-b", "name"):
        config = defaults()
        config.encoders[name] = {"kind": f"{__name__}:DepthConfig"}
        config.data.fields[name] = {}
        with pytest.raises(UserError, match=f"config.encoders has '{name}', which is no name or that of another part"):
            freeze(config)


def test_the_order_of_evaluated_pairs_does_not_choose_what_is_fused(depth_set):
    for pairs in (
        (("image", "text"), ("depth", "text")),
        (("depth", "text"), ("image", "text")),
        (("image", "depth"),),
    ):
        config = depth_config(depth_set, eval={"pairs": pairs})
        assert (config.fusion.pair, config.bridge.sides, config.fusion.width) == (("image", "text"), ("image",), 24)
    assert freeze_fields_of(depth_set).fusion.pair == ("depth", "text")
    itm = {"itm": {"pair": ("depth", "text")}}
    with pytest.raises(
        UserError, match="itm reads .'depth', 'text'., of the encoders .* and fusion is of .'image', 'text'."
    ):
        assemble(depth_config(depth_set, objectives=itm, scorer={"kind": "fusion"}))
    with pytest.raises(
        UserError, match="config.eval.pairs has .'text', 'image'., and config.scorer takes .'image', 'text'."
    ):
        depth_config(depth_set, scorer={"kind": "fusion"}, eval={"pairs": (("text", "image"),)})


def test_a_run_of_one_encoder_needs_no_fusion(depth_set):
    config = defaults()
    config.data.path, config.encoders = str(depth_set), {"text": {"kind": "bert", "length": 8}}
    config.data.fields = {"text": {}, "text2": {"of": "text"}}
    config.eval.pairs, config.objectives = (("text", "text2"),), {"itc": {"pair": ("text", "text2"), "queue": 0}}
    assert set(assemble(freeze(config)).objectives) == {"itc"}
    config.objectives = {"itm": {"pair": ("text", "text2")}}
    with pytest.raises(UserError, match="itm fuses two encoders, and config.fusion.pair is .'text', 'text'."):
        assemble(freeze(config))
    config.joint.start = "cca"
    with pytest.raises(UserError, match="both fields of config.eval.pairs.0.=.* are of one encoder"):
        freeze(config)


def test_stored_embeddings_are_of_the_media_that_were_embedded(depth_run, depth_set, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(depth_set, folder)
    assert main(["data", "embed", "--data", str(folder), "--name", "old", "--workdir", str(depth_run)]) == 0
    entry = Card.load(folder).embedding("old")
    assert (entry["media"], entry["views"], entry["languages"]) == (["image", "text"], ["photo"], ["en"])
    config = depth_config(folder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, embeddings="old"))
    assembly = assemble(config)
    dataset = train_dataset(folder, "train", assembly.specs, config.data, 0, 24)
    batch = dataset.batch_at(0)
    dataset.close()
    assert {name for name in batch if name.endswith("/teacher")} == {"image/teacher", "text/teacher"}
    assert set(batch) == set(batch_fields(assembly.config, assembly.facts))
    assert not batch["image/teacher"][~batch["image/valid"]].any() and batch["text/teacher"].any(1).all()


def test_fusion_asks_with_the_words_of_one_encoder(depth_set):
    objectives = {"itm": {"pair": ("text", "depth")}}
    with pytest.raises(UserError, match="itm reads .'text', 'depth'., of the encoders .*, and fusion is of"):
        assemble(depth_config(depth_set, objectives=objectives))
