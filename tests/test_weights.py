"""Weights that a config names: their statistics of pixels and architecture are used, kept with the run, or refused."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch_layers import randomise

from xmodal_jax.assemble import assemble, reassemble
from xmodal_jax.config_file import freeze, load
from xmodal_jax.convert.described import read_statistics
from xmodal_jax.convert.huggingface import load_minilm, load_vit, read_weights, save_tower
from xmodal_jax.errors import UserError
from xmodal_jax.models import ENCODERS
from xmodal_jax.settings import as_dict
from xmodal_jax.training.cca_cache import settings
from xmodal_jax.training.checkpoint import write_run
from xmodal_jax.training.loop import with_kept_facts
from xmodal_jax.weights import pretrained, with_pixel_statistics

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
VIT, BERT = SIZES | dict(image_size=16, patch_size=8), SIZES | dict(max_position_embeddings=16)


def tiny(*overrides):
    """The tiny quickstart with pictures of 16 pixels."""
    return freeze(load(f"{CONFIG}:tiny", ["encoders.image.size=16", *overrides]))


def edit(path, **changes):
    """Change keys of a JSON file; None takes one away."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def tell_statistics(folder):
    """Write ImageNet's statistics beside the weights."""
    said = {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A tiny random ViTModel of Hugging Face and the folder it is saved in, without statistics."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    model = randomise(ViTModel(ViTConfig(**VIT, layer_norm_eps=1e-6), add_pooling_layer=False))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def vit_folder(vit, tmp_path):
    """A copy of the ViT's folder that a test may change."""
    shutil.copytree(vit[1], tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny random BertModel of 60 words and the folder it is saved in."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    randomise(BertModel(BertConfig(**BERT, vocab_size=60))).save_pretrained(folder)
    return folder


def tower(config):
    """Our image tower."""
    return config.encoders["image"].module(jnp.float32)


def tokens(config, params, image):
    """What our image tower makes of pictures."""
    return np.asarray(tower(config).apply({"params": params}, image))


@pytest.mark.parametrize("statistics", [IMAGENET, CLIP, HALF], ids=["imagenet", "clip", "half"])
def test_tokens_are_hugging_faces_whatever_the_weights_statistics(vit, vit_folder, statistics, rng):
    from transformers import ViTImageProcessorPil

    mean, std = map(list, statistics)
    processor = ViTImageProcessorPil(image_mean=mean, image_std=std, do_resize=False)
    processor.save_pretrained(vit_folder)
    image = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        pixels = processor(list(image), return_tensors="pt")["pixel_values"]
        expected = vit[0](pixels).last_hidden_state.numpy()
    config = with_pixel_statistics(tiny(f"encoders.image.init={vit_folder}"))
    found = tokens(config, load_vit(vit_folder), image)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    other = tokens(with_pixel_statistics(tiny("encoders.image.pixel_mean=(0.1,0.1,0.1)")), load_vit(vit_folder), image)
    assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, 0.5, 0.2),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 0.5, 0.5),
        ({"image_mean": None, "image_std": None}, 0.5, 0.5),
        ({"image_mean": 0.25, "image_std": [0.5] * 3}, 0.25, 0.5),
    ],
)
def test_what_the_preprocessor_file_turns_off_or_scales_is_counted(tmp_path, said, mean, std):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = read_statistics(tmp_path, HALF)
    np.testing.assert_allclose(found, ((mean,) * 3, (std,) * 3), rtol=1e-12)


def test_statistics_stay_with_the_run_when_the_weights_folder_is_gone(shapes_data, vit_folder, tmp_path):
    tell_statistics(vit_folder)
    config = tiny(f"data.path={shapes_data}", f"encoders.image.init={vit_folder}")
    assembly = assemble(config)
    assert (assembly.config.encoders["image"].pixel_mean, assembly.config.encoders["image"].pixel_std) == IMAGENET
    shutil.rmtree(vit_folder)
    shutil.copy(assembly.tokenizer.path, tmp_path / "tokenizer-text.json")
    description = json.loads(json.dumps(assembly.describe()))
    assert reassemble(description, tmp_path).model == assembly.model
    write_run(tmp_path, description | {"data": {}})
    assert with_kept_facts(config, tmp_path) == config, "nothing is trained yet: the weights named now tell"
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    resumed = with_pixel_statistics(with_kept_facts(config, tmp_path))  # what a resumed training does
    assert resumed.encoders["image"] == assembly.config.encoders["image"]


def test_without_a_preprocessor_file_it_is_said_which_statistics_are_assumed(vit_folder, caplog):
    config = with_pixel_statistics(tiny(f"encoders.image.init={vit_folder}"))
    assert (config.encoders["image"].pixel_mean, config.encoders["image"].pixel_std) == HALF
    assert f"no preprocessor_config.json tells how '{vit_folder}' reads pixels" in caplog.text
    assert "pixel_mean=(0.5, 0.5, 0.5)" in caplog.text
    caplog.clear()
    assert with_pixel_statistics(tiny()).encoders["image"].pixel_std == HALF[1]
    assert not caplog.text  # from scratch there is nothing to say


@pytest.mark.parametrize("kind", [kind for kind, own in ENCODERS.items() if own.reads == "pixels"])
def test_a_kinds_own_statistics_written_out_give_the_same_bits(kind, rng):
    sizes = {
        "resnet": {"depth": 14, "width": 32},
        "vit": {"width": 32, "layers": 1, "heads": 2, "hidden": 64, "patch": 8},
    }
    plain = tiny(f"encoders.image={ {'kind': kind} | sizes.get(kind, {}) }", "encoders.image.size=32")
    written = with_pixel_statistics(plain)
    assert written.encoders["image"].statistics == ENCODERS[kind].standard
    image = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    params = jax.jit(tower(plain).init)(jax.random.key(0), image)["params"]

    def run(config):
        return jax.jit(lambda p, x: tower(config).apply({"params": p}, x))(params, image)

    np.testing.assert_array_equal(run(plain), run(written))


def test_other_statistics_than_the_weights_are_refused(vit_folder):
    tell_statistics(vit_folder)
    config = tiny(f"encoders.image.init={vit_folder}", "encoders.image.pixel_mean=(0.5,0.5,0.5)")
    with pytest.raises(UserError, match=r"pixel_mean is \(0.5, 0.5, 0.5\), and the weights .* \(0.485, 0.456, 0.406\)"):
        pretrained(config)
    with pytest.raises(
        UserError, match=r"pixel_std is \(0.2, 0.2, 0.2\), and the weights of .*'lite0'"
    ):  # of published weights too
        pretrained(tiny("encoders.image={'kind': 'efficientnet', 'init': 'lite0', 'pixel_std': (0.2, 0.2, 0.2)}"))


@pytest.mark.parametrize("values", ["(0.5,0.5)", "(0.5,0.5,-1.0)"])
def test_numbers_that_are_no_statistics_are_refused(values):
    with pytest.raises(UserError, match=r"image.pixel_std is .*; write three numbers"):
        tiny(f"encoders.image.pixel_std={values}")
    with pytest.raises(
        UserError, match="'pixel_mean' is not a field of config.encoders.image; known"
    ):  # it reads no pixels
        tiny("encoders.image={'kind': 'features', 'pixel_mean': (0.5, 0.5, 0.5)}", "data.features=('lite0-128',)")


@pytest.mark.parametrize("said", [{"image_mean": [0.5, 0.5]}, {"image_std": [0, 1, 1]}, {"rescale_factor": "1/255"}])
def test_a_preprocessor_file_with_nonsense_is_refused(tmp_path, said):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=f"{next(iter(said))} .*no statistic of three colours"):
        read_statistics(tmp_path, HALF)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "num_attention_heads",
            4,
            "heads is 2, and num_attention_heads of .* is 4; write config.encoders.image.heads=4",
        ),
        ("num_hidden_layers", 3, "write config.encoders.image.layers=3"),
        ("hidden_size", 48, "write config.encoders.image.width=48"),
        ("intermediate_size", 128, "write config.encoders.image.hidden=128"),
        ("patch_size", 4, "write config.encoders.image.patch=4"),
        ("image_size", 32, "write config.encoders.image.size=32"),
        ("hidden_act", "relu", "hidden_act of .* is 'relu', and the tower 'vit' has 'gelu', which no field"),
        ("layer_norm_eps", 1e-3, "layer_norm_eps of .* is 0.001"),
        (
            "model_type",
            "clip",
            "the weights are of a 'clip' model, and config.encoders.image.kind='vit' takes those of a 'vit'",
        ),
    ],
)
def test_a_vit_of_another_architecture_is_refused(vit_folder, key, value, sentence):
    edit(vit_folder / "config.json", **{key: value})
    with pytest.raises(UserError, match=sentence):
        pretrained(tiny(f"encoders.image.init={vit_folder}"))
    with pytest.raises(UserError, match=sentence):  # the file in the folder is the same weights
        pretrained(tiny(f"encoders.image.init={vit_folder / 'model.safetensors'}"))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("num_attention_heads", 4, "write config.encoders.text.heads=4"),
        (
            "vocab_size",
            61,
            r"config.encoders.text.vocab_size is 60, .*; write config.encoders.text.tokenizer=.*tokenizer.json",
        ),
        ("max_position_embeddings", 32, "write config.encoders.text.positions=32"),
        ("position_embedding_type", "relative_key", "position_embedding_type of .* is 'relative_key'"),
        ("is_decoder", True, "is_decoder of .* is True"),
        ("model_type", "roberta", "the weights are of a 'roberta' model"),
    ],
)
def test_a_bert_of_another_architecture_is_refused(bert, tmp_path, key, value, sentence):
    folder = shutil.copytree(bert, tmp_path / "bert")
    config = tiny(f"encoders.text.init={folder}", "encoders.text.vocab_size=60")
    found = {"/".join(path.split("/")[:3]) for path in pretrained(config)}
    assert {f"text/tower/{name}" for name in load_minilm(folder)} <= found
    edit(folder / "config.json", **{key: value})
    with pytest.raises(UserError, match=sentence):
        pretrained(config)


def test_the_installed_minilm_has_twelve_heads():
    text = "encoders.text={'kind': 'bert', 'init': 'minilm', 'heads': 8, 'vocab_size': 30522}"
    with pytest.raises(UserError, match="text.heads is 8, .* write config.encoders.text.heads=12"):
        pretrained(tiny(text, "fusion.heads=8"))


def test_a_resnet_of_another_architecture_is_refused(tmp_path):
    described = {"model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64], "hidden_act": "relu"}
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    refused = {
        "write config.encoders.image.depth=26": {"depths": [2, 2, 2, 2]},
        "no depth of this package": {"depths": [2, 2]},
        "write config.encoders.image.width=128": {"hidden_sizes": [16, 32, 64, 128]},
        "downsample_in_bottleneck of .* is True": {"downsample_in_bottleneck": True},
        "layer_type of .* is 'basic'": {"layer_type": "basic"},
        "it is no ResNet": {},  # what config.json says is right, the weights are not
    }
    for sentence, change in refused.items():
        (tmp_path / "config.json").write_text(json.dumps(described | change))
        with pytest.raises(UserError, match=sentence):
            pretrained(tiny(f"encoders.image={ {'kind': 'resnet', 'depth': 14, 'width': 64, 'init': str(tmp_path)} }"))


def test_weights_without_a_config_file_say_what_is_taken_for_granted(vit_folder, caplog):
    (vit_folder / "config.json").unlink()
    pretrained(tiny(f"encoders.image.init={vit_folder}"))
    assert "config.encoders.image.heads=2 is assumed" in caplog.text


def test_damaged_files_are_one_sentence(vit_folder):
    config = tiny(f"encoders.image.init={vit_folder}")
    whole = (vit_folder / "model.safetensors").read_bytes()
    for content in (whole[:40], whole[: len(whole) // 2], b"", b"<html>not found</html>", whole[:8] + b"x" * 100):
        (vit_folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="not a readable safetensors file"):
            pretrained(config)
    for content in (b"{", b"[1]", b"\xff\xfe{", b"[" * 100_000):
        (vit_folder / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config.json' (cannot be read as JSON|holds a list)"):
            pretrained(config)
    (vit_folder / "config.json").unlink()
    (vit_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        pretrained(config)
    (vit_folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="cut into several files"):
        pretrained(config)


def test_weights_of_another_shape_are_one_sentence(vit_folder):
    state = read_weights(vit_folder)
    for name, leaf in (
        ("encoder.layer.1.output.dense.bias", np.zeros(5, np.float32)),
        ("embeddings.patch_embeddings.projection.weight", np.zeros((4, 4), np.float32)),
    ):
        save_file(state | {name: leaf}, vit_folder / "model.safetensors")
        with pytest.raises(UserError, match="does not have the shape of this architecture"):
            pretrained(tiny(f"encoders.image.init={vit_folder}"))


def test_pytorchs_own_file_of_weights_is_read(vit_folder):
    expected = load_vit(vit_folder)
    state = {name: torch.tensor(leaf) for name, leaf in read_weights(vit_folder).items()}
    torch.save(state, vit_folder / "pytorch_model.bin")
    (vit_folder / "model.safetensors").unlink()
    jax.tree.map(np.testing.assert_array_equal, load_vit(vit_folder), expected)


def test_hugging_face_reads_a_saved_tower_with_its_statistics_and_heads(vit, bert, tmp_path, rng):
    from transformers import BertModel, ViTImageProcessorPil, ViTModel

    own = (
        "encoders.image.pixel_mean=(0.4,0.5,0.6)",
        "encoders.image.pixel_std=(0.2,0.3,0.4)",
        "encoders.text.vocab_size=60",
    )
    config = with_pixel_statistics(tiny(*own))
    save_tower(tmp_path / "vit", load_vit(vit[1]), config.encoders["image"])
    image = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = ViTImageProcessorPil.from_pretrained(tmp_path / "vit")(list(image), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = ViTModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False).eval()(pixels)
    expected = theirs.last_hidden_state.numpy()
    assert np.abs(tokens(config, load_vit(vit[1]), image) - expected).max() < 1e-5 * np.abs(expected).max()
    save_tower(tmp_path / "bert", load_minilm(bert), config.encoders["text"])
    again = BertModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False)
    assert again.config.num_attention_heads == 2
    saved = {"image": tmp_path / "vit", "text": tmp_path / "bert"}
    read = {name: dataclasses.replace(config.encoders[name], init=str(folder)) for name, folder in saved.items()}
    found = pretrained(dataclasses.replace(config, encoders=read))
    assert {path.split("/")[0] for path in found} == {"image", "text"}


def test_a_start_from_cca_depends_on_the_statistics_and_the_heads(shapes_data):
    def said(*overrides):
        return json.dumps(settings(tiny(f"data.path={shapes_data}", *overrides)))

    changes = (
        "encoders.image.pixel_mean=(0.1,0.1,0.1)",
        "encoders.image.pixel_std=(0.1,0.1,0.1)",
        "encoders.image.heads=4",
        "encoders.text.heads=4",
    )
    assert len({said(), *map(said, changes)}) == 1 + len(changes)
    assert as_dict(tiny())["encoders"]["image"]["pixel_mean"] == ()
