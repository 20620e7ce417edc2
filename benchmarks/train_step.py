"""One contrastive step (forward, backward, AdamW, EMA) against the same in PyTorch eager, alternating in one process.

    python benchmarks/train_step.py [--batch 16] [--rounds 5] [--out benchmarks/results/train_step.json]

ViT-S/16 at 224 px and a 6-layer BERT of width 384 at 32 tokens, float32, in-batch InfoNCE with a learned temperature.
Prints one JSON line; "ratio" is our median time over PyTorch's, both medians of the alternating rounds.
"""

import argparse
import os
import statistics
import time

import jax
import numpy as np
from report import machine, publish

from xmodal_jax import config_file as configs
from xmodal_jax.errors import output_file, run_script
from xmodal_jax.models.crossmodal import CrossModal, init_params
from xmodal_jax.objectives import build_objectives, parts
from xmodal_jax.settings import defaults
from xmodal_jax.training.optimizer import make_optimizer
from xmodal_jax.training.step import Recipe, create_state, train_step

VOCAB, LENGTH, PIXELS, WIDTH, EMBED = 30522, 32, 224, 384, 256


def our_config(batch: int):
    """Return the config of two towers with CLIP's loss (student keys, no queue, no soft targets)."""
    config = defaults()
    config.batch_size, config.encoders.image.size, config.encoders.text.length = batch, PIXELS, LENGTH
    config.encoders.text.vocab_size = VOCAB
    config.joint.embed = EMBED
    config.encoders.image.pool = "cls"
    config.objectives = {"itc": {"queue": 0, "alpha": 0.0, "student_keys": True}}
    config.teacher.warmup = False
    return configs.freeze(config)


def random_batch(batch: int) -> dict[str, np.ndarray]:
    """Draw noise for the fields of a batch: the numbers do not matter to the time."""
    rng = np.random.default_rng(0)
    rows = np.arange(batch, dtype=np.int32)
    text = rng.integers(1000, VOCAB, (batch, LENGTH)).astype(np.int32)
    image = rng.integers(0, 256, (batch, PIXELS, PIXELS, 3)).astype(np.uint8)
    return {"image": image, "text": text, "id": rows, "text/key": rows, "index": rows}


def our_step(batch: int):
    """Return a function that runs one step of this library, and its number of parameters."""
    config, fields = our_config(batch), random_batch(batch)
    objectives = build_objectives(config.objectives)
    model = CrossModal(config)
    first = {name: fields[name][:1] for name in config.encoders}
    make = jax.jit(lambda key: init_params(model, key, first, parts(objectives)))
    params = make(jax.random.key(0))
    recipe = Recipe(config, model, objectives, make_optimizer(config.optimizer, params, 1000))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = create_state(recipe, params, 0)
    step = jax.jit(lambda state, batch: train_step(recipe, state, batch), donate_argnums=0)
    fields = jax.device_put(fields)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, fields)
        jax.block_until_ready((state, metrics))

    return run, count


def torch_step(batch: int):
    """Return a function that runs the same step in PyTorch eager on Hugging Face's modules, and its parameter count."""
    import torch
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    shape = dict(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    image = ViTModel(
        ViTConfig(num_hidden_layers=12, num_attention_heads=6, image_size=PIXELS, **shape), add_pooling_layer=False
    )
    text = BertModel(
        BertConfig(num_hidden_layers=6, num_attention_heads=12, vocab_size=VOCAB, **shape), add_pooling_layer=False
    )
    heads = torch.nn.ModuleList([torch.nn.Linear(WIDTH, EMBED), torch.nn.Linear(WIDTH, EMBED)])
    scale = torch.nn.Parameter(torch.tensor(2.66))
    params = [*image.parameters(), *text.parameters(), *heads.parameters(), scale]
    teacher = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.05)
    fields = random_batch(batch)
    pixels = torch.from_numpy(fields["image"]).permute(0, 3, 1, 2)
    ids = torch.from_numpy(fields["text"]).long()
    mask, target = torch.ones_like(ids), torch.arange(batch)

    def run() -> None:
        seen = (pixels.float() / 255.0 - 0.5) / 0.5
        v = heads[0](image(pixel_values=seen).last_hidden_state[:, 0])
        t = heads[1](text(input_ids=ids, attention_mask=mask).last_hidden_state.mean(1))
        logits = torch.nn.functional.normalize(v) @ torch.nn.functional.normalize(t).T * scale.exp()
        loss = 0.5 * (
            torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(teacher, [p.detach() for p in params], 0.005)

    return run, sum(p.numel() for p in params)


def alternate(steps: dict, rounds: int) -> dict[str, list[float]]:
    """Time each step in each round, in seconds, the order rotated, after one untimed call each."""
    for run in steps.values():
        run()
    seconds = {name: [] for name in steps}
    names = list(steps)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begin = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=output_file)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # where PyTorch's step runs
    ours, our_count = our_step(args.batch)
    theirs, their_count = torch_step(args.batch)
    seconds = alternate({"xmodal_jax": ours, "torch": theirs}, args.rounds)
    import torch

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = {name: min(values) for name, values in seconds.items()}
    row = {
        "benchmark": "train_step",
        "ratio": medians["xmodal_jax"] / medians["torch"],
        "ratio_of_best": best["xmodal_jax"] / best["torch"],
        "seconds": medians,
        "batch": args.batch,
        "parameters": {"xmodal_jax": our_count, "torch": their_count},
        "torch": torch.__version__,
    } | machine()
    publish(row, args.out)


if __name__ == "__main__":
    run_script(main)
