"""The methods' configs: every variant is valid and its sizes fit (the tiny ones train in training/test_loop.py)."""

import pathlib
import re

import jax
import pytest
from flax.traverse_util import flatten_dict

from xmodal_jax.assemble import abstract_params, assemble_without_data
from xmodal_jax.config_file import freeze, load
from xmodal_jax.data.fields import batch_fields
from xmodal_jax.models import crossmodal
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.base import at
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.planning.program import batch_shapes
from xmodal_jax.presets import TABLE, finetuned
from xmodal_jax.training.loop import make_run
from xmodal_jax.training.optimizer import factor_for
from xmodal_jax.training.step import total_loss

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
VARIANTS = {
    "recap": (*TABLE, "stamps", "start", "start_flickr8k", "inaturalist", "start_inaturalist", "tiny"),
    "mtgfe": (*TABLE, "emoji_views_plain", "flickr8k_plain", "remote_sensing", "tiny"),
    "adequate_alignment": (*TABLE, "tiny"),
    "tecmh": (*TABLE, "pixels", "tiny"),
    "vit2cmh": (*TABLE, "pixels", "tiny"),
    "cmhr_drn": ("emoji_views", "openclipart", "pixels", "tiny"),
    "vse_infinity": ("features", "finetune", "regions", "tiny"),
    "rcar": ("features", "itc", "two", "tiny"),
    "mvsen": ("features", "regions", "sgr", "tiny"),
    "m_clip": ("features", "words", "frozen", "contrast", "english", "tiny"),
    "mla": ("transfer", "exposure", "add", "tiny"),
    "mlmm": ("features", "captions", "tiny", "captions_tiny"),
    "vqa": ("features", "emoji", "tiny"),
}


@pytest.mark.parametrize(("name", "variant"), [(name, own) for name, all_of in VARIANTS.items() for own in all_of])
def test_a_variant_is_valid(name, variant):
    config = freeze(load(f"{FOLDER / name}.py:{variant}"))
    assert config.name == f"{name}-{variant}"
    assembly = assemble_without_data(config)
    have = set(batch_fields(assembly.config, assembly.facts))
    assert all(have.issuperset(item.reads) for item in assembly.objectives.values())
    params = abstract_params(assembly)  # sizes fit each other
    assert "bridge" in params or name != "recap" or variant.startswith("start")


@pytest.mark.parametrize("name", ["recap", "mtgfe", "adequate_alignment", "quickstart", "flickr8k"])
def test_one_line_turns_hashing_on(name):
    variant = ":tiny" if name in VARIANTS else ""
    line = "objectives.hash_triplet={}"
    config = freeze(load(f"{FOLDER / name}.py{variant}", [line, "encoders.text.vocab_size=64", "joint.nested=(8,)"]))
    assert "hash_triplet" in build_objectives(config.objectives, config.batch_size)
    params = abstract_params(assemble_without_data(config))
    assert "hash" in params["image"] and "hash" in params["text"]


PAIRS = [(name, variant) for name in ("tecmh", "vit2cmh") for variant in VARIANTS[name]]


@pytest.mark.parametrize(("name", "variant"), PAIRS)
def test_codes_of_pairs_are_trained_by_what_the_docstring_says(name, variant):
    """Quantisation from 0.1 to 1 over the run, no decorrelation; balance 1, for 0.01 let codes collapse."""
    config = freeze(load(f"{FOLDER / name}.py:{variant}"))
    quality = build_objectives(config.objectives)["hash_quality"]

    def weighed(part, step):
        return round(float(at(quality.weight, step) * at(getattr(quality, part), step)), 6)

    steps = (0, config.steps // 2, config.steps)
    assert [weighed("quantization", step) for step in steps] == [0.1, 0.55, 1.0]
    assert [weighed("balance", step) for step in steps] == [1.0] * 3
    assert [weighed("decorrelation", step) for step in steps] == [0.0] * 3


@pytest.mark.parametrize(("name", "variant"), PAIRS)
def test_the_hardest_negative_waits_where_the_embedding_starts_at_random(name, variant):
    """About one epoch (VSE++, VSE-infinity); from CCA the codes' order is good from the first step."""
    config = freeze(load(f"{FOLDER / name}.py:{variant}"))
    waits = build_objectives(config.objectives)["hash_triplet"].mean_steps
    epoch = {"pixels": 145_000 / config.batch_size, "tiny": 5}.get(variant, 0)
    assert (config.joint.start == "random") == (waits > 0)
    assert abs(waits - epoch) <= 0.05 * epoch


GRU = "encoders.text={'kind':'gru','tokenizer':'minilm','width':768}"
CACHED = (
    "encoders.text.kind=gru",
    "encoders.text.init=",
    "encoders.text.tokenizer=data",
    "encoders.text.cache_tokens=False",
    "optimizer.freeze=",
    "joint.start=random",
)


@pytest.mark.parametrize(
    ("variant", "fresh", "image_rate"),
    [
        ("pixels", (GRU, "optimizer.groups=(('^image/tower/',0.01),)"), 0.01),
        ("flickr8k", (*CACHED, "optimizer.groups=()"), 1.0),
        ("flickr8k_finetune", (*CACHED, "optimizer.groups=(('^image/tower/',0.1),)"), 0.1),
    ],
)
def test_a_text_tower_from_scratch_learns_at_the_whole_rate_as_the_docstrings_say(variant, fresh, image_rate):
    vit2cmh = (FOLDER / "vit2cmh.py").read_text().split('"""')[1]
    said = re.findall(r"--config\.([^\s`]+=[^\s`]*)", vit2cmh + finetuned.__doc__)
    assert set(fresh) <= set(said)
    config = freeze(load(f"{FOLDER}/vit2cmh.py:{variant}", list(fresh)))
    params = abstract_params(assemble_without_data(config))
    rates = {factor_for(f"text/{path}", config.optimizer.groups) for path in flatten_dict(params["text"], sep="/")}
    assert rates == {1.0} and not config.optimizer.freeze and not config.encoders["text"].cache_tokens
    assert factor_for("image/tower/x", config.optimizer.groups) == image_rate
    assert config.encoders["text"].kind == "gru" and factor_for("image/head/x", config.optimizer.groups) == 1.0


@pytest.mark.parametrize(("name", "tower"), [("tecmh", 0.1), ("vit2cmh", 0.01)])
def test_towers_learn_more_slowly_than_heads(name, tower):
    """The two rates of the docstrings: what stands on a tower takes the whole one, and so do its neck and its codes."""
    groups = freeze(load(f"{FOLDER / name}.py:pixels")).optimizer.groups
    for side in ("image", "text"):
        assert factor_for(f"{side}/tower/layers/mlp/up/kernel", groups) == tower
        assert {factor_for(f"{side}/{part}/x", groups) for part in ("head", "hash", "neck")} == {1.0}


def abstract_batch(run):
    """Shapes of a batch, of no mesh."""
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in batch_shapes(run).items()}


def untrained(spec, *overrides):
    """Find the leaves whose gradient is zero whatever the weights and the batch are. Nothing is compiled."""
    run = make_run(
        assemble_without_data(freeze(load(spec, ["encoders.text.vocab_size=64", *overrides]))), jax.devices()[:1]
    )
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), run.abstract)

    def gradient(params, state, batch):
        def loss(params):
            return total_loss(run.recipe, params, state, batch, jax.random.key(0))[0]

        return jax.grad(loss)(params)

    traced = jax.make_jaxpr(gradient)(abstract.params, abstract, abstract_batch(run)).jaxpr
    told = set(traced.invars)
    for eqn in traced.eqns:
        if any(var in told for var in eqn.invars if not hasattr(var, "val")):  # a literal has its value
            told.update(eqn.outvars)
    named = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract.params)]
    return {name for name, var in zip(named, traced.outvars, strict=True) if hasattr(var, "val") or var not in told}


TINY = [f"{name}.py:tiny" for name in ("quickstart", "flickr8k", *VARIANTS)]


@pytest.mark.parametrize("spec", [*TINY, "mlmm.py:captions_tiny"])
def test_every_parameter_has_a_gradient(spec):
    fixed = {"text/tower/idf"} if spec.startswith("cmhr_drn") else set()  # counted, not trained
    assert untrained(f"{FOLDER}/{spec}") == fixed


def test_mlmm_writes_captions_in_two_languages():
    """The captioner is there where it is asked for, with a start for each language; the other variants have none."""
    for variant, starts in (("tiny", ()), ("captions_tiny", ("en", "de")), ("captions", ("en", "de"))):
        assembly = assemble_without_data(freeze(load(f"{FOLDER}/mlmm.py:{variant}")))
        assert assembly.model.starts == assembly.facts.starts == starts
        fields = batch_fields(assembly.config, assembly.facts)
        told = {name for name in fields if name.endswith("/language")}
        assert told == ({"text/language", "text2/language"} if starts else set()), "a parallel text has two"
        decoder = abstract_params(assembly).get("decoder", {})
        width = assembly.config.fusion.width
        assert decoder["start"].shape == (2, width) if starts else decoder == {}


def test_what_nothing_reads_is_found(monkeypatch):
    """The tests above can fail: a neck under codes alone is told."""
    monkeypatch.setattr(crossmodal, "READERS", frozenset({"hash"}))
    found = untrained(f"{FOLDER}/vit2cmh.py:tiny")
    assert {"/".join(name.split("/")[:2]) for name in found} == {"image/neck"} and len(found) > 4


@pytest.mark.parametrize(
    ("spec", "size", "length"),
    [
        ("cmhr_drn.py:pixels", 224, 64),
        ("cmhr_drn.py:tiny", 32, 12),
        ("cmhr_drn.py:openclipart", 0, 20),
        ("quickstart.py", 0, 10),
        ("quickstart.py:large", 224, 32),
        ("quickstart.py:finetune", 128, 10),
        ("flickr8k.py:finetune", 160, 24),
        ("mtgfe.py:remote_sensing", 224, 47),
        ("tecmh.py:pixels", 224, 32),
        ("vit2cmh.py:pixels", 224, 32),
        ("recap.py:stamps", 0, 16),
    ],
)
def test_sizes_are_those_of_the_method(spec, size, length):
    """Encoders that are written whole lose what they do not say; 0: cached tokens."""
    encoders = freeze(load(f"{FOLDER}/{spec}")).encoders
    assert (encoders["image"].extent, encoders["text"].extent) == (size, length)


@pytest.mark.parametrize(
    "spec", ["mtgfe.py:flickr8k", "adequate_alignment.py:emoji_views", "recap.py:flickr8k", "flickr8k.py:finetune"]
)
def test_heads_of_pairs_learn_as_slowly_as_those_of_encoders(spec):
    groups = freeze(load(f"{FOLDER}/{spec}")).optimizer.groups
    paths = (
        "image/head/linear/kernel",
        "text/head/up/kernel",
        "fused_head/project/kernel",
        "joined_head/correct/kernel",
    )
    rates = {factor_for(path, groups) for path in paths}
    assert len(rates) == 1 and rates.pop() < 1.0
    assert factor_for("match/kernel", groups) == factor_for("text/hash/linear/kernel", groups) == 1.0
