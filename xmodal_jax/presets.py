"""Settings that several configs share: data sets on frozen towers, towers trained from pixels, and a tiny model.

Each function changes the ConfigDict it is given and returns it. What makes a method is in its file in configs/; what
makes a data set small or large, and which weights it starts from, is here.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# (fields of a ConfigDict have no types)
from ml_collections import ConfigDict

TRAIN_VIEWS = ("noto", "openmoji", "fluent-3d", "fluent-flat", "emojione")  # Twemoji is never trained on
TEST_VIEWS = ("openmoji", "twemoji")
TRAINED = ("de", "fr", "es", "ru", "ja", "zh", "hi", "ar", "ko", "tr", "pl", "id")
UNSEEN = ("it", "nl", "sv", "uk", "vi", "th", "he", "sw")  # languages that only evaluation reads
E5 = {"layers": 12, "width": 384, "heads": 12, "hidden": 1536, "positions": 512, "vocab_size": 250_002}


def frozen_towers(config: ConfigDict) -> ConfigDict:
    """Set cached pictures and a frozen MiniLM; the heads start from CCA and move slowly under heavy dropout.

    Few pairs: without these the heads forget CCA within fifty steps (benchmarks/results/README.md).
    """
    config.encoders.image.update(kind="features", head_hidden=768, head_dropout=0.7)
    config.data.keep_gb = 4.0
    config.encoders.text.update(init="minilm", tokenizer="minilm", cache_tokens=True, head_hidden=768, head_dropout=0.5)
    config.fusion.hidden, config.fusion.dropout, config.fusion.head_dropout = 768, 0.2, 0.5
    config.joint.start, config.teacher.momentum = "cca", 0.98
    config.teacher.warmup = True  # in 200 steps an EMA of 0.98 from the first on would still hold the start's weights
    config.optimizer.lr, config.optimizer.warmup, config.optimizer.freeze = 1e-3, 20, "^text/tower/"
    config.optimizer.groups = (("[/_]head/", 0.3),)
    return config


def emoji_views(config: ConfigDict) -> ConfigDict:
    """Set emoji by five vendors, asked with one of them and with a sixth (data of benchmarks/emoji_views.py).

    Captions are the name and its tags: a name alone has two or three words, too few to mask one and read the others.
    """
    config.data.path, config.encoders.text.length, config.data.views = "data/emoji_views", 20, TRAIN_VIEWS
    config.data.languages = ("en-tags",)
    config.data.features, config.eval.views, config.eval.rerank = ("lite0-128", "lite0-192"), TEST_VIEWS, (16,)
    config.data.augment.flip = 0.0  # arrows and hands point somewhere
    config.batch_size, config.steps = 128, 200
    return gentle_heads(frozen_towers(config))


def names_in_languages(config: ConfigDict) -> ConfigDict:
    """Set three fields: pictures, their names in English, and in any of `data.languages`."""
    picture, other = config.data.fields
    config.data.fields.english = {"medium": other, "languages": ("en",)}
    config.eval.pairs = ((picture, other), (picture, "english"), ("english", other))
    return config


def english_towers(config: ConfigDict) -> ConfigDict:
    """Set emoji with names in twenty languages, their pictures cached, and a frozen MiniLM for English."""
    config.data.path, config.data.views, config.eval.views = "data/emoji_views", TRAIN_VIEWS, TEST_VIEWS
    config.data.languages, config.eval.languages = TRAINED, (*TRAINED, *UNSEEN)
    config.data.features, config.data.keep_gb, config.data.augment.flip = ("lite0-128", "lite0-192"), 4.0, 0.0
    config.encoders.image.update(kind="features", head_hidden=768, head_dropout=0.3)
    config.encoders.english = config.encoders.text.copy_and_resolve_references()
    config.encoders.english.update(init="minilm", tokenizer="minilm", cache_tokens=True, length=16)
    config.encoders.english.update(head_hidden=768, head_dropout=0.2)
    config.fusion.pair, config.eval.rerank = (next(iter(config.data.fields)), "english"), ()
    return config


def flickr8k(config: ConfigDict) -> ConfigDict:
    """Set Flickr8k, train -> val, on cached tokens at two input sizes, plain and mirrored (configs/flickr8k.py)."""
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/flickr8k", "val", 24
    config.data.features, config.data.augment.flip, config.eval.rerank = ("lite0-160", "lite0-224"), 0.5, (16,)
    config.batch_size, config.steps, config.eval.flip = 256, 200, True
    frozen_towers(config)
    config.joint.embed, config.joint.start_ridge = 512, 0.3
    config.fusion.head_dropout, config.optimizer.weight_decay = 0.3, 0.1
    return gentle_heads(config)


def gentle_heads(config: ConfigDict) -> ConfigDict:
    """Set heads for small batches: slower, with dropout low enough for the teacher's keys to resemble the student's.

    At 64 rows, 60 steps and the settings of `frozen_towers` ITC alone took 13 rSum from a CCA start on held-out
    training records of Flickr8k; with these it adds 5 (benchmarks/results/fusion.md).
    """
    config.encoders.image.head_dropout, config.encoders.text.head_dropout = 0.3, 0.2
    config.optimizer.groups = (("[/_]head/", 0.1),)
    return config


def pair_codes(config: ConfigDict) -> ConfigDict:
    """Set what makes codes of pairs lose little when they are binarised (`hash_quality`); call it when `steps` is set.

    Quantisation grows from 0.1 to 1 over the run: at first what the codes say counts, at the end that they are near ±1.
    The line ends at `config.steps`; a run of other steps wants `objectives.hash_quality.quantization` too.
    Decorrelation is 0: DCMH, DCHMT and UCCH do without.
    """
    config.objectives.hash_quality.quantization = ((0, 0.1), (config.steps, 1.0))
    return config


DATA_SETS = {"emoji_views": emoji_views, "flickr8k": flickr8k}
SIZES = {"emoji_views": 128, "flickr8k": 160}  # px that the towers are trained at
TABLE = (*DATA_SETS, *(f"{name}_finetune" for name in DATA_SETS))  # the variants of every config in the fusion table


def data_set(config: ConfigDict, variant: str) -> ConfigDict:
    """Set one of `TABLE`: a data set on frozen towers, or with "_finetune" both towers trained from pixels."""
    name = variant.removesuffix("_finetune")
    DATA_SETS[name](config)
    return config if variant == name else finetuned(config, SIZES[name])


def finetuned(config: ConfigDict, size: int, batch_size: int = 64) -> ConfigDict:
    """Train both towers from pixels of `size` px, from the weights that `frozen_towers` only reads.

    The rates are those of pretrained towers. A text tower from scratch wants the whole rate and other heads than CCA's:
    `--config.encoders.text.init= --config.encoders.text.tokenizer=data --config.optimizer.freeze=
    --config.joint.start=random --config.optimizer.groups=(('^image/tower/',0.1),)`.
    """
    config.encoders.image.kind, config.encoders.image.init, config.data.features = "efficientnet", "lite0", ()
    config.encoders.text.cache_tokens = False
    config.encoders.image.size, config.batch_size = size, batch_size
    config.optimizer.freeze = "^text/tower/embed"
    config.optimizer.groups = (("^text/tower/", 0.05), ("^image/tower/", 0.1), *tuple(config.optimizer.groups))
    return config


def base_towers(config: ConfigDict) -> ConfigDict:
    """Set ViT-B/16 at 224 px and BERT-base, both trained, from the weights you name in the encoders' `init`."""
    config.encoders.image.size, config.encoders.text.tokenizer = 224, "minilm"  # MiniLM's words are BERT's
    for own in config.encoders.values():
        own.update(width=768, layers=12, heads=12, hidden=3072)
    config.fusion.heads, config.dtype = 12, "bfloat16"
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """Set small towers from scratch, a ViT on 32 pixels and a BERT of two layers: for tests on any machine."""
    config.batch_size, config.steps, config.log_every, config.optimizer.warmup = 16, 20, 5, 5
    config.teacher.warmup = True  # in 20 steps the teacher would be the start
    config.encoders.image.size, config.encoders.text.length = 32, 12
    config.encoders.image.update(patch=8, width=32, layers=2, heads=2, hidden=64)
    config.encoders.text.update(width=32, layers=2, heads=2, hidden=64, positions=16)
    config.fusion.layers, config.fusion.heads, config.fusion.hidden = 1, 2, 64
    config.bridge.hidden, config.joint.embed, config.joint.bits = 64, 16, 16
    config.eval.batch_size, config.eval.rerank = 64, (8,)
    for fields in config.objectives.values():
        if "queue" in fields:
            fields.queue = 64
    return config
