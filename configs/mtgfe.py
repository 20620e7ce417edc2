"""MTGFE: a fusion encoder guided by ITM, MLM and MVJRC, with retrieval filtering (Zhang et al., Remote Sensing 2023).

Half of a text encoder reads the text, fusion layers on top read the picture (ALBEF's shape). Three tasks train fusion:
matching, masked words, and contrast between the joint representations of two views of a picture with the same text
(objectives/multiview.py). At retrieval a cheap score, the embeddings' cosine, keeps k candidates and fusion scores
those (`eval.rerank`).

Only the abstract is public, so these are choices:

- `objectives.itc.weight`: the abstract lists no contrastive task, yet the filter and the hard negatives need
  embeddings. At 0 (variants ending in `_plain`) they are the frozen towers aligned by CCA and nothing trains them; at 1
  they are.
- views: for drawings, another vendor's drawing of the thing; for photographs, the mirrored or augmented picture; from
  above (`remote_sensing`) crops of 0.5 to 1 (resolution), jitter and grey (colour), flips and quarter turns (angle).
- `mlm.weight` 0.1: over a frozen text tower its gradient is ten times the others' and would take the clip.
- `mvjrc.swapped`: two views of a picture share their text, so text alone tells their pair from all others. With it each
  row also has a key of the same text with another picture as a negative, which text alone cannot tell.
- teacher: the second view's representation comes from the momentum model, as in MoCo.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

VARIANTS = (*presets.TABLE, "emoji_views_plain", "flickr8k_plain", "remote_sensing", "tiny")
OBJECTIVES = {
    "itc": {"weight": 1.0, "queue": 1024, "alpha": 0.4, "alpha_steps": 100},
    "itm": {"negatives": 1},
    "mlm": {"weight": 0.1, "alpha_steps": 100},  # one ramp with ITC's, as in ALBEF
    "mvjrc": {"weight": 0.3},
}


def get_config(variant: str = "emoji_views"):
    """Return the config of a variant.

    Emoji or Flickr8k on frozen towers (`_plain`: the abstract's three tasks), with `_finetune` from pixels.
    """
    variant_of(variant, VARIANTS, "configs/mtgfe.py")
    config = defaults()
    config.name, config.objectives = f"mtgfe-{variant}", OBJECTIVES
    config.data.fields.image2 = {"of": "image"}
    if variant == "tiny":
        return presets.tiny(config)
    if variant == "remote_sensing":
        return remote_sensing(config)
    presets.data_set(config, variant.removesuffix("_plain"))
    if variant.endswith("_plain"):
        config.objectives.itc.weight = 0.0
        config.optimizer.freeze, config.optimizer.groups = "^text/tower/|[/_]head/(linear|up|down)", ()
    return config


def remote_sensing(config):
    """Set up RSICD and its kin from pixels: Lite0 and MiniLM trained, 224 px, 47 tokens as in PIR."""
    config.data.path, config.encoders.text.length, config.eval.rerank = "data/rsicd", 47, (16, 32, 64, 128)
    config.eval.relevance = (
        "own"  # as published; captions repeat, so the best possible recall stands beside every table
    )
    augment = config.data.augment
    augment.crop_min_area, augment.jitter, augment.gray = 0.5, 0.4, 0.2
    augment.flip, augment.flip_vertical, augment.quarter_turns = 0.5, 0.5, 0.75
    presets.finetuned(presets.gentle_heads(presets.frozen_towers(config)), 224)
    config.steps, config.optimizer.warmup = 5_000, 500
    return config
