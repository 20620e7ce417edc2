"""MVSEN (Qin et al. 2024): multi-task visual semantic embedding, on Flickr8k (Karpathy layout), train -> val.

A graph scorer over similarity nodes of regions and words, trained by a hinge on hard negatives; text-text matching
through a second caption of the same picture; classification of both sides onto concepts mined from the captions; and
contrast of the embeddings, which make the shortlist. `features` (default) trains heads from random numbers on cached
grid tokens of the frozen EfficientNet-Lite0 and on the frozen MiniLM, and begins with negatives drawn by the cosines of
the embeddings, without which a small graph stays long on a plateau. `regions` reads SCAN's region features of
Flickr30K; `sgr` is `features` with SGR's scorer (Diao et al. 2021) and without the further tasks; `tiny` is for tests.
Before training:

    xmodal data prepare karpathy --path dataset_flickr8k.json --images images --out data/flickr8k
    xmodal data features --data data/flickr8k --size 160
    xmodal data concepts --data data/flickr8k --count 300
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

EXTRA = ("text_text", "multilabel")


def get_config(variant: str = "features"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("features", "regions", "sgr", "tiny"), "configs/mvsen.py")
    config = defaults()
    config.name = f"mvsen-{variant}"
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/flickr8k", "val", 24
    config.data.unit, config.data.concepts = "pair", "concepts"
    config.data.fields.text2 = {"of": "text"}
    config.scorer = {"kind": "graph", "width": 128, "space": 128}
    config.objectives = {
        "hinge": {"scorer": True, "mean_steps": "2 epochs", "draw": 0.05, "candidates": 4},
        "itc": {"student_keys": True, "queue": 0, "alpha": 0.0},
        "text_text": {"kind": "hinge", "pair": ("text", "text2"), "weight": 0.5, "mean_steps": "1 epoch"},
        "multilabel": {"target": "concepts", "weight": 0.5},
    }
    if variant == "tiny":
        config.scorer.update(width=16, space=0, heads=2)
        config.data.concepts, config.objectives.multilabel.target = "", "labels"
        return presets.tiny(config)
    config.batch_size, config.steps = 128, 1170  # 5 epochs of 30,000 pairs
    config.eval.every, config.checkpoint.every, config.eval.rerank = 234, 1170, (32,)
    config.joint.embed, config.optimizer.lr, config.optimizer.warmup = 512, 5e-4, 100
    config.teacher.momentum, config.eval.keep_best = 0.99, "rsum"
    config.encoders.image.update(kind="features", head_hidden=1024, head_dropout=0.3)
    config.encoders.text.update(init="minilm", tokenizer="minilm", head_hidden=1024, head_dropout=0.3)
    config.data.features, config.encoders.text.cache_tokens = ("lite0-160",), True
    config.data.augment.flip, config.optimizer.freeze = 0.5, "^text/tower/"
    if variant == "regions":  # they have no mirror images
        config.data.path, config.data.features, config.data.augment.flip = "data/f30k_regions", ("regions",), 0.0
        config.encoders.text.length, config.steps = 32, 28_320  # 25 epochs of 145,000 pairs
        config.scorer.update(width=256, space=1024)
        config.objectives.hinge.update(candidates=0, draw=0.0, mean_steps="1 epoch")
    return without_tasks(config) if variant == "sgr" else config


def without_tasks(config):
    """Set SGR's scorer, with the hinge and the contrast of the embeddings alone."""
    config.scorer = {"kind": "sgr", "width": 128, "space": 128}
    for name in EXTRA:
        del config.objectives[name]
    del config.data.fields["text2"]
    config.data.concepts = ""
    return config
