"""The door of a run: unknown keys, wrong types, overrides, impossible values, and every file in configs/."""

import dataclasses
import json
import pathlib
import re

import pytest

from xmodal_jax.config_build import unknown_key
from xmodal_jax.config_file import freeze, load, override
from xmodal_jax.errors import UserError
from xmodal_jax.models import BertConfig, ViTConfig
from xmodal_jax.models.scorer import FusionScorerConfig
from xmodal_jax.objectives import build_objectives
from xmodal_jax.settings import BridgeConfig, Config, FusionConfig, as_dict, defaults

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def variants(path: pathlib.Path) -> list[str]:
    """The variants that a config file says it knows: it names them when asked for another."""
    with pytest.raises(UserError) as caught:
        load(f"{path}:no such variant")
    return str(caught.value).split("write one of ")[1].split(", ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_freezes_in_every_variant(path):
    names = variants(path)
    assert len(names) > 1
    for variant in names:
        config = freeze(load(f"{path}:{variant}"))
        assert isinstance(config, Config)
        assert build_objectives(config.objectives)
        assert freeze(json.loads(json.dumps(as_dict(config)))) == config
    assert freeze(load(str(path))) in [freeze(load(f"{path}:{variant}")) for variant in names]


def test_the_defaults_freeze_to_the_defaults():
    encoders = {"image": ViTConfig(), "text": BertConfig()}
    assert freeze(defaults()) == dataclasses.replace(
        Config(),
        encoders=encoders,
        scorer=FusionScorerConfig(),
        fusion=FusionConfig(("image", "text"), width=384),
        bridge=BridgeConfig(sides=("image",)),
    )


def test_configs_are_equal_and_hashed_by_content():
    first, second = freeze(defaults()), freeze(defaults())
    assert first is not second and hash(first) == hash(second) and {first: 1}[second] == 1
    other = dataclasses.replace(first, seed=1)
    assert other != first and hash(other) != hash(first)


def changed(path: str, value):
    """The default config with one value set, unchecked."""
    values = defaults().to_dict()
    node = values
    *parents, name = path.split(".")
    for parent in parents:
        node = node[parent]
    node[name] = value
    return values


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        ("batchsize", 4, "'batchsize' is not a field of config; did you mean 'batch_size'?"),
        ("encoders.image.widht", 4, "'widht' is not a field of config.encoders.image; did you mean 'width'?"),
        (
            "encoders.text.zzz",
            4,
            "'zzz' is not a field of config.encoders.text; known: cache_tokens, dropout, eps, head_dropout, ",
        ),
        ("encoders.image.depth", 50, "'depth' is not a field of config.encoders.image; did you mean 'width'?"),
        ("encoders.image.patch", "8", "config.encoders.image.patch is '8'; write a value of type int"),
        ("steps", 1.5, "config.steps is 1.5; write a value of type int"),
        ("steps", True, "config.steps is True; write a value of type int"),
        ("name", 7, "config.name is 7; write a value of type str"),
        ("teacher.warmup", 1, "config.teacher.warmup is 1; write a value of type bool"),
        ("optimizer.lr", "fast", "config.optimizer.lr is 'fast'; write a value of type float"),
        ("optimizer.lr", False, "config.optimizer.lr is False; write a value of type float"),
        ("eval.rerank", 8, "config.eval.rerank is 8; write a tuple such as (1, 2)"),
        ("eval.rerank", (8, "x"), "config.eval.rerank is 'x'; write a value of type int"),
        (
            "optimizer.groups",
            (("^text/tower/",),),
            "config.optimizer.groups is ('^text/tower/',); it takes 2 entries, such as ('regex', 0.1)",
        ),
        (
            "optimizer.groups",
            "^text/tower/",
            "config.optimizer.groups is '^text/tower/'; write a tuple such as (('regex', 0.1),)",
        ),
        (
            "optimizer.groups",
            ("^text/tower/", 0.1),
            "config.optimizer.groups is ('^text/tower/', 0.1); write a tuple such as (('regex', 0.1),)",
        ),
        ("data.features", "lite0", "config.data.features is 'lite0'; write a tuple such as ('a', 'b')"),
        ("joint", 3, "config.joint is 3; write a dict with its fields"),
        ("encoders", 3, "config.encoders is 3; write a dict"),
        ("encoders.image", 3, "config.encoders.image is 3; write a dict such as {'kind': 'vit'}"),
        ("objectives", "itc", "config.objectives is 'itc'; write a dict"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(path, value, sentence):
    with pytest.raises(UserError, match="^" + re.escape(sentence)):
        freeze(changed(path, value))


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        ("batch_size", 0, "config.batch_size is 0; write a number above 0"),
        (
            "encoders.image.kind",
            "alexnet",
            "config.encoders.image.kind is 'alexnet'; "
            "write one of vit, resnet, efficientnet, features, frames, spectrogram, bert, acquirers, gru, tfidf",
        ),
        (
            "encoders.text.kind",
            "rnn",
            "config.encoders.text.kind is 'rnn'; "
            "write one of vit, resnet, efficientnet, features, frames, spectrogram, bert, acquirers, gru, tfidf",
        ),
        ("fusion.pair", ("image", "sound"), "config.encoders has no 'sound'; write some of image, text"),
        ("fusion.pair", ("image",), "config.fusion.pair is ('image',); write two encoders"),
        ("bridge.sides", ("sound",), "config.encoders has no 'sound'; write some of image, text"),
        (
            "fusion.width",
            96,
            "config.fusion.width is 96, and config.encoders.text.width, whose tokens ask, is 384; "
            "write config.fusion.width=0",
        ),
        ("joint.hash_kind", "step", "config.joint.hash_kind is 'step'; write one of tanh, sign, select"),
        ("joint.hash_hidden", -1, "config.joint.hash_hidden is -1; write 0 or more"),
        ("joint.shared_layers", 0, "config.joint.shared_layers is 0; write 1 or more"),
        ("joint.shared_heads", 0, "config.joint.shared_heads is 0; write a number above 0"),
        ("joint.shared_dropout", 1.0, "config.joint.shared_dropout is 1.0; write a rate from 0 to 0.99"),
        ("optimizer.sgd_after", -1, "config.optimizer.sgd_after is -1; write 0 or more"),
        (
            "optimizer.sgd_after",
            1000,
            "config.optimizer.sgd_after is 1000, but config.steps is 1000: SGD would never take over; write fewer",
        ),
        ("optimizer.sgd_lr", 0.0, "config.optimizer.sgd_lr is 0.0; write a number above 0"),
        (
            "encoders.text.pool",
            "median",
            "config.encoders.text.pool is 'median'; write one of mean, cls, mean+attention, mean+gpo",
        ),
        ("encoders.image.token_hidden", -1, "config.encoders.image.token_hidden is -1; write 0 or more"),
        ("fusion.remat", "all", "config.fusion.remat is 'all'; write one of none, dots, full, offload"),
        ("dtype", "float16", "config.dtype is 'float16'; write one of float32, bfloat16"),
        ("joint.bits", 12, "config.joint.bits is 12; write a multiple of 8, such as 64"),
        ("encoders.image.heads", 7, "config.encoders.image.heads is 7, which does not divide the width 384"),
        ("encoders.text.heads", 0, "config.encoders.text.heads is 0; write 1 or more"),
        ("checkpoint.keep", 0, "config.checkpoint.keep is 0; write 2 or more"),
        ("checkpoint.keep", 1, "config.checkpoint.keep is 1; write 2 or more"),
        ("encoders.image.layers", -1, "config.encoders.image.layers is -1; write 1 or more"),
        ("fusion.layers", 0, "config.fusion.layers is 0; write 1 or more"),
        ("encoders.image.width", 0, "config.encoders.image.width is 0; write 1 or more"),
        ("encoders.text.width", -4, "config.encoders.text.width is -4; write 1 or more"),
        ("fusion.hidden", 0, "config.fusion.hidden is 0; write a number above 0"),
        ("encoders.image.patch", 0, "config.encoders.image.patch is 0; write 1 or more"),
        ("encoders.text.positions", 0, "config.encoders.text.positions is 0; write 1 or more"),
        ("encoders.image.neck_layers", -1, "config.encoders.image.neck_layers is -1; write 0 or more"),
        ("encoders.text.head_hidden", -1, "config.encoders.text.head_hidden is -1; write 0 or more"),
        ("optimizer.clip", -1.0, "config.optimizer.clip is -1.0; write 0 or more"),
        ("optimizer.b1", -0.1, "config.optimizer.b1 is -0.1; write 0 to below 1, such as 0.9"),
        ("optimizer.b2", 1.0, "config.optimizer.b2 is 1.0; write 0 to below 1, such as 0.9"),
        ("optimizer.max_skips", 0, "config.optimizer.max_skips is 0; write 1 or more"),
        ("optimizer.end_lr", 1.5, "config.optimizer.end_lr is 1.5; write a share of config.optimizer.lr, from 0 to 1"),
        ("eval.rerank", (8, 0), "config.eval.rerank is (8, 0); write lengths of 1 or more such as (16, 32), or ()"),
        ("encoders.image.size", 0, "config.encoders.image.size is 0; write 8 or more"),
        ("data.threads", 0, "config.data.threads is 0; write 1 or more"),
        ("fusion.heads", 5, "config.fusion.heads is 5, which does not divide config.fusion.width=384"),
        (
            "joint.temperature",
            0.9,
            "config.joint.temperature is 0.9, outside 0.01 to 0.5; "
            "write a number between temperature_min and temperature_max",
        ),
        ("teacher.momentum", 1.5, "config.teacher.momentum is 1.5; write 0 to 1"),
        (
            "encoders.image.kind",
            "features",
            "config.encoders.image.kind is 'features' but config.data.features is empty",
        ),
        ("encoders.image.patch", 15, "not a multiple of config.encoders.image.patch=15"),
    ],
)
def test_impossible_values_are_refused(path, value, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        freeze(changed(path, value))


@pytest.mark.parametrize(
    "sections, sentence",
    [
        (
            {"image": {"kind": "resnet", "depth": 34}},
            "config.encoders.image.depth is 34; write one of 14, 26, 50, 101, 152",
        ),
        (
            {"image": {"kind": "resnet", "width": 100}},
            "config.encoders.image.width is 100; a ResNet takes multiples of 32, such as",
        ),
        (
            {"image": {"pool": "mean+shared"}},
            "config.encoders.text.pool='mean' does not go through the shared transformer; "
            "write config.encoders.text.pool='mean+shared'",
        ),
        (
            {"text": {"pool": "cls+shared"}},
            "config.encoders.image.pool='mean' does not go through the shared transformer",
        ),
        (
            {"image": {"pool": "mean+shared"}, "text": {"pool": "mean+shared"}, "joint": {"shared_heads": 5}},
            "config.joint.shared_heads is 5, which does not divide config.fusion.width=384; write a divisor",
        ),
        (
            {"text": {"kind": "tfidf", "pool": "mean+attention"}},
            "config.encoders.text.pool is 'mean+attention', but config.encoders.text.kind",
        ),
        (
            {"text": {"kind": "tfidf", "init": "minilm"}},
            "config.encoders.text.init is 'minilm', but config.encoders.text.kind is 'tfidf', not",
        ),
        (
            {"text": {"kind": "tfidf", "cache_tokens": True}},
            "config.encoders.text.cache_tokens is True, but config.encoders.text.kind is 'tfidf', not 'bert'",
        ),
    ],
)
def test_towers_that_do_not_fit_are_refused(sections, sentence):
    values = defaults().to_dict()
    for section, fields in sections.items():
        values.get(section, values["encoders"].get(section)).update(fields)
    with pytest.raises(UserError, match=re.escape(sentence)):
        freeze(values)


def test_an_aggregator_alone_does_not_start_from_cca():
    values = changed("encoders.text.pool", "gpo")
    freeze(values)
    values["joint"]["start"] = "cca"
    with pytest.raises(
        UserError, match=r"config.encoders.text.pool='gpo' has no linear path to start; write .*='mean\+gpo'"
    ):
        freeze(values)


def test_whole_numbers_are_fine_as_floats_and_lists_as_tuples():
    config = freeze(changed("optimizer.clip", 2) | {"eval": {"rerank": [4, 8]}})
    assert config.optimizer.clip == 2.0 and isinstance(config.optimizer.clip, float)
    assert config.eval.rerank == (4, 8)


def test_evaluation_reads_the_data_section_with_its_own_views_and_languages():
    values = defaults().to_dict() | {"data": {"views": ("a", "b"), "languages": ("en-tags",)}}
    config = freeze(values)
    assert config.eval_data == config.data
    other = freeze(values | {"eval": {"views": ("c",), "languages": ("en",)}})
    assert other.eval_data == dataclasses.replace(other.data, views=("c",), languages=("en",))
    assert freeze(values | {"eval": {"views": ("c",)}}).eval_data.languages == ("en-tags",)


def with_objectives():
    """Defaults with two objectives."""
    config = defaults()
    config.objectives = {"itc": {"queue": 8}, "itm": {}}
    return config


@pytest.mark.parametrize(
    "item, read, value",
    [
        ("steps=5", lambda c: c.steps, 5),
        ("optimizer.lr=1e-4", lambda c: c.optimizer.lr, 1e-4),
        ("name=7", lambda c: c.name, "7"),
        ("data.path=some/folder", lambda c: c.data.path, "some/folder"),
        ("data.path=a=b", lambda c: c.data.path, "a=b"),
        ("eval.rerank=(4,)", lambda c: c.eval.rerank, (4,)),
        ("eval.rerank=()", lambda c: c.eval.rerank, ()),
        ('optimizer.groups=(("^text/tower/",0.1),)', lambda c: c.optimizer.groups, (("^text/tower/", 0.1),)),
        ("teacher.warmup=True", lambda c: c.teacher.warmup, True),
        ("objectives.itc.alpha=0.1", lambda c: c.objectives["itc"], {"queue": 8, "alpha": 0.1}),
        ("objectives.hash={}", lambda c: c.objectives["hash"], {}),
        (
            "objectives.mine={'kind': 'hash', 'weight': 0.1}",
            lambda c: c.objectives["mine"],
            {"kind": "hash", "weight": 0.1},
        ),
        ("objectives.itm.weight=((0,0.0),(9,1.0))", lambda c: c.objectives["itm"], {"weight": ((0, 0.0), (9, 1.0))}),
    ],
)
def test_overrides_change_one_field(item, read, value):
    config = with_objectives()
    override(config, item)
    assert read(freeze(config)) == value


@pytest.mark.parametrize(
    "item, sentence",
    [
        ("steps", "'--config.steps' has no value; write --config.steps=VALUE"),
        ("optimiser.lr=1", "'optimiser' is not a field of config; did you mean 'optimizer'?"),
        ("optimizer.lrr=1", "'lrr' is not a field of config.optimizer; did you mean 'lr'?"),
        ("steps.more=1", "'config.steps' is a value, not a section; there is no 'steps.more'"),
        *(
            (
                f"objectives.hash={odd}",
                "config.objectives has no 'hash'; to add it write config.objectives.hash={} or",
            )
            for odd in ("0.1", "{weight: 0.1}", "{1: 2}", "{'a.b': 1}", "{'kind': []}", "{[]: 1}")
        ),
        ("objectives.itcc.alpha=1", "'itcc' is not a field of config.objectives; did you mean 'itc'?"),
    ],
)
def test_overrides_of_what_is_not_there_are_refused(item, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        override(with_objectives(), item)


def test_an_override_of_the_wrong_type_is_refused_at_the_door():
    config = with_objectives()
    override(config, "steps=many")
    with pytest.raises(UserError, match="config.steps is 'many'"):
        freeze(config)


def test_load_applies_overrides_and_refuses_a_missing_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from xmodal_jax.settings import defaults\n\ndef get_config(variant='a'):\n"
        "    config = defaults()\n    config.name = variant\n    return config\n"
    )
    assert load(str(path)).name == "a"
    assert load(f"{path}:b", ["steps=3", "encoders.image.width=6"]).to_dict()["encoders"]["image"]["width"] == 6
    with pytest.raises(UserError, match="there is no config file '.*other.py'; write a .py file"):
        load(str(tmp_path / "other.py"))


@pytest.mark.parametrize(
    "text, spec, sentence",
    [
        (
            "x = 1\ndef get_config(:\n",
            "",
            "the config file '{path}', line 2, fails with SyntaxError: invalid syntax; correct the file",
        ),
        (
            "import no_such_module\n",
            "",
            "line 1, fails with ModuleNotFoundError: No module named 'no_such_module'; correct",
        ),
        (
            "def get_config():\n    return 1 / 0\n",
            "",
            "line 2, fails with ZeroDivisionError: division by zero; correct the file",
        ),
        (
            "def get_config():\n    return 1\n",
            ":a",
            "get_config of '{path}' takes no variant; write '{path}' without ':a'",
        ),
        (
            "def get_config(variant):\n    return 1\n",
            "",
            "get_config of '{path}' needs arguments; write '{path}:VARIANT'",
        ),
        (
            "def get_config():\n    pass\n",
            "",
            "get_config of '{path}' returns NoneType; write `return config` with the",
        ),
        (
            "def get_config():\n    return {{}}\n",
            "",
            "get_config of '{path}' returns dict; write `return config` with the",
        ),
        ("config = 1\n", "", "'{path}' has no function get_config; write one"),
    ],
)
def test_a_config_file_that_fails_is_refused_in_one_sentence(tmp_path, text, spec, sentence):
    path = tmp_path / "mine.py"
    path.write_text(text.replace("{{}}", "{}"))
    with pytest.raises(UserError, match=re.escape(sentence.replace("{path}", str(path)))) as caught:
        load(f"{path}{spec}")
    assert "\n" not in str(caught.value)


def test_a_mistyped_field_in_a_config_file_is_one_sentence_and_its_own_refusals_stay(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from xmodal_jax.settings import defaults, variant_of\n\ndef get_config(variant='a'):\n"
        "    variant_of(variant, ('a',), 'mine.py')\n    config = defaults()\n"
        "    config.imgae.width = 3\n    return config\n"
    )
    with pytest.raises(UserError, match="line 6, fails with AttributeError: .*imgae") as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="^'b' is not a variant of mine.py; write one of a$"):
        load(f"{path}:b")


@pytest.mark.parametrize("points", [((10, 0.0), (0, 1.0)), ((0, 0.0), (5, 1.0), (5, 2.0))])
def test_points_of_a_schedule_out_of_order_are_refused(points):
    with pytest.raises(
        UserError, match="objectives.itc.weight is .* whose steps do not ascend; write the points in the"
    ):
        build_objectives({"itc": {"weight": points}})


def test_two_objectives_that_fill_one_queue_are_refused():
    both = {"a": {"kind": "itc", "queue": 8}, "b": {"kind": "itc", "queue": 4}}
    sentence = (
        "config.objectives.a .queue=8, bridge=False.* and config.objectives.b .queue=4.* into one ring, 'keys/image'"
    )
    with pytest.raises(UserError, match=sentence):
        build_objectives(both)
    apart = {"b": {"kind": "itc", "queue": 4, "keys": "short"}, "siglip": {"queue": 4, "keys": "short"}}
    assert len(build_objectives(both | apart)) == 3


def test_unknown_key_lists_what_is_known_when_nothing_is_near():
    assert str(unknown_key("qqq", "here", ["b", "a"])) == "'qqq' is not a field of here; known: a, b"
