"""The rows of the fusion table: (system, row) -> config and what it changes; and the budget of each data set."""

from runs import Row

from xmodal_jax import config_file as configs

BUDGET = {  # the same for every row of a set; one cached input size and short texts, for this is about differences
    "emoji_views": (
        "steps=60",
        "batch_size=64",
        "data.features=('lite0-128',)",
        "encoders.text.length=16",
        "eval.rerank=(16,)",
        "encoders.text.cache_tokens=True",
    ),
    "flickr8k": (
        "steps=60",
        "batch_size=64",
        "data.features=('lite0-160',)",
        "encoders.text.length=16",
        "eval.rerank=(8,)",
        "encoders.text.cache_tokens=True",
    ),
}
FUSING = ("itm", "mlm", "lm", "fused", "mvjrc")  # objectives whose cost is in fusion and decoder,
QUEUE = 256  # keys: a queue of an epoch or more would be older than what it is compared with
EVERY = 4  # which see every 4th row of a batch, 16 rows; ITC sees all


def without(*names: str) -> tuple[str, ...]:
    """Return the overrides that leave objectives out."""
    return tuple(f"objectives.{name}.weight=0.0" for name in names)


NO_BRIDGE = (
    *(f"objectives.{name}.bridge=False" for name in ("itc", "lm", "fused")),
    "optimizer.groups=(('^image/head/(attended|probe)', 1.0), ('[/_]head/', 0.1))",  # ReCap's without the gate's
)
RANDOM = ("joint.start=random", "optimizer.groups=()")  # at the full rate: CCA's slow heads would stay random
NO_QUEUE = ("objectives.itc.queue=0", "objectives.fused.queue=0")
EMOJI, FLICKR = ("emoji_views",), ("flickr8k",)  # enough for a side question
RECAP, MTGFE, ALIGNED = "configs/recap.py:{set}", "configs/mtgfe.py:{set}", "configs/adequate_alignment.py:{set}"


def finetuned(name: str, config: str, *overrides: str, sets: tuple[str, ...] = tuple(BUDGET)) -> Row:
    """Return the row of a full system from pixels with both towers trained, run once: frozen towers hide a lot."""
    pixels = ("data.features=()", "encoders.text.cache_tokens=False")
    return Row("fine-tuned towers", name, config + "_finetune", (*pixels, *overrides), sets, seeds=1)


def fixed_momentum(value: float) -> tuple[str, ...]:
    """Return the overrides for one EMA momentum from the first step on.

    Its ramp would hide 0.99 from 0.995 in a short run.
    """
    return (f"teacher.momentum={value}", "teacher.warmup=False")


STUDENT = ("eval.params=student",)  # a slow teacher still holds much of its start: a share of m^60 after 60 steps


def pools(pool: str) -> tuple[str, ...]:
    """Return the overrides that pool both sides by `pool`."""
    return tuple(f"encoders.{side}.pool={pool}" for side in ("image", "text"))


def alone(pool: str) -> Row:
    """Return the row of one aggregator without a linear path (VSE-infinity's own form), so without a start from CCA."""
    own = *pools(pool), *(f"encoders.{side}.token_hidden=256" for side in ("image", "text"))
    words = {"average": "mean", "gpo": "GPO", "max": "max"}[pool]
    return Row("Adequate Alignment", f"{words} alone, from a random start", ALIGNED, (*own, *RANDOM), FLICKR, seeds=1)


ROWS = (
    Row("quickstart", "quickstart at this budget", "configs/quickstart.py:{set}"),
    Row("ReCap", "full", RECAP),
    Row("ReCap", "without residual attention (plain EMA)", RECAP, NO_BRIDGE),
    Row("ReCap", "gate in place of cross", RECAP, ("bridge.kind=gate",), EMOJI),
    Row("ReCap", "without LM", RECAP, without("lm")),
    Row("ReCap", "without ITM", RECAP, without("itm")),
    Row("ReCap", "without queues", RECAP, NO_QUEUE),
    Row("ReCap", "without distillation", RECAP, without("distill")),
    Row("ReCap", "heads start at random, distilled", RECAP, RANDOM, EMOJI),
    Row("ReCap", "heads start at random, not distilled", RECAP, (*RANDOM, *without("distill")), EMOJI),
    Row("ReCap", "momentum 0", RECAP, fixed_momentum(0.0)),
    Row("ReCap", "momentum 0.99", RECAP, fixed_momentum(0.99)),
    Row("ReCap", "momentum 0.995", RECAP, fixed_momentum(0.995)),
    Row("ReCap", "full, the student evaluated", RECAP, STUDENT, FLICKR),
    Row("ReCap", "momentum 0.99, the student evaluated", RECAP, (*fixed_momentum(0.99), *STUDENT), FLICKR),
    Row("ReCap", "momentum 0.995, the student evaluated", RECAP, (*fixed_momentum(0.995), *STUDENT), FLICKR),
    Row(
        "ReCap",
        "momentum 0.995 without residual attention, the student evaluated",
        RECAP,
        (*fixed_momentum(0.995), *NO_BRIDGE, *STUDENT),
        FLICKR,
    ),
    Row("MTGFE", "ITM", MTGFE + "_plain", without("mlm", "mvjrc")),
    Row("MTGFE", "ITM + MLM", MTGFE + "_plain", without("mvjrc")),
    Row("MTGFE", "ITM + MVJRC", MTGFE + "_plain", without("mlm")),
    Row("MTGFE", "ITM + MLM + MVJRC (the abstract's three)", MTGFE + "_plain"),
    Row("MTGFE", "the three, MVJRC against swapped pictures", MTGFE + "_plain", ("objectives.mvjrc.swapped=True",)),
    Row("MTGFE", "full: the three and ITC", MTGFE),
    Row("Adequate Alignment", "ITC", ALIGNED, without("ims", "lmim", "itm")),
    Row("Adequate Alignment", "ITC + IMS", ALIGNED, without("lmim", "itm")),
    Row("Adequate Alignment", "ITC + IMS + LMIM", ALIGNED, without("itm")),
    Row("Adequate Alignment", "full: ITC + IMS + LMIM + fusion", ALIGNED),
    Row("Adequate Alignment", "mean in place of GPO", ALIGNED, pools("mean+average")),
    Row("Adequate Alignment", "max in place of GPO", ALIGNED, pools("mean+max")),
    *(alone(pool) for pool in ("gpo", "average", "max")),
    finetuned("quickstart", "configs/quickstart.py:{set}"),
    finetuned("ReCap, full", RECAP),
    finetuned("MTGFE, full", MTGFE),
    finetuned("Adequate Alignment, full", ALIGNED),
    finetuned("Adequate Alignment without LMIM", ALIGNED, *without("lmim"), sets=EMOJI),
    finetuned("Adequate Alignment, LMIM of captions alone", ALIGNED, "objectives.lmim.sides=('text',)", sets=EMOJI),
    finetuned(
        "Adequate Alignment, LMIM at a tenth of its weight", ALIGNED, "objectives.lmim.weight=0.0333", sets=EMOJI
    ),
    finetuned("Adequate Alignment without LMIM and IMS", ALIGNED, *without("lmim", "ims"), sets=EMOJI),
)


def command(row: Row, name: str, data: str, seed: int) -> tuple[str, list[str]]:
    """Return the config and the overrides of one run, as `xmodal train` takes them."""
    spec = row.config.format(set=name)
    objectives = configs.load(spec).objectives
    used = [kind for kind in objectives if without(kind)[0] not in row.overrides]
    every = [f"objectives.{kind}.every={EVERY}" for kind in used if kind in FUSING]
    queues = [f"objectives.{kind}.queue={QUEUE}" for kind in used if objectives[kind].get("queue")]
    return spec, [f"data.path={data}", f"seed={seed}", *BUDGET[name], *every, *queues, *row.overrides]
