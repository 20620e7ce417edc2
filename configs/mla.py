"""MLA (Zhang et al. 2022): a frozen English model learns languages by acquirers, a few units in each text layer.

Pictures, English and the text tower's blocks stay those of the run that configs/m_clip.py:english trained. `transfer`
(default) is stage 1, native-language transfer: a name in any language gets the embedding of the English one.
`exposure` is stage 2, language exposure: names and pictures by contrast. `add` teaches a trained run further languages
and touches nothing else: it wants their names, `--config.data.languages="('sw',)"`. `tiny` is for tests. Before
training:

    xmodal weights --of e5 --out weights/e5
    xmodal train --config configs/m_clip.py:english --workdir runs/m_clip-english
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

TOWER = ("layers", "embed/position", "embed/type", "embed/norm")  # of English, and not the words
FROM_ENGLISH = (*((f"text/tower/{part}", f"english/tower/{part}") for part in TOWER), ("text/head/", "english/head/"))
OTHERS = "^(image|english)/|^text/head/|^text/tower/(layers/|embed/(word|position|type|norm))|^log_temperature"


def get_config(variant: str = "transfer"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("transfer", "exposure", "add", "tiny"), "configs/mla.py")
    config = presets.names_in_languages(defaults())
    config.name = f"mla-{variant}"
    config.objectives = {"transfer": {"pair": ("english", "text")}}
    config.data.fields.text.update(per="batch", temperature=0.0)  # one language a step, each as often
    if variant == "tiny":
        presets.tiny(config)
        config.encoders.english = config.encoders.text.copy_and_resolve_references()
        config.encoders.text.update(kind="acquirers", acquirer=8, word_width=32)
        config.objectives.itc = {"queue": 0, "alpha": 0.0}
        config.objectives.english_itc = {"kind": "itc", "pair": ("image", "english"), "queue": 0, "alpha": 0.0}
        return config
    presets.english_towers(config)
    words = {"init": "weights/e5", "tokenizer": "weights/e5", "vocab_size": presets.E5["vocab_size"]}
    config.encoders.text.update(words, kind="acquirers")
    config.encoders.text.update(length=16, head_hidden=768)
    config.init, config.init_paths = "runs/m_clip-english", FROM_ENGLISH
    config.optimizer.freeze, config.optimizer.weight_decay = OTHERS, 0.0
    config.batch_size, config.steps, config.optimizer.lr, config.optimizer.warmup = 128, 1000, 1e-3, 50
    if variant == "exposure":
        config.init, config.init_paths, config.steps, config.optimizer.lr = "runs/mla-transfer", (), 200, 1e-4
        config.objectives = {"itc": {"queue": 0, "alpha": 0.0}}
    if variant == "add":
        config.init, config.init_paths, config.steps = "runs/mla-transfer", (), 300
        config.optimizer.freeze = f"{OTHERS}|^text/tower/embed/project"
    return config
