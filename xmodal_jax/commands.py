"""The commands of the command line: each takes the parsed arguments and the overrides, and makes one call."""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xmodal_jax import __version__
from xmodal_jax.atomic import write_file
from xmodal_jax.errors import UserError

if TYPE_CHECKING:
    from xmodal_jax.api import TrainedRun

TOKEN_VARIABLE = "MILVUS_TOKEN"
INFERENCE = ("eval", "evals", "data", "mesh")  # sections of the config that may change once a model is trained


def flag(parameter: str) -> str:
    """Return the option of the command line for a parameter of a function: held_out -> --held-out."""
    return f"--{parameter.replace('_', '-')}"


def data_prepare(args: argparse.Namespace, _: list[str]) -> None:
    """Write a data set folder from a source."""
    from xmodal_jax.data.card import report
    from xmodal_jax.data.making import refuse_foreign
    from xmodal_jax.data.prepare import prepare
    from xmodal_jax.data.sources import make_source, source_options

    options = source_options(args.source)
    given = {option.name: value for option in options if (value := getattr(args, option.name)) is not None}
    for option in options:
        if option.default is option.empty and option.name not in given:
            raise UserError(f"'{args.source}' needs {flag(option.name)}; write {flag(option.name)}=...")
    for name, value in {**given, "max_size": args.max_size}.items():  # before anything is read
        if isinstance(value, int) and value < 0:
            raise UserError(f"{flag(name)} is {value}; write a whole number, and at least 0")
    refuse_foreign(pathlib.Path(args.out))
    how = {"max_size": args.max_size, "allow_bad": args.allow_bad, "force": args.force, "drop_copies": args.drop_copies}
    card = prepare(make_source(args.source, given), args.out, **how)
    print("\n".join(report(card)))
    print(f"{args.out} is ready")


def data_features(args: argparse.Namespace, _: list[str]) -> None:
    """Add the tokens of a frozen tower to a prepared data set, of its pictures or of another medium."""
    from xmodal_jax.data.features import LARGEST, refuse_misfit, write_features
    from xmodal_jax.data.records import PICTURES
    from xmodal_jax.encode.towers import find_tower, tower_encoder, tower_input

    usual, medium = find_tower(args.tower), args.medium or PICTURES
    asked = {"size": args.size, "parts": args.frames, "batch": args.batch}
    size, frames, batch = (getattr(usual, name) if own is None else own for name, own in asked.items())
    if args.size is not None and not usual.size:
        raise UserError(f"--size is {size}, and the inputs of the tower '{args.tower}' have none; leave it out")
    if usual.size and size < 1:
        raise UserError(f"--size is {size}; write the side of the pictures in pixels, 1 to {LARGEST}")
    inputs = tower_input(args.tower, medium, size, frames)
    parts = [str(size)] * bool(size) + ([] if medium == PICTURES else [medium, str(inputs.parts)])
    name = args.name or "-".join([args.tower, *parts])
    refuse_misfit(args.data, name, size, batch, medium, inputs.parts)
    if args.all_tokens:
        inputs = dataclasses.replace(inputs, pool="")
    encode = tower_encoder(args.tower, inputs.pool)
    card = write_features(args.data, name, encode, size, not args.no_flip, batch, args.tower, inputs)
    cache = card.feature(name)
    each = "picture" if medium == PICTURES else medium
    print(f"features '{name}': {cache['tokens']} x {cache['width']} {cache['dtype']} per {each} in {args.data}")


def data_embed(args: argparse.Namespace, overrides: list[str]) -> None:
    """Add a frozen teacher's embeddings of all pictures and captions to a prepared data set."""
    from xmodal_jax import config_file as configs
    from xmodal_jax.encode.embed_data import embed_data, refuse_misfit
    from xmodal_jax.workdir import open_run, open_start

    if bool(args.workdir) == bool(args.config):
        raise UserError("name one teacher: --workdir RUN, or --config CONFIG")
    refuse_misfit(args.data, args.name, args.batch)
    if args.workdir:
        assembly, params, step = open_run(args.workdir, section_overrides(overrides, INFERENCE))
        teacher = f"{assembly.config.name} step {step}"
    else:
        own = [] if any(item.startswith("data.path=") for item in overrides) else [f"data.path={args.data}"]
        assembly, params = open_start(configs.freeze(configs.load(args.config, overrides + own)))
        teacher = f"{assembly.config.name} start"
    card = embed_data(assembly, params, teacher, args.data, args.name, args.batch, args.dtype)
    made = card.embedding(args.name)
    views, languages = made["views"], made["languages"]
    what = " and ".join(
        [*([f"{len(views)} views"] if views else []), *([f"captions in {', '.join(languages)}"] if languages else [])]
    )
    print(f"embeddings '{args.name}' of {teacher}: width {made['width']} {made['dtype']}, {what} in {args.data}")


def data_noise(args: argparse.Namespace, _: list[str]) -> None:
    """Write a data set in which part of a split's captions are wrong."""
    from xmodal_jax.data.card import Card
    from xmodal_jax.data.noise import add_noise, report

    names = ("kind", "rate", "seed", "split", "share", "words")
    summary = add_noise(args.data, args.out, **{name: getattr(args, name) for name in names})
    print("\n".join(report(summary, (name for name in Card.load(args.out).splits if name != args.split))))
    print(f"{args.out} is ready")


def data_concepts(args: argparse.Namespace, _: list[str]) -> None:
    """Mine concepts from the training captions of a prepared data set, and mark all records with them."""
    from xmodal_jax.data.concepts import read_concepts, write_concepts

    listed, languages = read_concepts(args.words) if args.words else (), [*filter(None, args.languages.split(","))]
    card = write_concepts(args.data, args.name, args.count, args.split, languages, listed)
    names = card.concept(args.name)["names"]
    print(f"concepts '{args.name}': {len(names)} in {args.data} ({', '.join(names[:5])}, ...)")


def weights(args: argparse.Namespace, _: list[str]) -> None:
    """Rewrite a text tower's weights, config.json and tokenizer.json into the conventions of this package."""
    from xmodal_jax.convert import e5, text_tower

    tower = text_tower.rewritten(e5.text_tower() if args.of == "e5" else text_tower.read_folder(args.of))
    text_tower.write_folder(tower, args.out)
    sizes = [f"{field}={tower.description[key]}" for key, field in text_tower.FIELDS.items()]
    where = "--config.encoders.text."
    print(f"{args.out} is ready: {where}init={args.out} {where}tokenizer={args.out}")
    print("  " + " ".join(f"{where}{said}" for said in sizes))


def train(args: argparse.Namespace, overrides: list[str]) -> None:
    """Train a config in a work directory, or go on with it."""
    from xmodal_jax import config_file as configs
    from xmodal_jax.data.loader import threads_left
    from xmodal_jax.parallel import processes
    from xmodal_jax.settings import as_dict
    from xmodal_jax.training.loop import run_training
    from xmodal_jax.training.quick import refuse_unfit_quick

    config, profile = configs.freeze(configs.load(args.config, overrides)), steps_of(args.profile)
    refuse_unfit_quick(config)
    if args.stall != 0 and not 1 <= args.stall <= 86400:
        raise UserError(f"--stall is {args.stall}; write seconds from 1 to 86400 (a day), or 0 for off")
    silence = processes.heartbeat_for(args.stall)
    processes.initialize(args.coordinator, args.processes, args.process, args.distributed, silence, args.wait)
    leaving = processes.leaving_at_once(args.workdir, threads_left)
    with leaving, processes.watching(args.stall, args.workdir):
        same = {f"config.{name}": value for name, value in as_dict(config).items()}
        processes.agree({"version": __version__, "--workdir": args.workdir, "--stall": args.stall, **same})
        run_training(config, args.workdir, profile=profile, handle_signals=True, progress=sys.stderr)


def steps_of(text: str) -> tuple[int, int] | None:
    """Return "10:15" as (10, 15); None for ""."""
    if not text:
        return None
    first, _, last = text.partition(":")
    good = first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)
    if not good:
        raise UserError(f"--profile is '{text}'; write FIRST:LAST, steps counted from 1, such as 10:15")
    return int(first), int(last)


def section_overrides(overrides: list[str], allowed: tuple[str, ...]) -> dict[str, dict]:
    """Overrides for a run that is already trained: only the sections that do not change its weights."""
    from xmodal_jax import config_file as configs
    from xmodal_jax.settings import defaults

    values: Any = defaults()
    found: dict[str, dict] = {}
    for item in overrides:
        section, _, rest = item.partition("=")[0].partition(".")
        field = rest.split(".")[0]
        if section not in allowed:
            raise UserError(
                f"'--config.{item}' would change a trained model; only {', '.join(allowed)} can be changed here"
            )
        if section == "evals" and "." in rest:
            raise UserError(
                f"'--config.{item}' names a field of an entry; "
                f"write the whole entry, as --config.evals.{field}={{'kind': ...}}"
            )
        if not field:
            raise UserError(
                f"'--config.{item}' names a section; write a field of it, as --config.{section}.FIELD=VALUE"
            )
        configs.override(values, item)
        found.setdefault(section, {})[field] = configs.freeze_value(values[section][field])
    return found


def with_data(overrides: dict[str, dict], path: str) -> dict[str, dict]:
    """Add the data set that --data names to the overrides of a run."""
    if not path:
        return overrides
    if "path" in overrides.get("data", {}):
        raise UserError("--data and --config.data.path name one thing; write one")
    return overrides | {"data": overrides.get("data", {}) | {"path": path}}


def opened(args: argparse.Namespace, overrides: Sequence[str] = ()) -> "TrainedRun":
    """Open the run of a command, with the data set and the changes of the config that it asks for."""
    from xmodal_jax.api import load

    return load(args.workdir, with_data(section_overrides(list(overrides), INFERENCE), getattr(args, "data", "")))


def say(text: str) -> None:
    """Print what is under way, apart from the result."""
    print(text, file=sys.stderr)


def evaluate_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print and keep the tables of a run."""
    run = opened(args, overrides)
    if args.floor:
        run.measure_floor(args.split, say)
    result = run.evaluate(args.split, args.allow_trained, say, keep=False)
    print(result)  # before it is written: a folder that cannot be written does not lose it
    print(f"wrote {run.write_result('eval', result)}")
    if drawn := run.draw_languages(result, say):
        print(f"wrote {drawn}")


def classify_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print and keep the zero-shot accuracy of a run over the labels of its data set."""
    from xmodal_jax.eval.zeroshot import TEMPLATES, as_text, read_templates

    templates = read_templates(args.templates) if args.templates else TEMPLATES
    run = opened(args, overrides)
    result = run.classify(args.split, templates, args.classes, args.allow_trained, say, keep=False)
    print(as_text(result))
    print(f"wrote {run.write_result('classify', result)}")


def caption(args: argparse.Namespace, _: list[str]) -> None:
    """Write captions for pictures, or for a split with BLEU-4 and CIDEr against the true ones."""
    from xmodal_jax.eval.captioning import caption_split
    from xmodal_jax.eval.tables import scores_grid
    from xmodal_jax.origin import notes, refuse_trained

    run = opened(args)
    if args.images:
        for path, text in zip(args.images, run.caption(args.images, args.beam, args.language), strict=True):
            print(f"{path}\t{text}")
        return
    assembly, data = run.assembly, run.config.data
    said = notes(refuse_trained(assembly.origin, data.path, args.split or data.eval_split, args.allow_trained))
    how = {"allow_trained": args.allow_trained, "language": args.language}
    rows, scores = caption_split(assembly, run.params, args.split, args.limit, args.beam, **how)
    for row in rows[: args.show]:
        language = f"{row['language']}\t" if "languages" in scores else ""
        print(f"{row['key']}\t{language}{row['caption']}\t(true: {row['references'][0]})")
    if "languages" in scores:
        print(scores_grid(scores))
    else:
        print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()), f"over {len(rows)} pictures")
    print(*said, sep="\n", end="\n" if said else "")


def encode(args: argparse.Namespace, _: list[str]) -> None:
    """Write the embeddings of files, or of the lines of a text file, as a NumPy array."""
    import numpy as np

    run = opened(args)
    field = args.field or run.picture_field
    inputs = args.inputs
    if args.lines:
        inputs = pathlib.Path(args.lines).read_text("utf-8").splitlines()
    if not inputs:
        raise UserError("there is nothing to encode; write files, or --lines FILE with one input a line")
    found = run.encode(field, inputs)
    write_file(args.out, lambda file: np.save(file, found))
    print(f"wrote {args.out}: {found.shape[0]} x {found.shape[1]} {found.dtype}, unit rows of field '{field}'")


def show_config(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print every field of a config with its value and its meaning."""
    import dataclasses

    from xmodal_jax import config_file as configs
    from xmodal_jax.config_docs import as_text
    from xmodal_jax.eval.evaluations import build_evaluations
    from xmodal_jax.objectives import build_objectives

    config = configs.freeze(configs.load(args.config, overrides))
    built = {"objectives": build_objectives(config.objectives), "evals": build_evaluations(config.evals)}
    print(as_text(dataclasses.replace(config, **built)))


def index(args: argparse.Namespace, _: list[str]) -> None:
    """Embed the inputs of a field of splits, such as their pictures or captions, into a search index."""
    from xmodal_jax.retrieve.build import IndexOptions, build_index, data_of, kind_of, splits_of

    run = opened(argparse.Namespace(workdir=args.workdir))
    assembly, params = run.assembly, run.params
    source, origin = args.data or assembly.config.data.path, run.origin
    origin.refuse_missing(source)
    own = origin.is_own(source)
    more = {"upsert": args.upsert, "duplicates": args.allow_duplicates}
    how = IndexOptions(args.overwrite, args.append, args.codes_only, args.dtype, args.field, **more)
    path, count = build_index(assembly, params, args.workdir, args.out, args.data, args.split, how)
    splits = splits_of(data_of(assembly.config.data, args.data), args.split)
    of = f"split{'s' * (len(splits) > 1)} {', '.join(map(repr, splits))} of {source}"
    print(f"indexed {count} {kind_of(assembly.config, args.field).noun} in {path} ({of})")
    if not own:
        print("this is not the data set that the run was trained on")


def search(args: argparse.Namespace, _: list[str]) -> None:
    """Answer a text or an image query from an index."""
    from xmodal_jax.retrieve.pipeline import SearchPipeline
    from xmodal_jax.retrieve.query import SearchTarget, answer, as_table, contact_sheet, refuse_unshowable

    asked = [value for value in (args.query, args.image, args.file) if value]
    if len(asked) != 1:
        raise UserError('give one query: words, such as "a red fruit", --image FILE, or --file FILE of another field')
    if not args.file and args.as_field:
        raise UserError("--as says what --file is; leave it out")
    token = args.token or (os.environ.get(TOKEN_VARIABLE, "") if args.backend == "milvus" else "")
    if args.show:
        refuse_unshowable(args.show)
    moved = {"workdir": args.workdir, "data": args.data}
    where = SearchTarget(args.index, args.backend, args.uri, args.prefix, args.verify, args.collection, token, **moved)
    stages = SearchPipeline(args.kind, args.shortlist, args.rerank)
    hits = answer(where, args.query, args.image, args.k, stages, args.file, args.as_field, args.language)
    print(as_table(hits))
    if args.show:
        contact_sheet(hits, args.show, args.query or pathlib.Path(asked[0]).name, args.image)
        print(f"wrote {args.show}")


def curves(args: argparse.Namespace, _: list[str]) -> None:
    """Draw the learning curves of a run, or the losses of its training pairs."""
    from xmodal_jax.api import plot_curves, plot_pair_losses

    if args.pairs is None:
        print(f"wrote {plot_curves(args.workdir, args.out)}")
    else:
        print(f"wrote {plot_pair_losses(args.workdir, args.out, args.pairs)}")


def report(args: argparse.Namespace, _: list[str]) -> None:
    """Write the report of a run: page and picture."""
    from xmodal_jax.report import write_report

    for path in write_report(args.workdir, args.data, say):
        print(f"wrote {path}")
