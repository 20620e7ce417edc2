"""EfficientNet-Lite0: each piece against PyTorch, chunks against the whole batch, and freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xmodal_jax.models.efficientnet import BLOCKS, WIDTH, EfficientNetLite0, depthwise, map_chunks, same_padding, stem

SHORT = BLOCKS[:3]
SIZE = 40  # gives odd feature maps (20, 10, 5, 3, 2), where "SAME" padding is asymmetric in both ways


def torch_same(x: torch.Tensor, kernel: torch.Tensor, stride: int, groups: int) -> torch.Tensor:
    """TensorFlow's "SAME" convolution of x [b,C,H,W] in PyTorch, which has no such padding for strides."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel.shape[2] - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), kernel, stride=stride, groups=groups)


def torch_tower(params: dict, image: np.ndarray, blocks: tuple = BLOCKS) -> tuple[torch.Tensor, dict]:
    """The tower in PyTorch from our parameters: image uint8 [B,H,W,3] -> [B,N,1280], and the weights by path."""
    weight = {path: torch.tensor(np.asarray(leaf), requires_grad=True) for path, leaf in leaves(params).items()}

    def conv(x, name, stride=1):
        kernel = weight[f"{name}/kernel"]
        if kernel.ndim == 2:
            kernel = kernel.T[:, :, None, None]
        else:
            kernel = (kernel[:, :, None] if kernel.ndim == 3 else kernel).permute(3, 2, 0, 1)
        return torch_same(x, kernel, stride, x.shape[1] // kernel.shape[1]) + weight[f"{name}/bias"][:, None, None]

    x = (torch.tensor(image).float().permute(0, 3, 1, 2) - 127.0) / 128.0
    x = F.relu6(conv(x, "stem", 2))
    for i, shape in enumerate(blocks):
        at = f"block{i:02d}"
        y = F.relu6(conv(x, f"{at}/expand")) if shape.hidden != shape.inputs else x
        y = conv(F.relu6(conv(y, f"{at}/depthwise", shape.stride)), f"{at}/project")
        x = x + y if shape.stride == 1 and shape.inputs == shape.outputs else y
    return F.relu6(conv(x, "head")).flatten(2).mT, weight


def leaves(tree: dict) -> dict:
    """Leaves of a tree by their path, "block01/expand/kernel"."""
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def random_params(blocks: tuple) -> dict:
    """Random weights with biases that are not zero."""
    model = EfficientNetLite0(blocks=blocks)
    fresh = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8))["params"]
    return jax.tree.map(lambda x: x + 0.05 if x.ndim == 1 else x, fresh)


@pytest.fixture(scope="module")
def params():
    """Weights of a tower that ends after the first three blocks (compiling all sixteen takes long)."""
    return random_params(SHORT)


@pytest.fixture(scope="module")
def image():
    """Six random pictures."""
    return np.random.default_rng(1).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)


def apply(params, image, blocks=SHORT, **options):
    """Tokens of the tower under jit."""
    return jax.jit(lambda p, x: EfficientNetLite0(blocks=blocks, **options).apply({"params": p}, x))(params, image)


@pytest.mark.parametrize("size", [4, 5, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_value_and_gradients_match_torch(rng, size, kernel, stride):
    x = rng.normal(size=(2, size, size + 1, 3)).astype(np.float32)
    w = rng.normal(size=(kernel, kernel, 3)).astype(np.float32)
    y, pull = jax.vjp(lambda x, w: depthwise(x, w, stride), x, w)
    g = rng.normal(size=y.shape).astype(np.float32)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    ty = torch_same(tx.permute(0, 3, 1, 2), tw.permute(2, 0, 1)[:, None], stride, 3).permute(0, 2, 3, 1)
    ty.backward(torch.tensor(g))
    np.testing.assert_allclose(y, ty.detach(), atol=1e-5)
    for ours, theirs in zip(pull(g), (tx.grad, tw.grad), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_same_padding_puts_the_odd_pixel_after():
    assert same_padding(8, 3, 2) == (4, 0, 1)
    assert same_padding(7, 3, 2) == (4, 1, 1)
    assert same_padding(8, 5, 2) == (4, 1, 2)


def test_stem_equals_a_convolution(rng):
    x = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
    p = {"kernel": rng.normal(size=(3, 3, 3, 32)).astype(np.float32), "bias": rng.normal(size=32).astype(np.float32)}
    kernel = torch.tensor(p["kernel"]).permute(3, 2, 0, 1)
    expected = F.relu6(
        torch_same(torch.tensor(x).permute(0, 3, 1, 2), kernel, 2, 1) + torch.tensor(p["bias"])[:, None, None]
    )
    np.testing.assert_allclose(stem(p, jnp.asarray(x)), expected.permute(0, 2, 3, 1), atol=1e-5)


def test_the_whole_tower_matches_torch(image):
    params = random_params(BLOCKS)
    expected, _ = torch_tower(params, image[:2])
    tokens = apply(params, image[:2], BLOCKS)
    assert tokens.shape == (2, 4, WIDTH)
    np.testing.assert_allclose(tokens, expected.detach(), atol=1e-4)


def test_gradients_match_torch(params, image, rng):
    weights = rng.normal(size=(6, 100, WIDTH)).astype(np.float32) / 100.0
    expected, theirs = torch_tower(params, image, SHORT)
    (expected * torch.tensor(weights)).sum().backward()
    model = EfficientNetLite0(chunk=2, blocks=SHORT)
    ours = jax.jit(jax.grad(lambda p: (model.apply({"params": p}, image) * weights).sum()))(params)
    for path, gradient in leaves(ours).items():
        np.testing.assert_allclose(gradient, theirs[path].grad, rtol=1e-3, atol=1e-3, err_msg=path)


@pytest.mark.parametrize("chunk", [2, 4, 64])
def test_chunks_change_nothing(params, image, chunk):
    np.testing.assert_allclose(apply(params, image, chunk=chunk), apply(params, image, chunk=0), atol=1e-5)


def test_map_chunks_keeps_the_order_of_rows():
    rows = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(map_chunks(lambda x: x + 1.0, rows, 3), rows + 1.0)


def test_a_frozen_bottom_gets_no_gradient_and_no_backward_pass(params, image):
    frozen = ("stem", "block00", "block01")

    def loss(params, freeze):
        held = {k: jax.lax.stop_gradient(v) if freeze and k in frozen else v for k, v in params.items()}
        return EfficientNetLite0(chunk=2, blocks=SHORT).apply({"params": held}, image).sum()

    full, cut = (jax.jit(jax.grad(loss), static_argnums=1).lower(params, freeze).compile() for freeze in (False, True))
    gradient, reference = leaves(cut(params)), leaves(full(params))
    for path, value in gradient.items():
        if path.startswith(frozen):
            assert not np.asarray(value).any()
        else:
            np.testing.assert_allclose(value, reference[path], rtol=1e-4, atol=1e-3, err_msg=path)
    assert cut.memory_analysis().temp_size_in_bytes < full.memory_analysis().temp_size_in_bytes


def test_bfloat16_stays_bfloat16(params, image):
    tokens = apply(params, image[:2], dtype=jnp.bfloat16)
    assert tokens.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(tokens, np.float32)).all()
