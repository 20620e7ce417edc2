"""TECMH: a transformer encoder shared by picture and text, then hash codes (CMC 2023, end-to-end fine-grained hashing).

Only the abstract is public: BERT for the text, "refined" picture features, and "the inference capabilities of the
transformer encoder" for global features, on image-text matching data. Its words are those of TERN (Messina et al.
2021), so what it leaves open is TERN's: grid tokens and words, each behind a [CLS] of its own, go through the same 2
blocks (4 heads, 2,048 inside; models/reasoning.py), and both [CLS] give the embedding. Choices of ours, each a field:

- `pool` "mean+shared": the [CLS] is added to a linear path, which starts from CCA on frozen towers; its map starts at
  zero.
- `joint.hash_hidden` = 0: one linear layer and tanh make the code from the embedding. The embedding is trained by ITC,
  so every table has the float model that the codes are binarised from.
- losses: the hinge with the hardest negative on the cosine of relaxed codes, beside quantisation, which grows from 0.1
  to 1 over the run (`presets.pair_codes`), and balance at 1. At 0.01 codes collapse: where all are alike every hinge is
  the margin, less than among random codes ("nested, balance at 0.01" in benchmarks/results/hashing.md). Decorrelation
  is a field, 0. `hash_euclidean` (DCHMT) and `hash_contrast` (UCCH) are entries away.
- `objectives.hash_triplet.mean_steps`: an epoch where the heads start at random (`pixels`), for the hardest negative
  from a random start may draw all codes to one point (VSE++, VSE-infinity); 0 where they start from CCA, whose order is
  good.
- `joint.bits`: 64; `--config.joint.bits=512` for instance-level recall, which is sensitive to length, and
  `--config.joint.nested=(16,32,64,128,256)` for one model whose first bits are codes too.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

OBJECTIVES = {
    "itc": {"queue": 1024, "alpha": 0.4, "alpha_steps": 100},
    "hash_triplet": {"margin": 0.2},
    "hash_quality": {"balance": 1.0},  # and quantisation, by `presets.pair_codes`
}


def get_config(variant: str = "flickr8k"):
    """Return the config of a variant.

    A data set on frozen towers, with `_finetune` from pixels; `pixels`: ViT-B/16 and BERT-base; `tiny`: for tests.
    """
    variant_of(variant, (*presets.TABLE, "pixels", "tiny"), "configs/tecmh.py")
    config = defaults()
    config.name, config.objectives = f"tecmh-{variant}", OBJECTIVES
    config.encoders.image.pool = config.encoders.text.pool = "mean+shared"
    config.joint.hash_hidden, config.eval.rerank = 0, ()
    if variant == "tiny":
        config.joint.shared_layers, config.joint.shared_heads, config.joint.shared_hidden = 1, 2, 64
        config.objectives.hash_triplet.mean_steps = 5
        return presets.pair_codes(presets.tiny(config))
    if variant == "pixels":
        return presets.pair_codes(pixels(config))
    presets.data_set(config, variant)
    config.eval.rerank = ()
    config.optimizer.groups = (("/head/reasoned", 1.0), *tuple(config.optimizer.groups))  # it starts at zero
    return presets.pair_codes(config)


def pixels(config):
    """Set up Flickr30K from pixels by the weights you name in the encoders' `init`: TERN's recipe, BERT at a tenth."""
    presets.base_towers(config)
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/flickr30k", "val", 32
    config.data.augment.flip, config.batch_size, config.steps = 0.5, 128, 34_000  # 30 epochs of 145,000 captions
    config.objectives.itc.queue, config.joint.embed = 8192, 1024
    config.objectives.hash_triplet.mean_steps = 1_130  # an epoch
    config.optimizer.lr, config.optimizer.warmup, config.optimizer.clip = 2e-4, 1_000, 2.0
    config.optimizer.groups = (("^(image|text)/tower/", 0.1),)
    return config
