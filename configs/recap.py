"""ReCap: residual attention momentum encoders from a multi-task view (Tao et al., Sensors 2024, 24(10) 3130).

"Concoder": picture and text encoder with momentum copies, ITC + ITM. "Captioner": LM over the picture's tokens. Between
the encoders and their copies stands the residual attention network (models/bridge.py): what leaves it is what the
captioner reads, what makes ITC's soft targets and what enters the queues, of which there are three (picture, text,
fused). Training starts with distillation from a frozen pair of towers.

Only the abstract and a preprint's first page are public. What follows is a reading of them; every choice is a field:

- `bridge.kind` "cross": the paper calls the network's input the initialised encoder's *output*, hence attention between
  tokens, not between weights; "gate" is the classic residual attention network. It starts at zero: plain momentum
  contrast. `bridge.sides`: the picture's tokens only, for these alone are trained (the captioner reads them).
- queues and momentum: BLIP's 57,600 keys and 0.995 belong to its 14 million pairs; these sets have 1,244 and 6,000.
- `objectives.lm.weight` 0.1, not BLIP's 1: over frozen towers its gradient is ten times the others' and takes the clip.
- `distill`: CCA of the frozen towers as the teacher, over the first part of training, down a straight line. Any run or
  config of this package can be the teacher (`xmodal data embed`). Heads that start from CCA themselves
  (`joint.start`) are only held there by it; from `joint.start=random` it is what initialises them. Before training:

    xmodal data embed --data data/emoji_views --config configs/recap.py:start --name start
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

VARIANTS = (*presets.TABLE, "stamps", "start", "start_flickr8k", "inaturalist", "start_inaturalist", "tiny")
OBJECTIVES = {
    "itc": {"queue": 1024, "alpha": 0.4, "alpha_steps": 100, "bridge": True},
    "itm": {"negatives": 1},
    "lm": {"weight": 0.1, "bridge": True},
    "fused": {"weight": 0.3, "queue": 1024, "bridge": True},
    "distill": {"weight": ((0, 1.0), (30, 0.0))},
}

# Adam moves a scalar by its rate a step at most, and the gate must open within hundreds of steps, not BLIP's 200,000.
GATES = (("^bridge/gamma", 30.0), ("^image/head/(attended|probe)", 1.0))


def get_config(variant: str = "emoji_views"):
    """Return the config of a variant.

    A data set on frozen towers, with `_finetune` from pixels; `start`: the distillation's teacher; `tiny`: tests.
    """
    variant_of(variant, VARIANTS, "configs/recap.py")
    config = defaults()
    config.name, config.objectives = f"recap-{variant}", OBJECTIVES
    config.encoders.image.pool = "mean+attention"  # the embedding must read the tokens that the bridge changes
    if variant == "tiny":
        del config.objectives["distill"]
        return presets.tiny(config)
    if variant.endswith("inaturalist"):
        return inaturalist(config, variant.startswith("start"))
    base = {"stamps": "emoji_views", "start": "emoji_views", "start_flickr8k": "flickr8k"}.get(variant, variant)
    presets.data_set(config, base)
    if variant == "stamps":
        config.data.path, config.data.views, config.eval.views, config.encoders.text.length = (
            "data/stamps_nature",
            (),
            (),
            16,
        )
        config.data.languages = ("en",)
        config.batch_size, config.steps = 64, 60  # 25 epochs of 156 drawings
    if variant.startswith("start"):
        config.objectives = {"itc": {}}
        return config
    config.data.embeddings = "start"
    config.optimizer.groups = GATES + config.optimizer.groups
    return config


def inaturalist(config, start: bool):
    """Set up iNaturalist 2018 as the paper's 8,142 species: ViT-B/16 and BERT-base from the weights you name in `init`.

    Captions name the species, and pictures of a species match each other's (`data.positives`); those of "en-taxa" would
    be true of pictures that the losses push away. Distillation's teacher: CCA of the towers as loaded
    (`start_inaturalist`).
    """
    presets.base_towers(config)
    config.data.path, config.data.eval_split = "data/inaturalist", "val"
    config.data.labels, config.data.positives = False, "labels"
    config.fusion.layers, config.fusion.hidden = 6, 3072
    config.batch_size, config.steps, config.optimizer.lr, config.optimizer.warmup = 1024, 8_500, 3e-4, 1_000
    if start:
        config.objectives, config.joint.start = {"itc": {}}, "cca"
        return config
    config.data.embeddings, config.objectives.distill.weight = "start", ((0, 1.0), (2_000, 0.0))
    config.objectives.itc.queue = config.objectives.fused.queue = 57_344
    config.objectives.lm.weight, config.objectives.itm.group = 1.0, 64
    return config
