"""Adequate alignment and interaction (Wang et al. 2023): ITC, IMS and LMIM on GPO-aggregated features, then fusion.

Only the paper's abstract was at hand: momentum encoders and aggregators, the three alignment objectives and a fusion
encoder over aggregated features are its; formulas are TCL's (Yang et al. 2022) and VSE-infinity's (Chen et al. 2021),
the rest is chosen here, by what trains well on few pairs:

- `encoders.image.pool` = "mean+gpo": GPO beside a linear path that starts from CCA. The papers' own form is
  `--config.encoders.image.pool=gpo --config.encoders.text.pool=gpo --config.joint.start=random`, with `token_hidden` =
  half of `joint.embed`.
- the weights 1/3 are TCL's mean of six losses; `objectives.lmim.momentum` = True takes the teacher's local features.
- IMS contrasts two views of a picture: two vendors' drawings, or the picture and its mirror image.
- `fusion.aggregated`: fusion reads the two embeddings besides all tokens; ITM is its only loss.
- retrieval: cosine first, then ITM on a shortlist, added to the cosine (`eval.rerank_score`; "replace" orders by ITM
  alone, as ALBEF does).
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

ALIGNED = 1 / 3
OBJECTIVES = {
    "itc": {"weight": ALIGNED, "queue": 1024, "alpha": 0.4, "alpha_steps": 100},
    "ims": {"weight": ALIGNED},
    "lmim": {"weight": ALIGNED, "momentum": True},
    "itm": {"negatives": 1},
}


def get_config(variant: str = "emoji_views"):
    """Return the config of a variant.

    Emoji or Flickr8k on frozen towers; with `_finetune` from pixels, both towers trained; `tiny`: for tests.
    """
    variant_of(variant, (*presets.TABLE, "tiny"), "configs/adequate_alignment.py")
    config = defaults()
    config.name, config.objectives = f"adequate_alignment-{variant}", OBJECTIVES
    config.data.fields.image2 = {"of": "image"}
    config.encoders.image.pool = config.encoders.text.pool = "mean+gpo"
    config.fusion.aggregated = True
    if variant == "tiny":
        config.encoders.text.dropout = 0.1
        return presets.tiny(config)
    presets.data_set(config, variant)
    config.eval.rerank = (16, 32)
    return config
