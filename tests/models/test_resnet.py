"""ResNet against Hugging Face's: random weights and statistics, by both libraries' names; gradients; single rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from xmodal_jax.convert.resnet import load_resnet
from xmodal_jax.errors import UserError
from xmodal_jax.models import ENCODERS, resnet
from xmodal_jax.models.resnet import MEAN, STAGES, STD, ResNet
from xmodal_jax.weights import tower_weights

DEPTHS, WIDTH, SIZE = (2, 1, 3, 1), 64, 40  # 40 px: grids of 20, 10, 5, 3 and 2, odd ones among them
TORCHVISION = (  # Hugging Face's names -> torchvision's
    (r"^embedder\.embedder\.convolution", "conv1"),
    (r"^embedder\.embedder\.normalization", "bn1"),
    (r"^encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)\.convolution", "layer{}.{}.conv{}"),
    (r"^encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)\.normalization", "layer{}.{}.bn{}"),
    (r"^encoder\.stages\.(\d)\.layers\.(\d)\.shortcut\.convolution", "layer{}.{}.downsample.0"),
    (r"^encoder\.stages\.(\d)\.layers\.(\d)\.shortcut\.normalization", "layer{}.{}.downsample.1"),
)


@pytest.fixture(scope="module", autouse=True)
def small():
    """A depth of its own, with stages of one block and of several."""
    STAGES[9] = DEPTHS
    yield
    del STAGES[9]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A small random ResNetModel, statistics and all, and the folder it is saved in."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    sizes = {"embedding_size": WIDTH // 32, "hidden_sizes": [WIDTH // 8, WIDTH // 4, WIDTH // 2, WIDTH]}
    model = ResNetModel(ResNetConfig(**sizes, depths=list(DEPTHS))).eval()
    for name, leaf in (*model.named_parameters(), *model.named_buffers()):
        if leaf.ndim == 1:  # gamma and variance above zero, beta and mean around it
            positive = name.endswith(("weight", "var"))
            torch.nn.init.uniform_(leaf, 0.5 if positive else -0.5, 1.5 if positive else 0.5)
    folder = tmp_path_factory.mktemp("resnet")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def image():
    """Three random pictures."""
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def pixels(image):
    """What PyTorch's models read."""
    scaled = (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.tensor(scaled).permute(0, 3, 1, 2)


def apply(params, image, **options):
    """Tokens under jit."""
    return jax.jit(lambda p, x: ResNet(9, WIDTH, **options).apply({"params": p}, x))(params, image)


def test_tokens_are_hugging_faces(theirs, image):
    model, folder = theirs
    expected = model(pixels(image)).last_hidden_state.detach()
    tokens = apply(load_resnet(folder), image)
    assert tokens.shape == (3, 4, WIDTH)
    np.testing.assert_allclose(tokens, expected.flatten(2).mT, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(apply(load_resnet(folder), image[1:2]), tokens[1:2], rtol=1e-4, atol=1e-4)


def test_the_same_weights_under_torchvisions_names(theirs, tmp_path):
    model, folder = theirs
    state = {}
    for name, leaf in model.state_dict().items():
        for pattern, place in TORCHVISION:
            if found := re.match(pattern, name):
                at = list(map(int, found.groups()))
                at = [at[0] + 1, at[1], *(number + 1 for number in at[2:])] if at else at
                state[place.format(*at) + name[found.end() :]] = leaf
    assert len(state) == len(model.state_dict()) and "layer3.2.conv3.weight" in state and "layer1.0.bn1.bias" in state
    state["fc.weight"], state["fc.bias"] = torch.zeros(10, WIDTH), torch.zeros(10)  # the classifier
    torch.save(state, tmp_path / "resnet.pth")
    jax.tree.map(np.testing.assert_array_equal, load_resnet(tmp_path / "resnet.pth"), load_resnet(folder))


@pytest.mark.filterwarnings("ignore:.*mkldnn.*", "ignore:TF32.*")
def test_gradients_are_torchs_with_frozen_statistics(theirs, image):
    model, folder = theirs
    params = load_resnet(folder)
    weights = np.random.default_rng(2).normal(size=(3, 4, WIDTH)).astype(np.float32)
    model.zero_grad()
    with torch.backends.mkldnn.flags(enabled=False):  # its convolutions' gradient aborts in a pytest-xdist worker
        (model(pixels(image)).last_hidden_state.flatten(2).mT * torch.tensor(weights)).sum().backward()

    def loss(p):
        return (ResNet(9, WIDTH).apply({"params": p}, image) * weights).sum()

    grads = jax.jit(jax.grad(loss))(params)
    state = dict(model.named_parameters())
    norm, convolution = (f"encoder.stages.2.layers.1.layer.1.{part}" for part in ("normalization", "convolution"))
    np.testing.assert_allclose(
        grads["stage2"]["rest"]["spatial"]["bias"][0], state[f"{norm}.bias"].grad, rtol=1e-3, atol=1e-3
    )
    # y = s * (W x - mean) + beta and our kernel is s * W: dL/dW = s * dL/dkernel.
    stats = dict(model.named_buffers())
    scale = (state[f"{norm}.weight"] / torch.sqrt(stats[f"{norm}.running_var"] + 1e-5)).detach().numpy()
    ours = np.asarray(grads["stage2"]["rest"]["spatial"]["kernel"][0]) * scale
    theirs_ = state[f"{convolution}.weight"].grad.numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(ours, theirs_, rtol=1e-3, atol=1e-3)
    assert np.abs(theirs_).max() > 0.1


def test_a_fresh_tower_is_of_order_one_at_any_depth(image):
    for depth in (14, 50):
        model = ResNet(depth, 32)
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8))["params"]
        tokens = np.asarray(jax.jit(lambda p, x, m=model: m.apply({"params": p}, x))(params, image))
        assert tokens.shape == (3, 4, 32) and 0.05 < tokens.std() < 5
        assert ("rest" in params["stage0"]) == (depth == 50)


def test_bfloat16_stays_bfloat16(theirs, image):
    tokens = apply(load_resnet(theirs[1]), image[:1], dtype=jnp.bfloat16, remat="none")
    assert tokens.dtype == jnp.bfloat16 and np.isfinite(np.asarray(tokens, np.float32)).all()


def test_other_weights_are_refused(theirs, tmp_path):
    state = {name: leaf.numpy() for name, leaf in theirs[0].state_dict().items()}
    basic = {name: leaf for name, leaf in state.items() if ".layer.2." not in name}
    norm = "encoder.stages.1.layers.0.layer.1.normalization.running_var"
    cases = {
        "basic": (basic, "take ResNet-50, 101 or 152"),
        "none": ({"x": np.zeros(2)}, "it is no ResNet"),
        "half": ({k: v for k, v in state.items() if k != norm}, f"weight '{norm}' is missing"),
    }
    for name, (arrays, sentence) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(arrays, path)
        with pytest.raises(UserError, match=f"{name}.safetensors: .*{re.escape(sentence)}"):
            load_resnet(path)


def test_a_config_names_weights_for_the_tower_they_fit(theirs):
    sizes = {"resnet": {"depth": 9, "width": WIDTH}}

    def own(kind, init):
        return ENCODERS[kind](init=str(init), **sizes.get(kind, {}))

    found = tower_weights("config.encoders.image", own("resnet", theirs[1]))
    jax.tree.map(np.testing.assert_array_equal, found, load_resnet(theirs[1]))
    for kind, init, sentence in (
        ("resnet", "lite0", "needs config.encoders.image.kind='efficientnet', not 'resnet'"),
        ("features", "x", "needs config.encoders.image.kind=one of efficientnet, vit, resnet, bert, acquirers, not 'f"),
    ):
        with pytest.raises(UserError, match=sentence):
            tower_weights("config.encoders.image", own(kind, init))


def test_the_maximum_is_taken_over_padding_too():
    x = -np.ones((1, 4, 4, 1), np.float32)
    assert (np.asarray(resnet.max_pool(jnp.asarray(x))) == -1).all()  # padding is below everything, not zero
