"""Similarity vectors, guided attention and graph reasoning of one pair, in NumPy with a loop for every token."""

import numpy as np


def unit(x):
    """A vector at length one."""
    return x / np.sqrt((x**2).sum() + 1e-12)


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def dense(layer, x):
    """A dense layer of one vector."""
    return np.asarray(layer["kernel"], np.float64).T @ x + np.asarray(layer["bias"], np.float64)


def read(asks, tokens, sharpness):
    """For each that asks, the unit mean of `tokens` under SCAN's attention."""
    found = []
    for ask in asks:
        logits = []
        for token in tokens:
            own = [float(other @ token) for other in asks]
            own = [c if c > 0 else 0.1 * c for c in own]
            length = np.sqrt(sum(c * c for c in own) + 1e-12)
            mine = float(ask @ token)
            logits.append(sharpness * (mine if mine > 0 else 0.1 * mine) / length)
        weights = np.exp(np.array(logits) - max(logits))
        weights = weights / weights.sum()
        found.append(unit(sum(weight * token for weight, token in zip(weights, tokens, strict=True))))
    return found


def vector(layer, one, two):
    """The similarity vector of two vectors."""
    return unit(dense(layer, (one - two) ** 2))


def reasoned(layer, nodes):
    """One step over all nodes: edges by queries and keys, ReLU of a dense layer of the mean along them."""
    query = [dense(layer["query"], node) for node in nodes]
    keys = [np.asarray(layer["key"]["kernel"], np.float64).T @ node for node in nodes]
    found = []
    for own in query:
        logits = np.array([own @ key for key in keys])
        edges = np.exp(logits - logits.max())
        edges = edges / edges.sum()
        found.append(np.maximum(dense(layer["value"], sum(e * node for e, node in zip(edges, nodes, strict=True))), 0))
    return found


def attention(layer, tokens, heads):
    """Self-attention of tokens with the norm after the sum."""
    query, keys, values = ([dense(layer[name], x) for x in tokens] for name in ("query", "key", "value"))
    size = len(tokens[0]) // heads
    found = []
    for token, own in zip(tokens, query, strict=True):
        mixed = []
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            logits = np.array([own[cut] @ key[cut] for key in keys]) / np.sqrt(size)
            weights = np.exp(logits - logits.max())
            mixed.append(sum(w * value[cut] for w, value in zip(weights / weights.sum(), values, strict=True)))
        x = token + dense(layer["out"], np.concatenate(mixed))
        x = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-12)
        found.append(x * np.asarray(layer["norm"]["scale"]) + np.asarray(layer["norm"]["bias"]))
    return found
