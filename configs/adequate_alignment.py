"""Adequate alignment and interaction (Wang et al. 2023): ITC, IMS and LMIM on GPO-aggregated features, then fusion.

Only the paper's abstract was at hand: momentum encoders and aggregators, the three alignment objectives and a fusion
encoder over aggregated features are its; formulas are TCL's (Yang et al. 2022) and VSE-infinity's (Chen et al. 2021), the
rest is chosen here, by what trains well on few pairs:

- `image.pool` = "mean+gpo": GPO beside a linear path that starts from CCA. The papers' own form is
  `--config.image.pool=gpo --config.text.pool=gpo --config.joint.start=random`, with `token_hidden` = half of `joint.embed`.
- the weights 1/3 are TCL's mean of six losses; `objectives.lmim.momentum` = True takes the teacher's local features.
- `fusion.aggregated`: fusion reads the two embeddings besides all tokens; ITM is its only loss.
- retrieval: cosine first, then ITM on a shortlist, added to the cosine (`eval.combine`; "replace" is ALBEF's).

`emoji_views` (default): names and drawings by five vendors, frozen towers; `finetune`: the same from pixels, both towers
trained; `flickr8k`: photographs, train -> val; `tiny`: small random towers, for tests.
"""

from xmodal_jax.config import defaults, variant_of

VIEWS = ("noto", "openmoji", "fluent-3d", "fluent-flat", "emojione")
ALIGNED = 1 / 3


def get_config(variant: str = "emoji_views"):
    """One of the variants above."""
    variant_of(variant, ("emoji_views", "flickr8k", "finetune", "tiny"), "configs/adequate_alignment.py")
    config = defaults()
    config.name = f"adequate_alignment-{variant}"
    config.data.path, config.data.length = "data/emoji_views", 10
    config.objectives = {
        "itc": {"weight": ALIGNED, "queue": 1024, "alpha": 0.4, "alpha_steps": 100},
        "ims": {"weight": ALIGNED},
        "lmim": {"weight": ALIGNED, "momentum": True},
        "itm": {"negatives": 1},
    }
    config.image.pool = config.text.pool = "mean+gpo"
    config.fusion.aggregated = True
    config.eval.rerank, config.eval.combine = (16, 32), "add"
    if variant == "tiny":
        return tiny(config)
    config.batch_size, config.steps = 128, 150
    config.fusion.hidden, config.fusion.dropout, config.fusion.head_dropout = 768, 0.2, 0.5
    config.image.head_hidden, config.image.head_dropout = 768, 0.7
    config.text.init, config.text.tokenizer = "minilm", "minilm"
    config.text.head_hidden, config.text.head_dropout = 768, 0.5
    config.joint.start, config.teacher.momentum = "cca", 0.98
    config.optimizer.lr, config.optimizer.warmup, config.optimizer.freeze = 1e-3, 20, "^text/"
    config.optimizer.groups = (("_head/", 0.3),)
    if variant == "flickr8k":
        config.data.path, config.data.eval_split, config.data.length = "data/flickr8k", "val", 24
        config.image.kind, config.data.features = "features", ("lite0-160", "lite0-224")
        config.objectives.itc.queue, config.objectives.itm.every, config.data.augment.flip = 512, 4, 0.5
        config.batch_size, config.joint.embed, config.joint.start_ridge = 256, 512, 0.3
        return config
    config.data.views = VIEWS
    if variant == "emoji_views":
        config.image.kind, config.data.features = "features", ("lite0-128", "lite0-192")
        return config
    config.image.kind, config.image.init, config.data.image_size, config.batch_size = "efficientnet", "lite0", 128, 64
    config.optimizer.freeze = "^text/embed"
    config.optimizer.groups = (("^text/", 0.05), ("^image/", 0.1), ("_head/", 0.3))
    return config


def tiny(config):
    """Small towers from scratch: a ViT on 32 pixels and a BERT of two layers."""
    config.batch_size, config.steps, config.log_every, config.optimizer.warmup = 16, 20, 5, 5
    config.data.image_size, config.data.length = 32, 12
    config.image.patch, config.image.width, config.image.layers = 8, 32, 2
    config.image.heads, config.image.hidden = 2, 64
    config.text.width, config.text.layers, config.text.heads = 32, 2, 2
    config.text.hidden, config.text.positions, config.text.dropout = 64, 16, 0.1
    config.fusion.layers, config.fusion.heads, config.fusion.hidden = 1, 2, 64
    config.joint.embed, config.joint.bits, config.objectives.itc.queue = 16, 16, 64
    config.eval.batch_size, config.eval.rerank = 64, (8,)
    return config
