"""Begin in a work directory: hold it, refuse what does not fit the run in it, and describe the run."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from xmodal_jax.assemble import WEIGHTS, Assembly, describe_weights
from xmodal_jax.atomic import write_file
from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import flat
from xmodal_jax.models.acquirers import AcquirerConfig
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.pixels import PixelConfig
from xmodal_jax.objectives.base import Objective
from xmodal_jax.origin import describe
from xmodal_jax.parallel.processes import is_first
from xmodal_jax.settings import Config, as_dict
from xmodal_jax.training.checkpoint import RUN_FILE, read_run, write_run
from xmodal_jax.training.init import path_there, read_init
from xmodal_jax.training.optimizer import refuse_mixed_momentum
from xmodal_jax.training.state import TrainState
from xmodal_jax.types import DataFacts, Params

log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Lock the work directory: a second run in it, say of a job that was queued again too early, is refused.

    The lock ends with the process, however it ends. A file system without locks has none.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{workdir}' cannot be a work directory ({error.strerror}); write another folder") from error
    if not is_first():
        yield
        return
    with (workdir / "lock").open("a", encoding="utf-8") as file:  # not "w": a refused start changes nothing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in '{workdir}'; stop it first, or write another work directory"
            ) from None
        except OSError as error:
            log.warning("'%s' cannot be locked (%s); see that no other run uses it", workdir, error)
        yield


def refuse_without_run_file(workdir: pathlib.Path) -> None:
    """Refuse to go on with checkpoints of which nothing tells what they were trained on."""
    if not (workdir / RUN_FILE).is_file():
        raise UserError(
            f"'{workdir}' has checkpoints and no {RUN_FILE}, which tells what they were trained on; put it back, or "
            "write another work directory"
        )


def refuse_other_tokenizer(assembly: Assembly, workdir: pathlib.Path) -> None:
    """Refuse to go on with other word ids under the same weights, which nothing else would notice."""
    for name, own in assembly.own_tokenizers.items():
        kept = workdir / name
        if kept.is_file() and kept.read_bytes() != own.path.read_bytes():
            raise UserError(
                f"the tokenizer '{own.path}' is not the one that '{workdir}' was trained with; write the "
                "config.data.path it was trained on, or another work directory"
            )


def refuse_other_starts(assembly: Assembly, workdir: pathlib.Path) -> None:
    """Refuse to go on with other languages that captions are begun in: starts would become those of others."""
    kept = read_run(workdir).get("starts", [])
    if kept and list(assembly.model.starts) not in ([], kept):
        raise UserError(
            f"captions of the run in '{workdir}' begin in {', '.join(kept)}, and the config's languages are now "
            f"{', '.join(assembly.model.starts)}; write those it had, in their order, or another work directory"
        )


def refuse_other_momentum(config: Config, state: TrainState, workdir: pathlib.Path) -> None:
    """Hold `optimizer.sgd_after` against what the run was last started with; see `refuse_mixed_momentum`."""
    updates = int(state.step) - int(state.skipped)
    try:
        before = flat(read_run(workdir)["config"]).get("optimizer/sgd_after", 0) if updates else 0
    except UserError:
        return
    refuse_mixed_momentum(before, config.optimizer.sgd_after, updates, str(workdir))


def is_new(workdir: pathlib.Path) -> bool:
    """Return True where no checkpoint lies in `workdir`; nothing is created."""
    return not any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def with_kept_facts(config: Config, workdir: pathlib.Path) -> Config:
    """Fill what weights depend on, where the config leaves it empty, from the run in `workdir`, or a new run's `init`.

    These are statistics of pixels, and languages of acquirers.
    """
    if not is_new(workdir):
        try:
            description = read_run(workdir)
        except UserError:
            return config
        return _with_facts_of(config, description)
    return with_facts_of_init(config)


def with_facts_of_init(config: Config) -> Config:
    """Fill what weights depend on, where the config leaves it empty, from the run `config.init`, if it names one.

    An encoder takes what belongs to the encoder whose tower `init_paths` gives it; to languages of acquirers come those
    of the data. Raises UserError for a folder without a run.
    """
    return _with_facts_of(config, read_init(config.init), more=True) if config.init else config


def _with_facts_of(config: Config, description: dict[str, Any], more: bool = False) -> Config:
    """Return the config with the facts of another run's description where it leaves them empty.

    With `more` the languages of the config's data follow those of the run.
    """
    try:
        kept: dict[str, Any] = description["config"]["encoders"]
        found = {}
        for name, own in config.encoders.items():
            spoken, renamed = config.data.spoken(name) if more else (), config.init_paths if more else ()
            towers = own.towers(name, f"{name}/tower")
            theirs = {place: _kept_at(kept, path_there(f"{path}/", renamed)) for place, path, _ in towers}
            own = own.with_towers(lambda place, tower, theirs=theirs: _kept_pixels(tower, theirs[place]), name)
            found[name] = _kept_languages(own, theirs.get(name, {}), spoken)
        return dataclasses.replace(config, encoders=found)
    except (KeyError, TypeError, AttributeError):
        return config


def _kept_at(kept: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the kept config of the tower whose parameters begin with `path`, such as "video/tower/frame/"."""
    name, *parts = path.strip("/").split("/")
    found = kept.get(name, {})
    for _ in parts[1:]:
        found = found.get("tower", {})
    return found


def _kept_languages(own: EncoderConfig, kept: dict[str, Any], more: Sequence[str]) -> Any:
    """Return an encoder's config with the languages in `kept` and then `more`, where it may have some and has none."""
    known = kept.get("languages", ())
    if not isinstance(own, AcquirerConfig) or own.languages or not known:
        return own
    return dataclasses.replace(own, languages=tuple(dict.fromkeys((*known, *more))))


def _kept_pixels(own: EncoderConfig, kept: dict[str, Any]) -> Any:
    """Return an encoder's config with the statistics of pixels in `kept`, where it leaves its own empty."""
    if (
        not isinstance(own, PixelConfig)
        or kept.get("kind") != own.kind
        or not (kept.get("pixel_mean") and kept.get("pixel_std"))
    ):
        return own
    mean, std = own.pixel_mean or tuple(kept["pixel_mean"]), own.pixel_std or tuple(kept["pixel_std"])
    return dataclasses.replace(own, pixel_mean=mean, pixel_std=std)


def say_short_run(config: Config) -> None:
    """Say that a run ends inside its warm-up: its learning rate never reaches `lr`."""
    warmup = config.optimizer.warmup
    if config.steps < warmup:
        log.warning(
            "config.optimizer.warmup is %d and config.steps %d: the learning rate only climbs, to %.2g %% of "
            "config.optimizer.lr; write a shorter warm-up to reach it",
            warmup,
            config.steps,
            100 * config.steps / warmup,
        )


def say_large_batch(config: Config, facts: DataFacts) -> None:
    """Say that a batch is larger than the data, so that all batches have rows twice."""
    units = round(facts.steps_per_epoch * config.batch_size)
    if 0 < units < config.batch_size:
        log.warning(
            "config.batch_size is %d and '%s' has %d training %s: every batch has some of them more than once, and a "
            "row is no negative of its copy; write config.batch_size=%d or less",
            config.batch_size,
            config.data.path,
            units,
            f"{config.data.unit}s",
            units,
        )


def usual_of(config: Config) -> Config:
    """Return the defaults of a config's sections; of encoders and the scorer, those of their kinds."""
    encoders = {name: type(own)() for name, own in config.encoders.items()}
    scorer: Any = config.scorer
    plain = scorer if isinstance(scorer, dict) else type(scorer)()
    return dataclasses.replace(Config(), encoders=encoders, scorer=plain)


def changes(config: Config, workdir: pathlib.Path) -> dict[str, str]:
    """Return what this start changes of the config that the run was last started with: {field: "old -> new"}.

    A field that run.json lacks is new in the package since, and had its default.
    """
    try:
        before = flat(read_run(workdir)["config"])
    except UserError:
        return {}
    now, usual = (flat(json.loads(json.dumps(as_dict(own)))) for own in (config, usual_of(config)))
    before = {name: usual[name] for name in now if name in usual} | before
    other = {name: value for name, value in now.items() if before.get(name) != value}
    return {name.replace("/", "."): f"{before.get(name)} -> {value}" for name, value in other.items()}


def changed_fields(config: Config, workdir: pathlib.Path) -> str:
    """Return in words what this start changes of the config that the run was last started with; "" for nothing."""
    told = ", ".join(f"{name} {change}" for name, change in changes(config, workdir).items())
    return f"; changed since its last start: {told}" if told else ""


def refuse_untrained_change(config: Config, step: int, workdir: pathlib.Path) -> None:
    """Refuse to change what the model of a finished run computes: its weights were never trained for that."""
    if step < config.steps:
        return
    for name, change in changes(config, workdir).items():
        if name.split(".")[0] in WEIGHTS:
            raise UserError(
                f"the run in '{workdir}' is finished, and config.{name} {change} would change its model without any "
                f"training; write config.steps above {step}, or another work directory"
            )


def refuse_other_rows(objectives: dict[str, Objective], config: Config, workdir: pathlib.Path) -> None:
    """Refuse another split while an objective keeps a table by the rows or pairs of the one before."""
    if "data.split" not in changes(config, workdir):
        return
    for name, item in objectives.items():
        if "pair" in item.reads or item.table:
            raise UserError(
                f"config.data.split is '{config.data.split}', and config.objectives.{name} of the run in '{workdir}' "
                "knows the rows of another split; write another work directory"
            )


def keep_description(assembly: Assembly, params: Params, workdir: pathlib.Path) -> None:
    """Write run.json and the tokenizers of no installed package, so that the weights can be used without the data."""
    for name, own in assembly.own_tokenizers.items():
        if own.path.resolve() != (workdir / name).resolve():
            write_file(workdir / name, own.path.read_bytes())
    weights = {"weights": describe_weights(assembly, params)}
    write_run(workdir, assembly.describe() | weights | {"data": describe(assembly.config, workdir)})
