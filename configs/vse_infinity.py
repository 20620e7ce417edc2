"""VSE-infinity (Chen et al. 2021): pools learned on both sides (GPO), and the hinge on the hardest negative.

GPO alone makes both embeddings (`pool` = "gpo"), of a dense layer and an MLP of 512 units over each picture token and
of a dense layer over each word; tokens are dropped at random in training. The margin is 0.2, and the hinge begins with
the mean over negatives. `regions` is the published form: 36 regions of each picture of Flickr30K, the text tower at a
tenth of the rate, 25 passes over 145,000 captions; it wants SCAN's files. Other than published, the rate falls along a
cosine, MiniLM is in BERT's place, the MLP has no BatchNorm, and the weights are averaged
(`--config.eval.params=student`: not). Before training:

    xmodal data prepare scan --path f30k_precomp --out data/f30k_regions

`features` (default) and `finetune` are the same on Flickr8k, from cached grid tokens and a frozen MiniLM or from pixels
(data and features as in configs/flickr8k.py); `tiny` is for tests. An epoch is a pass over the pictures, one caption
each. Rates, steps and dropout on Flickr8k were chosen without a search.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of


def get_config(variant: str = "features"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("features", "finetune", "regions", "tiny"), "configs/vse_infinity.py")
    config = defaults()
    config.name = f"vse_infinity-{variant}"
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/flickr8k", "val", 24
    config.objectives = {"hinge": {"kind": "hinge", "margin": 0.2, "mean_steps": "1 epoch"}}
    config.encoders.image.pool = config.encoders.text.pool = "gpo"
    if variant == "tiny":
        presets.tiny(config)
        config.eval.rerank = ()
        return config
    config.batch_size, config.steps, config.eval.rerank = 128, 1_200, ()
    config.joint.embed, config.encoders.image.token_hidden = 1024, 512
    config.encoders.text.update(init="minilm", tokenizer="minilm", head_dropout=0.2)
    config.encoders.image.head_dropout, config.teacher.warmup = 0.2, True
    config.optimizer.update(lr=5e-4, warmup=50, weight_decay=1e-4, clip=2.0)
    if variant == "features":
        config.encoders.image.kind, config.data.features = "features", ("lite0-160", "lite0-224")
        config.encoders.text.cache_tokens, config.optimizer.freeze = True, "^text/tower/"
        config.data.augment.flip, config.eval.flip = 0.5, True
        return config
    config.optimizer.groups = (("^text/tower/", 0.1), ("^image/tower/", 0.01))
    if variant == "finetune":
        config.encoders.image.update(kind="efficientnet", init="lite0", size=160)
        config.batch_size = 64
        return config
    config.encoders.image.kind, config.data.features = "features", ("regions",)
    config.data.path, config.encoders.text.length, config.steps = "data/f30k_regions", 32, 28_320
    config.objectives.hinge.mean_steps = "5 epochs"  # of pictures: 145,000 captions
    config.encoders.image.head_dropout = config.encoders.text.head_dropout = 0.0
    config.optimizer.warmup = 500
    return config
