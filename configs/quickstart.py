"""The quickstart: emoji names and drawings, all five objectives in one step, both towers from pretrained starts.

Few pairs (1,244 concepts) and a short budget: the picture tower is frozen and cached at two input sizes, the heads
start from CCA and move slowly under heavy dropout (else they forget it within 50 steps), and fusion, decoder and heads
train over the frozen text tower. `finetune` trains both towers, from pixels.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

OBJECTIVES = {
    "itc": {"queue": 1024, "alpha": 0.4, "alpha_steps": 100},
    "itm": {"negatives": 1},
    "mlm": {"weight": 0.1, "alpha_steps": 100},  # one ramp with ITC's, as in ALBEF
    "lm": {"weight": 0.1},
    "hash": {"weight": 0.1},
}


def get_config(variant: str = "full"):
    """Return the config of a variant.

    `full`: the run of the README; `finetune`: from pixels; `tiny`: small random towers, for tests on any machine;
    `large`: two towers of 24 layers on 256 or 512 chips (see `large`); or a data set of `presets.TABLE`.
    """
    variant_of(variant, ("full", "finetune", "tiny", "large", *presets.TABLE), "configs/quickstart.py")
    config = defaults()
    config.name = f"quickstart-{variant}"
    config.data.path = "data/emoji"
    config.encoders.text.length = 10
    config.objectives = OBJECTIVES
    if variant == "tiny":
        return presets.tiny(config)
    if variant == "large":
        return large(config)
    if variant in presets.TABLE:
        return presets.data_set(config, variant)
    config.batch_size, config.steps, config.data.features = 128, 100, ("lite0-128", "lite0-192")
    presets.frozen_towers(config)
    return presets.finetuned(config, 128) if variant == "finetune" else config


def large(config):
    """Set up ViT-L/16, a text tower of its size, fusion of 6 layers, the five objectives and 16,384 pairs.

    For 256 or 512 chips; plans: benchmarks/results/plan-v5e-256.txt and plan-v5p-512.txt. The data set is yours
    (`--config.data.path`), with a BERT vocabulary.
    """
    config.data.path, config.encoders.image.size, config.encoders.text.length = "data/large", 224, 32
    config.batch_size, config.steps, config.dtype, config.log_every = 16384, 100_000, "bfloat16", 50
    config.mesh.data, config.mesh.fsdp = -1, 16
    for name in ("image", "text"):
        config.encoders[name].update(width=1024, layers=24, heads=16, hidden=4096, remat="full")
    config.encoders.text.update(tokenizer="minilm", positions=64, output_vocab="all")
    config.fusion.layers, config.fusion.heads, config.fusion.hidden, config.fusion.remat = 6, 16, 4096, "full"
    config.joint.embed, config.joint.bits = 512, 128
    config.objectives = OBJECTIVES | {
        "itc": {"queue": 65536, "alpha": 0.4, "alpha_steps": 10_000},
        "mlm": {"weight": 0.1, "alpha_steps": 10_000},
        "itm": {"negatives": 1, "group": 32},  # the rows of one of 512 chips: no token crosses devices
    }
    config.teacher.momentum = 0.999
    config.optimizer.lr, config.optimizer.warmup, config.optimizer.weight_decay = 5e-4, 5_000, 0.1
    config.eval.batch_size, config.checkpoint.every = 1024, 1_000
    return config
