"""M-CLIP (Carlsson et al. 2022): a multilingual text encoder learns the English encoder's embeddings from translations.

`english` trains pictures and English names by contrast, on frozen towers. `features` (default) starts from that run,
leaves it as it is, and trains a multilingual encoder so that a name in any language gets the embedding of the English
one; it sees no picture. `words` does so first with 18,000 words of dictionaries (benchmarks/parallel_words.py), and
`--config.init=runs/m_clip-words` lets `features` go on from there. `frozen` trains a head on the frozen multilingual
tower. `contrast` goes on with names and pictures. `tiny` is for tests. Data: benchmarks/emoji_views.py with
--languages; before training, for each of its data sets:

    xmodal weights --of e5 --out weights/e5
    xmodal data features --data data/emoji_views --tower lite0 --size 128
    xmodal data features --data data/emoji_views --tower lite0 --size 192
    xmodal train --config configs/m_clip.py:english --workdir runs/m_clip-english
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

TRANSFER = {"pair": ("english", "text")}


def get_config(variant: str = "features"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("features", "words", "frozen", "contrast", "english", "tiny"), "configs/m_clip.py")
    config = presets.names_in_languages(defaults())
    config.name = f"m_clip-{variant}"
    config.objectives = {
        "transfer": TRANSFER,
        "itc": {"queue": 0, "alpha": 0.0},
        "english_itc": {"kind": "itc", "pair": ("image", "english"), "queue": 0, "alpha": 0.0},
    }
    if variant == "tiny":
        presets.tiny(config)
        config.encoders.english = config.encoders.text.copy_and_resolve_references()
        return config
    presets.english_towers(config)
    if variant == "english":
        return only_english(config)
    config.encoders.text.update(presets.E5, init="weights/e5", tokenizer="weights/e5", length=16, head_hidden=768)
    config.init, config.optimizer.freeze = "runs/m_clip-english", "^(image|english)/|^text/tower/embed"
    config.objectives = {"transfer": TRANSFER}
    config.batch_size, config.steps, config.optimizer.lr, config.optimizer.warmup = 64, 600, 1e-3, 50
    config.optimizer.groups = (("^text/tower/", 0.1),)
    if variant == "words":
        config.data.path, config.data.fields.text.temperature = "data/emoji_words", 0.5
        config.data.fields.image.required = False  # words have no picture
        config.encoders.text.length, config.batch_size, config.steps = 10, 128, 500
    if variant == "frozen":
        config.encoders.text.update(cache_tokens=True, head_dropout=0.2)
        config.optimizer.freeze, config.optimizer.groups = "^(image|english)/|^text/tower/", ()
        config.batch_size, config.steps = 256, 1000
    if variant == "contrast":
        config.init, config.steps, config.optimizer.lr = "runs/m_clip-features", 200, 2e-4
        config.objectives = {"transfer": TRANSFER, "itc": {"queue": 0, "alpha": 0.0}}
    return config


def only_english(config):
    """Leave out the other languages: the towers' heads start from CCA and train slowly."""
    del config.encoders["text"], config.data.fields["text"], config.objectives["transfer"], config.objectives["itc"]
    config.eval.pairs, config.joint.start = (("image", "english"),), "cca"
    config.teacher.momentum, config.teacher.warmup = 0.98, True
    config.batch_size, config.steps, config.optimizer.warmup, config.optimizer.lr = 128, 200, 20, 1e-3
    config.optimizer.freeze, config.optimizer.groups = "^english/tower/", (("[/_]head/", 0.1),)
    return config
