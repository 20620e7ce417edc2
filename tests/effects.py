"""A checkpoint of aiSFX for tests, with small random weights."""

import torch


def checkpoint(width=16, seed=0):
    """Random weights by the package's names, and a classifier, which is dropped."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    found, inputs = {"fc.0.0.weight": draw(4, width)}, 1
    for block in range(4):
        outputs = width // 2 ** (3 - block)
        for place in (1, 2):
            at = f"embedding_net.conv_block{block + 1}"
            found[f"{at}.conv{place}.weight"] = draw(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
            found[f"{at}.bn{place}.weight"] = 1 + 0.2 * draw(outputs)
            found |= {f"{at}.bn{place}.{name}": 0.2 * draw(outputs) for name in ("bias", "running_mean")}
            found[f"{at}.bn{place}.running_var"] = 1 + 0.5 * draw(outputs).abs()
            found[f"{at}.bn{place}.num_batches_tracked"] = torch.tensor(3)
            inputs = outputs
    return found
