"""Flickr8k (Karpathy layout), train -> val: 6,000 photographs with five captions each.

`features` (default) trains on cached grid tokens of the frozen EfficientNet-Lite0 at two input sizes, plain and
mirrored, and on the frozen MiniLM; `finetune` trains both towers from pixels; `tiny` is for tests. Before training:

    xmodal data prepare karpathy --path dataset_flickr8k.json --images images --out data/flickr8k
    xmodal data features --data data/flickr8k --size 160
    xmodal data features --data data/flickr8k --size 224

Overfitting is the limit: a CCA start, large batches for few epochs, heavy dropout on the pooled features, and an EMA of
the weights for evaluation. ITM sees every fourth row of a batch, which keeps large batches cheap.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of


def get_config(variant: str = "features"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("features", "finetune", "tiny"), "configs/flickr8k.py")
    config = defaults()
    config.name = f"flickr8k-{variant}"
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/flickr8k", "val", 24
    config.objectives = {
        "itc": {"queue": 512, "alpha": 0.4, "alpha_steps": 100},
        "itm": {"negatives": 1, "every": 4},
        "hash": {"weight": 0.1},
    }
    if variant == "tiny":
        return presets.tiny(config)
    config.batch_size, config.steps, config.eval.every, config.eval.flip = 512, 140, 35, True
    config.encoders.image.update(head_hidden=1024, head_dropout=0.65)
    config.encoders.text.update(init="minilm", tokenizer="minilm", head_hidden=1024, head_dropout=0.45)
    config.fusion.hidden, config.fusion.head_dropout = 768, 0.3
    config.joint.embed, config.joint.start, config.joint.start_ridge = 512, "cca", 0.3
    config.teacher.momentum, config.teacher.warmup = 0.98, True  # the ramp: 140 steps are too few for a plain EMA
    config.optimizer.lr, config.optimizer.warmup = 1e-3, 20
    config.optimizer.freeze, config.optimizer.weight_decay = "^text/tower/", 0.1
    config.checkpoint.every = 35
    if variant == "features":
        config.encoders.image.kind, config.data.features = "features", ("lite0-160", "lite0-224")
        config.encoders.text.cache_tokens = True
        config.data.augment.flip = 0.5
        return config
    config.encoders.image.update(kind="efficientnet", init="lite0")
    config.encoders.image.size, config.batch_size = 160, 64
    config.optimizer.freeze, config.encoders.text.dropout, config.objectives.itm.every = "^text/tower/embed", 0.1, 1
    config.optimizer.groups = (("^text/tower/", 0.05), ("^image/tower/", 0.1), ("[/_]head/", 0.5))
    return config
