"""RCAR (Guo and Ding 2023): training on pairs that do not all match, on Flickr8k (Karpathy layout), train -> val.

Matching by hinge, beside contrast inside each side, which no wrong pair can mislead; the losses of all pairs in the
train state; once an epoch a two-component beta mixture over them, whose posteriors refurbish the targets. `features`
(default) trains heads from random numbers on cached grid tokens of the frozen EfficientNet-Lite0 and on the frozen
MiniLM; `itc` matches by contrast in place of the hinge, which keeps more where many pairs are wrong; `two` trains two
pairs of heads that label each other's pairs; `tiny` is for tests. Before training:

    xmodal data prepare karpathy --path dataset_flickr8k.json --images images --out data/flickr8k
    xmodal data features --data data/flickr8k --size 160
    xmodal data noise --data data/flickr8k --out data/flickr8k-noise40 --kind complete --rate 0.4

The undefended baseline is `--config.objectives.hinge.robust= --config.objectives.refurbish.weight=0
--config.objectives.ims.weight=0`.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of


def get_config(variant: str = "features"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("features", "itc", "two", "tiny"), "configs/rcar.py")
    config = defaults()
    config.name = f"rcar-{variant}"
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/flickr8k", "val", 24
    config.data.unit = "pair"
    config.data.fields.image2 = {"of": "image"}
    config.objectives = {
        "refurbish": {"measured": "teacher", "average": 0.5, "warmup": "2 epochs", "period": "1 epoch"},
        "hinge": {"margin": 0.2, "mean_steps": "1 epoch", "robust": "refurbish"},
        "ims": {"weight": 0.1},
    }
    if variant == "itc":
        del config.objectives["hinge"]
        config.objectives.itc = {"student_keys": True, "queue": 0, "alpha": 0.0, "robust": "refurbish"}
    if variant == "tiny":
        return presets.tiny(config)
    config.batch_size, config.steps = 256, 1170  # 10 epochs of 30,000 pairs
    config.eval.every, config.eval.keep_best, config.checkpoint.every = 117, "rsum", 1170
    config.encoders.image.update(kind="features", head_hidden=1024, head_dropout=0.3)
    config.encoders.text.update(init="minilm", tokenizer="minilm", head_hidden=1024, head_dropout=0.3)
    config.data.features, config.encoders.text.cache_tokens = ("lite0-160",), True
    config.data.augment.flip = 0.5
    config.joint.embed, config.eval.rerank = 512, ()
    config.optimizer.lr, config.optimizer.warmup, config.optimizer.freeze = 5e-4, 100, "^text/tower/"
    config.teacher.momentum = 0.99
    return two_networks(config) if variant == "two" else config


def two_networks(config):
    """Add a second pair of towers; each pair's targets are refurbished by the losses of the other (as in NCR)."""
    for name in ("image", "text"):
        config.encoders[f"{name}_b"] = config.encoders[name].to_dict()
        config.data.fields[f"{name}_b"] = {"encoder": f"{name}_b", "medium": name}
    pair = ("image_b", "text_b")
    config.objectives.refurbish_b = config.objectives.refurbish.to_dict() | {"kind": "refurbish", "pair": pair}
    config.objectives.hinge_b = config.objectives.hinge.to_dict() | {"kind": "hinge", "pair": pair}
    config.data.fields["image2_b"] = {"of": "image_b"}
    config.objectives.ims_b = config.objectives.ims.to_dict() | {"kind": "ims", "sides": pair}
    config.objectives.hinge.robust, config.objectives.hinge_b.robust = "refurbish_b", "refurbish"
    config.optimizer.freeze = "^text(_b)?/tower/"
    config.eval.pairs = (("image", "text"), pair)
    return config
