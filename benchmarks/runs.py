"""A table of training runs: rows, data sets and seeds.

A run is a line of a .jsonl, and a second start goes on after the last one.

`fusion_rows.py` and `hashing_rows.py` say which rows there are; `ablate.py` and `hashing.py` what is kept of a run and
how the table is written.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from report import machine

from xmodal_jax import config_file as configs
from xmodal_jax.api import use_compile_cache
from xmodal_jax.data.config import FieldConfig
from xmodal_jax.errors import UserError, output_file
from xmodal_jax.settings import Config, as_dict
from xmodal_jax.training.loop import train
from xmodal_jax.workdir import open_run

Line = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a table: its config (`{set}` is the data set's variant) and overrides, as on the command line."""

    system: str
    name: str
    config: str
    overrides: tuple[str, ...] = ()
    sets: tuple[str, ...] = ("emoji_views", "flickr8k")
    seeds: int = 99  # at most so many, however many are asked for


Job = tuple[str, Row, int]


@dataclass(frozen=True)
class Table:
    """What makes one table.

    command: (row, set, data folder, seed) -> config and overrides, the folder first among these.
    result: (assembly, evaluated parameters, training state, run folder) -> what is kept of a run.
    write: (all lines, path) writes the table.
    current: (a line's result) -> whether it was measured as it is now; another way to measure is another table.
    quick: whether runs keep their quick evaluations, whose seconds then count as training.
    """

    rows: tuple[Row, ...]
    command: Callable[[Row, str, str, int], tuple[str, list[str]]]
    result: Callable[[Any, Any, Any, pathlib.Path], Line]
    write: Callable[[list[Line], pathlib.Path], None]
    current: Callable[[Line], bool] = lambda line: True
    quick: bool = False

    def jobs(self, sets: Iterable[str], seeds: int, only: str) -> Iterator[Job]:
        """Yield (set, row, seed) of every run, seed by seed, so that an unfinished table has all its rows."""
        sets = list(sets)
        for seed in range(seeds):
            for name in sets:
                chosen = [row for row in self.rows if name in row.sets and seed < row.seeds]
                yield from ((name, row, seed) for row in chosen if not only or only in (row.system, row.name))

    def is_current(self, line: Line) -> bool:
        """Return True if a line is of a row as it is now: an older budget or weight is another experiment."""
        if not self.current(line):
            return False
        for row in (row for row in self.rows if (row.system, row.name) == (line["system"], line["row"])):
            if line["set"] in row.sets:
                spec, overrides = self.command(row, line["set"], "", line["seed"])
                now = spec, overrides[1:], digest(frozen(spec, overrides))
                return (line["config"], line["overrides"], line["digest"]) == now
        return False

    def current_lines(self, path: pathlib.Path) -> list[Line]:
        """Read the lines of rows as they are now."""
        lines = [json.loads(line) for line in whole_lines(path).splitlines()]
        return [line for line in lines if self.is_current(line)]

    def measure(self, job: Job, data: str, workdir: pathlib.Path) -> Line:
        """Train one row, evaluate it and return its line."""
        name, row, seed = job
        spec, overrides = self.command(row, name, data, seed)
        config = frozen(spec, overrides)
        started = time.perf_counter()
        every = config.eval.every if self.quick else 0  # 0: seconds of training alone
        quiet = dataclasses.replace(config, eval=dataclasses.replace(config.eval, every=every))
        state = train(quiet, workdir, handle_signals=True, progress=sys.stderr)
        trained = time.perf_counter() - started
        if int(state.step) < config.steps:  # training ends in order when it gets SIGTERM or SIGINT
            raise SystemExit(
                f"stopped at step {int(state.step)} of {config.steps}; the same command trains this row again"
            )
        assembly, params, _ = open_run(str(workdir), {})
        found = self.result(assembly, params, state, workdir)
        seconds = {"train": trained, "eval": time.perf_counter() - started - trained}
        made_by = {"config": spec, "overrides": overrides[1:], "digest": digest(config)}
        return label(job) | made_by | {"seconds": seconds} | found


def frozen(spec: str, overrides: list[str]) -> Config:
    """Load and freeze the config of a command."""
    return configs.freeze(configs.load(spec, overrides))


def digest(config: Config) -> str:
    """Return 16 hex digits of the values that a config sets, wherever its data lies.

    0.02 in place of 0.03 in a config file is another run. Fields at their default are left out, so that a field that is
    new in the package makes no line old; an encoder's at those of its kind.
    """
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, path=""))
    encoders = {name: dataclasses.replace(type(own)(), kind="") for name, own in config.encoders.items()}
    usual = as_dict(dataclasses.replace(Config(), encoders=encoders))
    further = as_dict(FieldConfig()) | {"required": None}  # which lines before FieldConfig grew were told by
    usual["data"]["fields"] = dict.fromkeys(config.data.fields, further) | usual["data"]["fields"]
    found = unlike(as_dict(plain), usual)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def unlike(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of nested dicts that others do not have or have with another value."""

    def deep(key):
        return isinstance(values[key], dict) and isinstance(others.get(key), dict)

    found = {key: unlike(value, others[key]) if deep(key) else value for key, value in values.items()}
    return {key: value for key, value in found.items() if (value != {} if deep(key) else value != others.get(key))}


def whole_lines(path: pathlib.Path) -> str:
    """Read a .jsonl without a last line that a kill tore off."""
    text = path.read_text("utf-8") if path.is_file() else ""
    return text[: text.rfind("\n") + 1]


def replace(path: pathlib.Path, text: str) -> None:
    """Write a file in one step: another process reads the old one or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, "utf-8")
    new.replace(path)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Lock a folder: one process at a time changes its tables. The lock ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def label(job: Job) -> Line:
    """Return the fields that identify a run in the file."""
    name, row, seed = job
    return {"set": name, "system": row.system, "row": row.name, "seed": seed}


def last_metrics(workdir: pathlib.Path) -> dict[str, float]:
    """Return the numbers of the last logged step that a table shows or that tell a row that went wrong."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    kept = ("loss", "teacher/drift", "skipped")
    return {k: v for k, v in steps[-1].items() if k in kept or "drift" in k or k.startswith("loss/")}


def data_folders(given: list[str], sets: Iterable[str]) -> dict[str, str]:
    """Parse `--data SET=FOLDER`, given once for each set.

    Raises:
        UserError: no such set, no folder, or a set twice.
    """
    sets = tuple(sets)
    for item in given:
        name, _, folder = item.partition("=")
        if name not in sets or not folder:
            raise UserError(f"--data is '{item}'; write SET=FOLDER, SET one of {', '.join(sets)}")
    names = [item.split("=")[0] for item in given]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--data names {''.join(twice[:1])} twice; write one folder for each set")
    return dict(item.split("=", 1) for item in given)


def one_run(table: Table, job: Job, data: str, keep: pathlib.Path | None = None) -> Line:
    """Call `Table.measure` in a folder that is gone afterwards, or kept under `keep`.

    There it is named by the words of its label and its digest: in the folder of a row that sets something else a
    finished run would be taken for it.
    """
    if keep:
        name, row, seed = job
        words = " ".join(map(str, [*label(job).values(), digest(frozen(*table.command(row, name, data, seed)))]))
        return table.measure(job, data, keep / re.sub(r"[^a-z0-9]+", "-", words.lower())) | {"machine": machine()}
    folder = pathlib.Path(tempfile.mkdtemp(prefix="table-"))
    try:
        return table.measure(job, data, folder) | {"machine": machine()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def missing(table: Table, jobs: Iterable[Job], path: pathlib.Path) -> list[Job]:
    """Return the jobs that have no current line in the file."""
    done = [{k: line[k] for k in ("set", "system", "row", "seed")} for line in table.current_lines(path)]
    return [job for job in jobs if label(job) not in done]


def run_all(
    table: Table, data: dict[str, str], seeds: int, only: str, out: pathlib.Path, keep: pathlib.Path | None = None
) -> None:
    """Run what is missing, a line each, and write the table anew after each of them."""
    path = out.with_suffix(".jsonl")
    todo = missing(table, table.jobs(data, seeds, only), path)
    started, ran = time.perf_counter(), 0
    for number, job in enumerate(todo):
        if not missing(table, [job], path):  # another process was faster
            continue
        spent, rest = time.perf_counter() - started, len(missing(table, todo[number:], path))
        left = f", about {spent / ran * rest / 60:.0f} min left" if ran else ""
        said = " | ".join(map(str, label(job).values()))
        print(f"[{number + 1}/{len(todo)}{left}] {said}", file=sys.stderr, flush=True)
        line = one_run(table, job, data[job[0]], keep)
        with alone(out.parent):  # another process may do other rows, and may have begun this one too
            if missing(table, [job], path):
                replace(path, whole_lines(path) + json.dumps(line) + "\n")
            table.write(table.current_lines(path), out.with_suffix(".md"))
        jax.clear_caches()
        ran += 1
    with alone(out.parent):
        table.write(table.current_lines(path), out.with_suffix(".md"))


def table_main(table: Table, description: str, out: str, seeds: int) -> None:
    """Run the command line of a table."""
    sets = tuple(dict.fromkeys(name for row in table.rows for name in row.sets))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", action="append", required=True, help="SET=FOLDER, SET one of " + ", ".join(sets))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--only", default="", help="a system or a row")
    parser.add_argument("--out", type=output_file, default=out)
    parser.add_argument("--keep", type=pathlib.Path, help="a folder that the runs are kept in; default: they are not")
    args = parser.parse_args()
    known = dict.fromkeys(name for row in table.rows for name in (row.system, row.name))
    if args.only and args.only not in known:
        raise UserError(f"--only {args.only!r} is no row; write one of {', '.join(known)}")
    if args.seeds <= 0:
        raise UserError(f"--seeds is {args.seeds}; write 1 or more")
    use_compile_cache()
    run_all(table, data_folders(args.data, sets), args.seeds, args.only, args.out, args.keep)
