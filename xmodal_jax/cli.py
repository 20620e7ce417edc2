"""The command line: parse -> config -> one call. Bad input is one sentence and exit code 2."""

import argparse
import logging
import os
import pathlib
import sys
from typing import Any

from xmodal_jax import __version__
from xmodal_jax.errors import UserError, refuse_unless

PREPARED = (
    "emoji", "stamps", "openclipart", "karpathy", "precomp", "albef", "inaturalist", "mirflickr", "nuswide", "wikipedia",
    "mat", "jsonl", "tfds",
)  # fmt: skip
TOKEN_VARIABLE = "MILVUS_TOKEN"
DATA_HELP = "data set (default: the run's own, where it was or beside the run)"
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def set_up_jax() -> None:
    """Turn the persistent compile cache on (unless the environment names one): the second start takes seconds."""
    import jax

    if CACHE_VARIABLE not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "xmodal_jax", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take `--config.a.b=value` out of the arguments: (the rest, the overrides "a.b=value")."""
    mark = "--config."
    rest, overrides, waiting = [], [], None
    for argument in arguments:
        if waiting is not None:
            overrides.append(f"{waiting}={argument}")
            waiting = None
        elif not argument.startswith(mark):
            rest.append(argument)
        elif "=" in argument:
            overrides.append(argument.removeprefix(mark))
        else:
            waiting = argument.removeprefix(mark)
    refuse_unless(waiting is None, f"'--config.{waiting}' has no value; write --config.{waiting}=VALUE")
    return rest, overrides


def data_prepare(args: argparse.Namespace, _: list[str]) -> None:
    """Write a data set folder from a source."""
    from xmodal_jax.data.card import report
    from xmodal_jax.data.making import refuse_foreign
    from xmodal_jax.data.prepare import prepare
    from xmodal_jax.data.sources import SOURCES

    names = {
        "emoji": ("size", "held_out"),
        "stamps": ("root", "size", "held_out", "only", "label"),
        "openclipart": ("root", "size", "held_out", "label"),
        "karpathy": ("path", "images", "licence"),
        "precomp": ("path", "images", "licence"),
        "albef": ("path", "images", "name", "licence"),
        "inaturalist": ("path", "images", "licence"),
        "mirflickr": ("path", "queries", "train", "licence"),
        "nuswide": ("path", "images", "train", "licence"),
        "wikipedia": ("path", "licence"),
        "mat": ("path", "images", "vocabulary", "label_names", "queries", "train", "licence"),
        "jsonl": ("path", "root", "licence", "held_out"),
        "tfds": ("name", "data_dir", "image_key", "text_key", "label_key", "language", "licence"),
    }
    given = {name: value for name in names[args.source] if (value := getattr(args, name)) is not None}
    options = sorted(set().union(*names.values()))
    option = lambda name: f"--{name.replace('_', '-')}"
    extra = [name for name in options if getattr(args, name) is not None and name not in names[args.source]]
    refuse_unless(
        not extra,
        f"'{args.source}' takes no {option(extra[0]) if extra else ''}; "
        f"it takes {', '.join(map(option, names[args.source]))}",
    )
    files = ("karpathy", "precomp", "albef", "inaturalist", "mirflickr", "nuswide", "wikipedia", "mat", "jsonl")
    needed = "path" if args.source in files else {"tfds": "name"}.get(args.source)
    refuse_unless(not needed or needed in given, f"'{args.source}' needs --{needed}; write --{needed}=...")
    for name in ("max_size", "size", "held_out", "queries", "train"):  # before anything is read
        value = getattr(args, name)
        refuse_unless(value is None or value >= 0, f"{option(name)} is {value}; write a whole number, and at least 0")
    refuse_foreign(pathlib.Path(args.out))
    how = {"max_size": args.max_size, "allow_bad": args.allow_bad, "force": args.force, "drop_copies": args.drop_copies}
    card = prepare(SOURCES[args.source](**given), args.out, **how)
    print("\n".join(report(card)))
    print(f"{args.out} is ready")


def data_features(args: argparse.Namespace, _: list[str]) -> None:
    """Add the grid tokens of a frozen tower to a prepared data set."""
    from xmodal_jax.data.features import refuse_misfit, write_features
    from xmodal_jax.models.towers import tower_encoder

    name = args.name or f"{args.tower}-{args.size}"
    refuse_misfit(args.data, name, args.size, args.batch)
    encode = tower_encoder(args.tower)
    card = write_features(args.data, name, encode, args.size, not args.no_flip, args.batch, args.tower)
    cache = card.feature(name)
    print(f"features '{name}': {cache['tokens']} x {cache['width']} {cache['dtype']} per picture in {args.data}")


def data_embed(args: argparse.Namespace, overrides: list[str]) -> None:
    """Add a frozen teacher's embeddings of all pictures and captions to a prepared data set."""
    from xmodal_jax import config as configs
    from xmodal_jax.data.embeddings import refuse_misfit
    from xmodal_jax.eval.embed_data import embed_data
    from xmodal_jax.workdir import open_run, open_start

    refuse_unless(bool(args.workdir) != bool(args.config), "name one teacher: --workdir RUN, or --config CONFIG")
    refuse_misfit(args.data, args.name, args.batch)
    if args.workdir:
        assembly, params, step = open_run(args.workdir, section_overrides(overrides, ("eval", "data")))
        teacher = f"{assembly.config.name} step {step}"
    else:
        own = [] if any(item.startswith("data.path=") for item in overrides) else [f"data.path={args.data}"]
        assembly, params = open_start(configs.freeze(configs.load(args.config, overrides + own)))
        teacher = f"{assembly.config.name} start"
    card = embed_data(assembly, params, teacher, args.data, args.name, args.batch, args.dtype)
    made = card.embedding(args.name)
    what = f"{len(made['views'])} views and captions in {', '.join(made['languages'])}"
    print(f"embeddings '{args.name}' of {teacher}: width {made['width']} {made['dtype']}, {what} in {args.data}")


def train(args: argparse.Namespace, overrides: list[str]) -> None:
    """Train a config in a work directory, or go on with it."""
    from xmodal_jax import config as configs
    from xmodal_jax.data.loader import threads_left
    from xmodal_jax.eval.evaluate import evaluate
    from xmodal_jax.parallel import processes
    from xmodal_jax.train import teacher
    from xmodal_jax.train.loop import train as run_training

    config, profile = configs.freeze(configs.load(args.config, overrides)), steps_of(args.profile)
    refuse_unless(args.stall == 0 or args.stall >= 1, f"--stall is {args.stall}; write seconds, 1 or more, or 0 for off")
    silence = processes.heartbeat_for(args.stall)
    processes.initialize(args.coordinator, args.processes, args.process, args.distributed, silence, args.wait)

    def quick(run: Any, state: Any, poll: Any) -> dict:
        averaged = config.eval.params == "teacher"
        params = teacher.view(state.params, state.teacher) if averaged else state.params
        return evaluate(run.assembly, params, quick=True, poll=poll)["mean"]

    with processes.leaving_at_once(args.workdir, threads_left), processes.watching(args.stall, args.workdir):
        same = {f"config.{name}": value for name, value in configs.as_dict(config).items()}
        processes.agree({"version": __version__, "--workdir": args.workdir, "--stall": args.stall, **same})
        run_training(config, args.workdir, quick, profile)


def steps_of(text: str) -> tuple[int, int] | None:
    """`10:15` as (10, 15); None for nothing."""
    if not text:
        return None
    first, _, last = text.partition(":")
    good = first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)
    refuse_unless(good, f"--profile is '{text}'; write FIRST:LAST, steps counted from 1, such as 10:15")
    return int(first), int(last)


def section_overrides(overrides: list[str], allowed: tuple[str, ...]) -> dict[str, dict]:
    """Overrides for a run that is already trained: only the sections that do not change its weights."""
    from xmodal_jax import config as configs

    values, found = configs.defaults(), {}
    for item in overrides:
        section, _, rest = item.partition("=")[0].partition(".")
        field = rest.split(".")[0]
        refuse_unless(
            section in allowed,
            f"'--config.{item}' would change a trained model; only {', '.join(allowed)} can be changed here",
        )
        refuse_unless(
            bool(field), f"'--config.{item}' names a section; write a field of it, as --config.{section}.FIELD=VALUE"
        )
        configs.override(values, item)
        found.setdefault(section, {})[field] = configs.freeze_value(values[section][field])
    return found


def with_data(overrides: dict[str, dict], path: str) -> dict[str, dict]:
    """The overrides of a run, with the data set that --data names."""
    if not path:
        return overrides
    refuse_unless("path" not in overrides.get("data", {}), "--data and --config.data.path name one thing; write one")
    return overrides | {"data": overrides.get("data", {}) | {"path": path}}


def evaluate_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print and keep the tables of a run."""
    import json

    from xmodal_jax.eval.evaluate import evaluate
    from xmodal_jax.eval.tables import as_text
    from xmodal_jax.origin import result_file
    from xmodal_jax.whole import write_whole
    from xmodal_jax.workdir import open_run

    assembly, params, step = open_run(args.workdir, with_data(section_overrides(overrides, ("eval", "data")), args.data))
    say = lambda text: print(text, file=sys.stderr)
    result = evaluate(assembly, params, args.split, say=say, allow_trained=args.allow_trained) | {"step": step}
    print(as_text(result))
    path = result_file(assembly.origin, "eval", result["split"], result["fingerprint"], result["languages"])
    write_whole(path, json.dumps(result, indent=1))
    print(f"wrote {path}")


def classify_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print and keep the zero-shot accuracy of a run over the labels of its data set."""
    import json

    from xmodal_jax.eval.zeroshot import TEMPLATES, as_text, classify, read_templates
    from xmodal_jax.origin import result_file
    from xmodal_jax.whole import write_whole
    from xmodal_jax.workdir import open_run

    templates = read_templates(args.templates) if args.templates else TEMPLATES
    assembly, params, step = open_run(args.workdir, with_data(section_overrides(overrides, ("eval", "data")), args.data))
    say = lambda text: print(text, file=sys.stderr)
    result = classify(assembly, params, args.split, templates, args.classes, say, args.allow_trained)
    print(as_text(result))
    path = result_file(assembly.origin, "classify", result["split"], result["fingerprint"])
    write_whole(path, json.dumps(result | {"step": step}, indent=1))
    print(f"wrote {path}")


def caption(args: argparse.Namespace, _: list[str]) -> None:
    """Write captions for pictures, or for a split with BLEU-4 and CIDEr against the true ones."""
    from xmodal_jax.eval.captioning import caption_files, caption_split
    from xmodal_jax.origin import notes, refuse_trained
    from xmodal_jax.workdir import open_run

    assembly, params, _ = open_run(args.workdir, with_data({}, args.data))
    if args.images:
        for path, text in zip(args.images, caption_files(assembly, params, args.images, args.beam), strict=True):
            print(f"{path}\t{text}")
        return
    data = assembly.config.data
    said = notes(refuse_trained(assembly.origin, data.path, args.split or data.eval_split, args.allow_trained))
    rows, scores = caption_split(assembly, params, args.split, args.limit, args.beam, args.allow_trained)
    for row in rows[: args.show]:
        print(f"{row['key']}\t{row['caption']}\t(true: {row['references'][0]})")
    print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()), f"over {len(rows)} pictures")
    print(*said, sep="\n", end="\n" if said else "")


def index(args: argparse.Namespace, _: list[str]) -> None:
    """Embed the pictures or the captions of a split into a search index."""
    from xmodal_jax.search.build import ROWS, How, build_index
    from xmodal_jax.workdir import open_run

    assembly, params, _ = open_run(args.workdir)
    source = args.data or assembly.config.data.path
    assembly.origin.refuse_missing(source)
    own = assembly.origin.is_own(source)
    more = {"upsert": args.upsert, "duplicates": args.allow_duplicates}
    how = How(args.overwrite, args.append, args.codes_only, args.dtype, args.side, **more)
    path, count = build_index(assembly, params, args.workdir, args.out, args.data, args.split, how)
    split = args.split or assembly.config.data.eval_split
    print(f"indexed {count} {ROWS[args.side]} in {path} (split '{split}' of {source})")
    if not own:
        print("this is not the data set that the run was trained on")


def search(args: argparse.Namespace, _: list[str]) -> None:
    """Answer a text or an image query from an index."""
    from xmodal_jax.search.query import Where, answer, as_table, contact_sheet, refuse_unshowable
    from xmodal_jax.search.stages import Stages

    refuse_unless(bool(args.query) != bool(args.image), 'give one query: words, such as "a red fruit", or --image FILE')
    token = args.token or (os.environ.get(TOKEN_VARIABLE, "") if args.backend == "milvus" else "")
    if args.show:
        refuse_unshowable(args.show)
    moved = {"workdir": args.workdir, "data": args.data}
    where = Where(args.index, args.backend, args.uri, args.prefix, args.verify, args.collection, token, **moved)
    stages = Stages(args.kind, args.shortlist, args.rerank)
    hits = answer(where, args.query, args.image, args.k, stages)
    print(as_table(hits))
    if args.show:
        contact_sheet(hits, args.show, args.query or pathlib.Path(args.image).name, args.image)
        print(f"wrote {args.show}")


def report(args: argparse.Namespace, _: list[str]) -> None:
    """Write the report of a run: page and picture."""
    from xmodal_jax.report import write_report

    for path in write_report(args.workdir, args.data):
        print(f"wrote {path}")


def _data_parser(commands: Any) -> None:
    data = commands.add_parser("data", help="prepare data sets").add_subparsers(dest="action", required=True)
    make = data.add_parser("prepare", help="write a data set folder from a source")
    make.add_argument("source", choices=PREPARED)
    make.add_argument("--out", required=True, help="folder to write")
    make.add_argument(
        "--path", help="karpathy: dataset_*.json; jsonl: the file; mat: file or folder; the others: folder"
    )
    make.add_argument("--images", help="folder of the pictures (karpathy, precomp, albef, inaturalist, nuswide, mat)")
    make.add_argument("--vocabulary", help="mat: words of the columns of a bag of words, one a line")
    make.add_argument("--label-names", help="mat: names of the columns of the labels, one a line")
    make.add_argument("--name", help="tfds: builder name; albef: start of the file names, as rsitmd")
    make.add_argument("--only", help="stamps: outermost folders, as animals,plants")
    make.add_argument("--label", help="stamps: folder or name; openclipart: folder or keyword (default: folder)")
    for name in ("root", "data-dir", "image-key", "text-key", "label-key", "language", "licence"):
        make.add_argument(f"--{name}")
    make.add_argument("--size", type=int, help="pixels that drawings (SVG) are rendered at")
    make.add_argument("--held-out", type=int, help="records of the test split")
    make.add_argument("--queries", type=int, help="records of the test split (mirflickr, mat)")
    make.add_argument(
        "--train", type=int, help="records to train on, the others are split rest (mirflickr, nuswide, mat)"
    )
    make.add_argument("--max-size", type=int, default=0, help="re-encode pictures with a longer side (pixels)")
    make.add_argument("--allow-bad", action="store_true", help="go on when over 1 %% of the source is unusable")
    make.add_argument("--drop-copies", action="store_true", help="leave pictures of other splits out of train")
    make.add_argument("--force", action="store_true", help="replace the data set that is there, when the new one is whole")
    make.set_defaults(run=data_prepare)
    add = data.add_parser("features", help="add the grid tokens of a frozen tower")
    add.add_argument("--data", required=True, help="a prepared data set")
    add.add_argument("--tower", default="lite0", choices=("lite0",))
    add.add_argument("--size", type=int, default=224, help="pixels the pictures are resized to")
    add.add_argument("--name", default="", help="name of the cache (default: tower-size)")
    add.add_argument("--batch", type=int, default=64)
    add.add_argument("--no-flip", action="store_true", help="leave the mirrored pictures out")
    add.set_defaults(run=data_features)
    embed = data.add_parser("embed", help="add a frozen teacher's embeddings, for distillation")
    embed.add_argument("--data", required=True, help="a prepared data set")
    embed.add_argument("--name", required=True, help="name of the embeddings, for config.data.embeddings")
    embed.add_argument("--workdir", default="", help="the teacher: a run")
    embed.add_argument("--config", default="", help="the teacher: what this config starts from; --config.a.b=value")
    embed.add_argument("--batch", type=int, default=64)
    embed.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    embed.set_defaults(run=data_embed)


def _query_parsers(commands: Any) -> None:
    build = commands.add_parser("index", help="embed the pictures or the captions of a split into a search index")
    build.add_argument("--workdir", required=True)
    build.add_argument("--out", required=True, help="folder of the index")
    build.add_argument("--data", default="", help="data set (default: the run's)")
    build.add_argument("--split", default="", help="split (default: the run's evaluation split)")
    build.add_argument(
        "--side", default="image", choices=("image", "text"), help="the rows: pictures (default) or captions"
    )
    build.add_argument("--overwrite", action="store_true")
    build.add_argument("--append", action="store_true", help="add the rows to the index that is there")
    build.add_argument("--upsert", action="store_true", help="add the rows, in place of those of the same keys")
    build.add_argument("--allow-duplicates", action="store_true", help="append rows of keys that are there, too")
    build.add_argument("--codes-only", action="store_true", help="keep the hash codes and not the embeddings")
    build.add_argument(
        "--dtype", default="", choices=("float32", "int8"), help="of the embeddings on disk (default: float32)"
    )
    build.set_defaults(run=index)
    ask = commands.add_parser("search", help="answer a text or an image query")
    ask.add_argument("query", nargs="?", default="")
    ask.add_argument("--image", default="", help="a picture as the query")
    ask.add_argument("--index", required=True)
    ask.add_argument("--workdir", default="", help="the run that made the index, where it is not found by itself")
    ask.add_argument("--data", default="", help="for --rerank: the data set of the pictures, where it has moved")
    ask.add_argument("-k", type=int, default=10)
    ask.add_argument("--kind", default="dense", choices=("dense", "codes"))
    ask.add_argument("--shortlist", type=int, default=0, metavar="N", help="order the best N by codes by their cosine")
    ask.add_argument("--rerank", type=int, default=0, metavar="K", help="order the best K by the matching head (ITM)")
    ask.add_argument("--prefix", action="store_true", help="search the rows before the first damaged file")
    ask.add_argument("--verify", action="store_true", help="compare all checksums again, not those of new files only")
    backends = ("jax", "numpy", "sharded", "faiss", "milvus")
    ask.add_argument("--backend", default="jax", choices=backends, help="sharded: jax on all devices")
    ask.add_argument("--uri", default="", help="milvus: the server, or a local .db file")
    ask.add_argument("--collection", default="", help="milvus: how its collections start (default: xmodal)")
    ask.add_argument("--token", default="", help=f"milvus: user:password or an API key (default: ${TOKEN_VARIABLE})")
    ask.add_argument("--show", default="", help="write a contact sheet of the hits (PNG)")
    ask.set_defaults(run=search)


def _data_flags(command: argparse.ArgumentParser) -> None:
    """Which records a command measures on."""
    command.add_argument("--data", default="", help=DATA_HELP)
    command.add_argument("--split", default="", help="split (default: the run's evaluation split)")
    command.add_argument("--allow-trained", action="store_true", help="also records that the run was trained on")


def _process_flags(command: argparse.ArgumentParser) -> None:
    """The flags of one process of several; launch/ has scripts that write them."""
    group = command.add_argument_group("several processes")
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help="process 0's address")
    group.add_argument("--processes", type=int, default=0, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, default=-1, metavar="I", help="which one this is, from 0")
    group.add_argument("--distributed", action="store_true", help="find these three: TPU pods, SLURM, Open MPI")
    group.add_argument(
        "--stall", type=float, default=180, metavar="SECONDS", help="a process that is stuck so long ends the job; 0: off"
    )
    group.add_argument("--wait", type=int, default=300, help="seconds to wait for all processes to be there")


def parser() -> argparse.ArgumentParser:
    """The command line of `xmodal`."""
    top = argparse.ArgumentParser(prog="xmodal", description="Cross-modal pretraining and retrieval in JAX.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True)
    _data_parser(commands)
    fit = commands.add_parser("train", help="train a config, or go on with it; fields: --config.a.b=value")
    fit.add_argument("--config", required=True, help="configs/NAME.py[:variant]")
    fit.add_argument("--workdir", required=True)
    fit.add_argument(
        "--profile", default="", help="FIRST:LAST, write a profiler trace of these steps to WORKDIR/profile"
    )
    _process_flags(fit)
    fit.set_defaults(run=train)
    test = commands.add_parser("eval", help="retrieval, re-ranking, codes, MAP")
    test.add_argument("--workdir", required=True)
    _data_flags(test)
    test.set_defaults(run=evaluate_run)
    sort = commands.add_parser("classify", help="zero-shot classification over the labels of the data set")
    sort.add_argument("--workdir", required=True)
    _data_flags(sort)
    sort.add_argument("--templates", default="", help="a file, one template a line, {} for the name")
    sort.add_argument(
        "--classes", default="all", choices=("all", "split"), help="of the data set, or those of the split"
    )
    sort.set_defaults(run=classify_run)
    write = commands.add_parser("caption", help="write captions")
    write.add_argument("images", nargs="*", help="pictures (default: the evaluation split)")
    write.add_argument("--workdir", required=True)
    _data_flags(write)
    write.add_argument("--beam", type=int, default=3)
    write.add_argument("--limit", type=int, default=0, help="pictures of the split (0: all)")
    write.add_argument("--show", type=int, default=10, help="captions to print")
    write.set_defaults(run=caption)
    _query_parsers(commands)
    from xmodal_jax.plan.command import add_parser as plan_parser

    plan_parser(commands)
    page = commands.add_parser("report", help="write report.html and report.png of a run")
    page.add_argument("--workdir", required=True)
    page.add_argument("--data", default="", help=DATA_HELP)
    page.set_defaults(run=report)
    return top


def in_utf8_mode() -> None:
    """Start again in Python's UTF-8 mode where the locale is another: names of files may be in any language.

    What is printed stays in the encoding that was asked for, with escapes for what it does not have.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def refuse_extra(args: argparse.Namespace, extra: list[str]) -> None:
    """Raise UserError for arguments that no option takes, with what was probably meant."""
    from xmodal_jax.config import Config, as_dict
    from xmodal_jax.train.log import flat

    if not extra:
        return
    name = extra[0].removeprefix("--").partition("=")[0]
    if args.command == "search" and args.query and not extra[0].startswith("-"):
        words = " ".join([args.query, *extra])
        raise UserError(f'the query has several words; put them in quotes, such as "{words}"')
    found = [path.replace("/", ".") for path in flat(as_dict(Config())) if path.rpartition("/")[2] == name]
    refuse_unless(
        not found,
        f"'{extra[0]}' is no option of `xmodal {args.command}`; a field of the config is written "
        f"{' or '.join(f'--config.{path}=VALUE' for path in found)}",
    )
    raise UserError(
        f"'{' '.join(extra)}' is not known to `xmodal {args.command}`; `xmodal {args.command} --help` lists its options"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0, or 2 for bad input with one sentence on stderr."""
    if arguments is None:
        in_utf8_mode()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal can show, words do not end a command
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("xmodal_jax").setLevel(logging.INFO)
    try:
        rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        try:
            args, extra = parser().parse_known_args(rest)
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
        refuse_extra(args, extra)
        refuse_unless(
            not overrides or args.command in ("train", "eval", "plan", "classify") or args.run is data_embed,
            f"'--config.{overrides[0] if overrides else ''}' goes with `xmodal train`, `eval`, `classify`, `plan` and `data embed` only",
        )
        if args.command != "plan":  # a plan tells how long compiling takes
            set_up_jax()
        args.run(args, overrides)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed
        return 0
    except (UserError, OSError) as error:  # OSError: a folder for a file, no permission, a full disk; it names the path
        print(f"xmodal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # so that a script does not go on with half a model
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
