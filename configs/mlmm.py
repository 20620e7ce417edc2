"""MLMM (multilingual multimodal pretraining): one encoder of words for all languages, trained with pictures at once.

The paper's own text is not open to us; this is our reading of it by UC2 (Zhou et al. 2021) and CCLM (Zeng et al. 2023):
contrast and matching of pictures and texts, masked words of each language, masked words of a text beside its
translation and the picture (translation language modelling), and contrast of a text with its translation. `features`
(default) reads cached pictures and trains multilingual-e5-small; `captions` writes captions too, in English and German,
each begun by a start of its own; `tiny` and `captions_tiny` are for tests. Data: benchmarks/emoji_views.py with
--languages; before training: `xmodal weights --of e5 --out weights/e5`.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

PLAIN = {"queue": 0, "alpha": 0.0}
WRITTEN = ("en", "de")


def get_config(variant: str = "features"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("features", "captions", "tiny", "captions_tiny"), "configs/mlmm.py")
    config = defaults()
    config.name = f"mlmm-{variant}"
    config.data.fields.text2 = {"of": "text", "draw": "translation", "required": False}
    config.data.fields.both = {"encoder": "text", "medium": "text", "reader": "parallel", "required": False}
    config.data.fields.text.temperature = config.data.fields.both.temperature = 0.5  # rare languages more often
    config.objectives = {
        "itc": PLAIN,
        "itm": {"negatives": 1},
        "mlm": {"weight": 0.1, "alpha": 0.0},
        "tlm": {"kind": "mlm", "pair": ("image", "both"), "weight": 0.1, "alpha": 0.0},
        "text_text": {"kind": "itc", "pair": ("text", "text2"), **PLAIN},
    }
    config.eval.pairs = (("image", "text"),)
    if variant.startswith("captions"):
        config.data.languages, config.evals.captioning = WRITTEN, {"limit": 100}
        config.objectives.lm = {"weight": 0.1, "languages": True}
    if variant.endswith("tiny"):
        return presets.tiny(config)
    if variant == "features":
        config.data.languages = ("en", *presets.TRAINED)
        config.eval.languages = (*config.data.languages, *presets.UNSEEN)
    config.data.path, config.data.views, config.eval.views = "data/emoji_views", presets.TRAIN_VIEWS, presets.TEST_VIEWS
    config.data.features, config.data.keep_gb, config.data.augment.flip = ("lite0-128", "lite0-192"), 4.0, 0.0
    config.encoders.image.update(kind="features", head_hidden=768, head_dropout=0.3)
    config.encoders.text.update(presets.E5, init="weights/e5", tokenizer="weights/e5", length=24, head_hidden=768)
    config.fusion.layers, config.fusion.hidden, config.fusion.head_dropout = 2, 768, 0.3
    config.batch_size, config.steps, config.optimizer.warmup, config.optimizer.lr = 64, 1000, 50, 5e-4
    config.optimizer.freeze, config.optimizer.groups = "^text/tower/embed", (("^text/tower/", 0.1),)
    config.eval.rerank = (16,)
    return config
