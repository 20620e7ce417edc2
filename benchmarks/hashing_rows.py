"""The rows of the hashing table: (system, row) -> config and what it changes; and the budget of each data set."""

from runs import Row

BITS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # of codes that are to find the very pair
LABEL_BITS = (16, 32, 64, 128)  # of codes that are to find what shares a label
BUDGET = {  # the same for every row of a set
    "flickr8k": (
        "steps=200",
        "batch_size=128",
        "data.features=('lite0-160',)",
        "encoders.text.length=24",
        "eval.flip=False",
    ),
    "emoji_views": ("steps=400", "batch_size=128", "data.features=('lite0-128',)", "encoders.text.length=32"),
    "openclipart": ("steps=400", "batch_size=128", "data.features=('lite0-128',)", "encoders.text.length=32"),
}
PAIRS, LABELS = ("flickr8k",), ("emoji_views", "openclipart")
TECMH, VIT2CMH, CMHR = (f"configs/{name}.py:{{set}}" for name in ("tecmh", "vit2cmh", "cmhr_drn"))


def at(bits: int, nested: tuple[int, ...] = ()) -> tuple[str, ...]:
    """Return the overrides for codes of `bits` bits, the first of which are codes of the shorter lengths too."""
    return (f"joint.bits={bits}", f"joint.nested={nested}")


def lengths(system: str, config: str, own: tuple[int, ...] = BITS) -> tuple[Row, ...]:
    """Return the row of one model for all lengths, then a row for each of `own`."""
    nested = Row(system, "nested: one model for all lengths", config, at(BITS[-1], BITS[:-1]), PAIRS)
    return nested, *(Row(system, f"{bits} bits alone", config, at(bits), PAIRS, seeds=1) for bits in own)


def towers(system: str, name: str, *overrides: str, rates: tuple[float, ...] = (1e-3, 3e-4)) -> tuple[Row, ...]:
    """Return ViT2CMH's nested rows with other towers, one for each learning rate.

    Heads start at random; `overrides` change the towers.
    """
    given = [(rate, (*NESTED, *RANDOM, *overrides, f"optimizer.lr={rate}")) for rate in rates]
    return tuple(Row(system, f"{name}, rate {rate:g}", VIT2CMH, own, PAIRS) for rate, own in given)


NESTED = at(BITS[-1], BITS[:-1])
RANDOM = ("joint.start=random", "optimizer.groups=()", "objectives.hash_triplet.mean_steps=47")  # an epoch
WORDS = (
    "encoders.text.init=",
    "encoders.text.tokenizer=data",
    "encoders.text.cache_tokens=False",
    "optimizer.freeze=",
)  # learnt from the training captions
PIXELS = (
    "data.features=()",
    "encoders.image.size=96",
    "encoders.image.pool=mean",
)  # from the training pictures, beside the frozen MiniLM
UNSHARED = ("encoders.image.pool=mean", "encoders.text.pool=mean", "optimizer.groups=(('[/_]head/', 0.1),)")
PLAIN = "objectives.hash_quality.quantization=0.0"
SUPCON = ("objectives.hash_supcon.weight=1.0", "objectives.hash.similarity=0.0")
MINILM = (  # frozen, with a head of the picture's size; what TF-IDF cannot know of words that no training caption has
    "encoders.text.kind=bert",
    "encoders.text.init=minilm",
    "encoders.text.tokenizer=minilm",
    "encoders.text.cache_tokens=True",
    "encoders.text.width=384",
    "encoders.text.head_hidden=768",
    "encoders.image.head_hidden=768",
    "optimizer.freeze=^text/tower/",
    "objectives.hash_distance.weight=0.0",
)
SIZES = ("data.features=('lite0-128','lite0-192')",)  # the picture at two input sizes, side by side
LONGER = ("steps=1500", "optimizer.sgd_after=1125")  # beyond the budget: what more of it would give
ROWS = (
    *lengths("TECMH", TECMH, (64, 512)),  # a run takes ten times what ViT2CMH's does
    Row("TECMH", "nested, without the shared transformer", TECMH, (*NESTED, *UNSHARED), PAIRS),
    *lengths("ViT2CMH", VIT2CMH),
    Row("ViT2CMH", "nested, without quantisation", VIT2CMH, (*NESTED, PLAIN), PAIRS),
    Row(
        "ViT2CMH", "nested, balance at 0.01", VIT2CMH, (*NESTED, "objectives.hash_quality.balance=0.01"), PAIRS, seeds=1
    ),
    Row(
        "ViT2CMH",
        "nested, one linear layer, first 64 bits start from CCA",
        VIT2CMH,
        (*NESTED, "joint.hash_hidden=0", "joint.hash_variates=64"),
        PAIRS,
    ),
    Row(
        "ViT2CMH",
        "nested, straight-through sign (nothing to quantise)",
        VIT2CMH,
        (*NESTED, PLAIN, "joint.hash_kind=sign"),
        PAIRS,
    ),
    *towers("text towers", "MiniLM, frozen"),
    *towers("text towers", "BERT from scratch, 2 layers", *WORDS, "encoders.text.layers=2"),
    *towers(
        "text towers",
        "bidirectional GRU from scratch",
        *WORDS,
        "encoders.text.kind=gru",
        "encoders.text.words=300",
        "encoders.text.layers=1",
    ),
    *towers("text towers", "TF-IDF", *WORDS, "encoders.text.kind=tfidf", "encoders.text.width=384"),
    *towers(
        "picture towers",
        "ViT from scratch, 6 layers",
        *PIXELS,
        "encoders.image.kind=vit",
        "encoders.image.width=192",
        "encoders.image.layers=6",
        "encoders.image.heads=3",
        "encoders.image.hidden=768",
        rates=(1e-3,),
    ),
    *towers(
        "picture towers",
        "ResNet-14 from scratch",
        *PIXELS,
        "encoders.image.kind=resnet",
        "encoders.image.depth=14",
        "encoders.image.width=512",
        rates=(1e-3,),
    ),
    *(Row("CMHR-DRN", f"{bits} bits", CMHR, at(bits), LABELS) for bits in LABEL_BITS),
    Row("CMHR-DRN", "64 bits, without distances", CMHR, (*at(64), "objectives.hash_distance.weight=0.0"), LABELS),
    *(
        Row(
            "CMHR-DRN",
            f"{bits} bits, supervised contrast in place of the likelihood",
            CMHR,
            (*at(bits), *SUPCON),
            LABELS,
        )
        for bits in (64, 128)
    ),
    Row(
        "CMHR-DRN", "64 bits, supervised contrast, MiniLM in place of TF-IDF", CMHR, (*at(64), *SUPCON, *MINILM), LABELS
    ),
    Row(
        "CMHR-DRN",
        "64 bits, supervised contrast, MiniLM, two input sizes",
        CMHR,
        (*at(64), *SUPCON, *MINILM, *SIZES),
        LABELS,
    ),
    Row(
        "CMHR-DRN",
        "64 bits, supervised contrast, MiniLM, two input sizes, 1,500 steps",
        CMHR,
        (*at(64), *SUPCON, *MINILM, *SIZES, *LONGER),
        LABELS,
    ),
    Row("CMHR-DRN", "64 bits, Adam to the end", CMHR, (*at(64), "optimizer.sgd_after=0"), LABELS),
)


def command(row: Row, name: str, data: str, seed: int) -> tuple[str, list[str]]:
    """Return the config and the overrides of one run, as `xmodal train` takes them."""
    return row.config.format(set=name), [f"data.path={data}", f"seed={seed}", *BUDGET[name], *row.overrides]
