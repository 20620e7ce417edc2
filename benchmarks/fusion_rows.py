"""The rows of the fusion table: (system, row) -> config and what it changes; and the budget of each data set."""

from dataclasses import dataclass

from xmodal_jax import config as configs

SETS = ("emoji_views", "flickr8k")
BUDGET = {  # the same for every row of a set
    "emoji_views": ("steps=60", "batch_size=128"),
    "flickr8k": ("steps=60", "batch_size=256"),
}
FUSING = ("itm", "mlm", "lm", "fused", "mvjrc")  # objectives whose cost is in fusion and decoder,
EVERY = {"emoji_views": 4, "flickr8k": 8}  # which see every n-th row of a batch, 32 rows; ITC sees all


@dataclass(frozen=True)
class Row:
    """One line of the table: its config (`{set}` is the data set's variant) and overrides, as on the command line."""

    system: str
    name: str
    config: str
    overrides: tuple[str, ...] = ()


def without(*names: str) -> tuple[str, ...]:
    """Overrides that leave objectives out."""
    return tuple(f"objectives.{name}.weight=0.0" for name in names)


NO_BRIDGE = tuple(f"objectives.{name}.bridge=False" for name in ("itc", "lm", "fused"))
NO_QUEUE = ("objectives.itc.queue=0", "objectives.fused.queue=0")
RECAP, MTGFE, ALIGNED = "configs/recap.py:{set}", "configs/mtgfe.py:{set}", "configs/adequate_alignment.py:{set}"


def fixed_momentum(value: float) -> tuple[str, ...]:
    """An EMA of one momentum from the first step on (its ramp would hide 0.99 from 0.995 in a short run)."""
    return (f"teacher.momentum={value}", "teacher.warmup=False")


ROWS = (
    Row("quickstart", "quickstart at this budget", "configs/quickstart.py:full"),
    Row("ReCap", "full", RECAP),
    Row("ReCap", "without residual attention (plain EMA)", RECAP, NO_BRIDGE),
    Row("ReCap", "gate in place of cross", RECAP, ("bridge.kind=gate",)),
    Row("ReCap", "without LM", RECAP, without("lm")),
    Row("ReCap", "without ITM", RECAP, without("itm")),
    Row("ReCap", "without queues", RECAP, NO_QUEUE),
    Row("ReCap", "without the distilled start", RECAP, without("distill")),
    Row("ReCap", "momentum 0", RECAP, fixed_momentum(0.0)),
    Row("ReCap", "momentum 0.99", RECAP, fixed_momentum(0.99)),
    Row("ReCap", "momentum 0.995", RECAP, fixed_momentum(0.995)),
    Row("MTGFE", "ITM", MTGFE + "_plain", without("mlm", "mvjrc")),
    Row("MTGFE", "ITM + MLM", MTGFE + "_plain", without("mvjrc")),
    Row("MTGFE", "ITM + MVJRC", MTGFE + "_plain", without("mlm")),
    Row("MTGFE", "ITM + MLM + MVJRC (the abstract's three)", MTGFE + "_plain"),
    Row("MTGFE", "full: the three and ITC", MTGFE),
    Row("Adequate Alignment", "ITC", ALIGNED, without("ims", "lmim", "itm")),
    Row("Adequate Alignment", "ITC + IMS", ALIGNED, without("lmim", "itm")),
    Row("Adequate Alignment", "ITC + IMS + LMIM", ALIGNED, without("itm")),
    Row("Adequate Alignment", "full: ITC + IMS + LMIM + fusion", ALIGNED),
    Row("Adequate Alignment", "mean in place of GPO", ALIGNED, ("image.pool=mean+average", "text.pool=mean+average")),
    Row("Adequate Alignment", "max in place of GPO", ALIGNED, ("image.pool=mean+max", "text.pool=mean+max")),
)


def quickstart_on(name: str) -> tuple[str, ...]:
    """What the quickstart's config needs to run on a set of the table: its data, nothing of its method."""
    if name == "emoji_views":
        from xmodal_jax.presets import TEST_VIEWS, TRAIN_VIEWS

        views = (f"data.views={TRAIN_VIEWS}", f"eval.views={TEST_VIEWS}", "data.augment.flip=0.0")
        return (*views, "data.languages=('en-tags',)", "data.length=20", "eval.rerank=(16,)")
    features = "data.features=('lite0-160','lite0-224')"
    return (features, "data.length=24", "data.eval_split=val", "eval.flip=True", "eval.rerank=(16,)")


def command(row: Row, name: str, data: str, seed: int) -> tuple[str, list[str]]:
    """The config and the overrides of one run, as `xmodal train` takes them."""
    spec = row.config.format(set=name)
    own = quickstart_on(name) if row.system == "quickstart" else ()
    used = [kind for kind in configs.load(spec).objectives if kind in FUSING and without(kind)[0] not in row.overrides]
    every = [f"objectives.{kind}.every={EVERY[name]}" for kind in used]
    return spec, [f"data.path={data}", f"seed={seed}", *own, *BUDGET[name], *every, *row.overrides]
