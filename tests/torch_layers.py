"""Hugging Face's BERT layers with random weights, and their weights as our stacked dicts."""

import numpy as np
import torch


def bert(cross: bool, layers: int, width: int, heads: int, hidden: int, vocab: int = 40, positions: int = 16):
    """A tiny random BertModel: an encoder, or with `cross` a decoder that reads another sequence."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(layers)
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=hidden)
    config = BertConfig(
        **sizes,
        vocab_size=vocab,
        max_position_embeddings=positions,
        is_decoder=cross,
        add_cross_attention=cross,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if name.endswith("LayerNorm.weight") else 0.0, std=0.3)
    return model


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight random (fresh norms and biases are all one or zero, which would hide a swapped row)."""
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def dense(layer: torch.nn.Linear) -> dict:
    """Our dense layer."""
    return {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}


def norm(layer: torch.nn.LayerNorm) -> dict:
    """Our norm."""
    return {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}


def attention(layer) -> dict:
    """Our attention of a BertAttention."""
    own = {name: dense(getattr(layer.self, name)) for name in ("query", "key", "value")}
    return own | {"out": dense(layer.output.dense), "norm": norm(layer.output.LayerNorm)}


def block(layer) -> dict:
    """Our block of a BertLayer."""
    mlp = {
        "up": dense(layer.intermediate.dense),
        "down": dense(layer.output.dense),
        "norm": norm(layer.output.LayerNorm),
    }
    cross = {"cross": attention(layer.crossattention)} if hasattr(layer, "crossattention") else {}
    return {"attention": attention(layer.attention), "mlp": mlp} | cross


def stacked(blocks: list[dict]) -> dict:
    """Dicts of one structure with a leading layer axis."""
    first = blocks[0]
    if isinstance(first, dict):
        return {name: stacked([item[name] for item in blocks]) for name in first}
    return np.ascontiguousarray(np.stack(blocks))


def stack_of(layers) -> dict:
    """Our stacked dict of several BertLayers."""
    return stacked([block(layer) for layer in layers])


def additive(mask: np.ndarray) -> torch.Tensor:
    """A boolean mask as numbers to add to the logits."""
    return torch.where(torch.tensor(mask), 0.0, torch.finfo(torch.float32).min)


def run_layers(layers, x: torch.Tensor, mask: np.ndarray, image: torch.Tensor | None = None) -> torch.Tensor:
    """x through some BertLayers under a boolean mask [b,1,L or 1,L], reading `image` where given."""
    for layer in layers:
        x = layer(x, additive(mask), image)
    return x
