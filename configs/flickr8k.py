"""Flickr8k (Karpathy layout), train -> val: 6,000 photographs with five captions each.

`features` (default) trains on cached grid tokens of the frozen EfficientNet-Lite0 at two input sizes, plain and mirrored;
`finetune` trains the picture tower from pixels; `tiny` is the quickstart's tiny model, for tests. Before training:

    xmodal data prepare karpathy --path dataset_flickr8k.json --images images --out data/flickr8k
    xmodal data features --data data/flickr8k --size 160
    xmodal data features --data data/flickr8k --size 224

Overfitting is the limit: heavy dropout on the pooled features, an EMA of the weights for evaluation, few epochs.
"""

from xmodal_jax.config import defaults, variant_of


def get_config(variant: str = "features"):
    """One of the variants above."""
    variant_of(variant, ("features", "finetune", "tiny"), "configs/flickr8k.py")
    config = defaults()
    config.name = f"flickr8k-{variant}"
    config.data.path, config.data.eval_split, config.data.length = "data/flickr8k", "val", 24
    config.objectives = {
        "itc": {"queue": 2048, "alpha": 0.4, "alpha_steps": 100},
        "itm": {"negatives": 1},
        "hash": {"weight": 0.1},
    }
    if variant == "tiny":
        return tiny(config)
    config.batch_size, config.steps, config.eval.every = 128, 400, 100
    config.image.head_hidden, config.image.head_dropout = 1024, 0.65
    config.text.init, config.text.tokenizer = "minilm", "minilm"
    config.text.head_hidden, config.text.head_dropout, config.text.dropout = 1024, 0.45, 0.1
    config.fusion.hidden, config.fusion.head_dropout = 768, 0.3
    config.joint.embed, config.joint.start, config.joint.start_ridge = 512, "cca", 0.3
    config.teacher.momentum = 0.99
    config.optimizer.lr, config.optimizer.warmup = 1e-3, 30
    config.optimizer.freeze, config.optimizer.groups = "^text/embed", (("^text/", 0.05), ("_head/", 0.5))
    config.checkpoint.every = 100
    if variant == "features":
        config.image.kind, config.data.features = "features", ("lite0-160", "lite0-224")
        config.data.augment.flip = 0.5
        return config
    config.image.kind, config.image.init, config.data.image_size, config.batch_size = "efficientnet", "lite0", 160, 64
    config.optimizer.groups = (("^text/", 0.05), ("^image/", 0.1), ("_head/", 0.5))
    return config


def tiny(config):
    """Small towers from scratch: a ViT on 32 pixels and a BERT of two layers."""
    config.batch_size, config.steps, config.log_every, config.optimizer.warmup = 16, 20, 5, 5
    config.data.image_size, config.data.length = 32, 12
    config.image.patch, config.image.width, config.image.layers, config.image.heads, config.image.hidden = (
        8,
        32,
        2,
        2,
        64,
    )
    config.text.width, config.text.layers, config.text.heads, config.text.hidden, config.text.positions = (
        32,
        2,
        2,
        64,
        16,
    )
    config.fusion.layers, config.fusion.heads, config.fusion.hidden = 1, 2, 64
    config.joint.embed, config.joint.bits, config.objectives.itc.queue = 16, 16, 64
    config.eval.batch_size, config.eval.rerank = 64, (8,)
    return config
