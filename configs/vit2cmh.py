"""ViT2CMH: the [CLS] of a vision transformer and of BERT, each to a hash code (CSSE 2023).

Only the abstract is public: ViT and BERT in place of convolutions and recurrence, features "transformed into hash
codes", MS-COCO and Flickr30K. The rest is a reading of it, and DCHMT's recipe (Tu et al. 2022) where the abstract says
nothing:

- head: a linear map of [CLS], then 1,024 units (GELU) and tanh (`joint.hash_hidden`, `joint.hash_kind`).
- losses: the hinge with the hardest negative on the codes' cosine, quantisation from 0.1 to 1 and balance at 1, as for
  TECMH; `hash_euclidean` is DCHMT's own, with its head `--config.joint.hash_kind=select
  --config.joint.hash_hidden=128`.
- two learning rates, DCHMT's 1e-3 for heads and 1e-5 for towers, are `optimizer.lr` and a factor in `optimizer.groups`:
  without them either the towers forget or the codes do not form. Weight decay 0.2, warm-up over a tenth of the steps.
- ITC beside the hash losses trains the embedding, so that every table has the float model under the codes.
- `pixels` is the paper's model. On `presets.TABLE` the towers are those at hand, a convolutional one and MiniLM, pooled
  by their means: hashing with the same heads and rates, not a test of ViT.

A comparison of towers changes `kind`, and whatever else was meant for the pretrained tower that goes. In `pixels` a
tower of another kind is written whole, for it lacks fields of the one that goes. A ResNet from weights that you name
takes ViT's rate: `--config.encoders.image={'kind':'resnet','init':'WEIGHTS'}`. A text tower from scratch, a GRU or
`tfidf`, would learn at a hundredth of the rate; in `pixels` write
`--config.encoders.text={'kind':'gru','tokenizer':'minilm','width':768}
--config.optimizer.groups=(('^image/tower/',0.01),)`, on a data set of cached pictures, where it would be frozen (and is
refused), `--config.encoders.text.kind=gru --config.encoders.text.init= --config.encoders.text.tokenizer=data
--config.encoders.text.cache_tokens=False --config.optimizer.freeze= --config.optimizer.groups=()
--config.joint.start=random`.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

OBJECTIVES = {
    "itc": {"queue": 1024, "alpha": 0.4, "alpha_steps": 100},
    "hash_triplet": {"margin": 0.2},
    "hash_quality": {"balance": 1.0},  # and quantisation, by `presets.pair_codes`
}
TOWERS = (("^(image|text)/tower/", 0.01),)


def get_config(variant: str = "flickr8k"):
    """Return the config of a variant.

    A data set on frozen towers, with `_finetune` from pixels; `pixels`: ViT-B/16 and BERT-base; `tiny`: for tests.
    """
    variant_of(variant, (*presets.TABLE, "pixels", "tiny"), "configs/vit2cmh.py")
    config = defaults()
    config.name, config.objectives = f"vit2cmh-{variant}", OBJECTIVES
    config.joint.hash_hidden, config.eval.rerank = 1024, ()
    if variant in presets.TABLE:
        presets.data_set(config, variant)
        config.eval.rerank = ()
        return presets.pair_codes(config)
    config.encoders.image.pool = config.encoders.text.pool = "cls"
    config.optimizer.groups = TOWERS
    if variant == "tiny":
        config.joint.hash_hidden, config.objectives.hash_triplet.mean_steps = 32, 5
        return presets.pair_codes(presets.tiny(config))
    presets.base_towers(config)
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/flickr30k", "val", 32
    config.data.augment.flip, config.batch_size, config.steps = 0.5, 256, 57_000  # 100 epochs of 145,000 captions
    config.objectives.itc.queue, config.joint.embed = 8192, 768
    config.objectives.hash_triplet.mean_steps = 570  # an epoch, as the heads start at random (configs/tecmh.py)
    config.optimizer.lr, config.optimizer.warmup, config.optimizer.weight_decay = 1e-3, 5_700, 0.2
    return presets.pair_codes(config)
