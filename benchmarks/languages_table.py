"""Recall by language of several runs side by side, with the parameters that each trains and that a language adds.

    python benchmarks/languages_table.py --out multilingual \\
        "M-CLIP=runs/m_clip-features" "M-CLIP=runs/m_clip-seed1" "MLA=runs/mla-transfer"

Runs of one name are seeds of one column: the mean, and half the range. A run is a work directory that `xmodal eval`
has evaluated on several languages. Writes multilingual.json, with what every run has, and multilingual-table.md.
"""

import argparse
import collections
import json
import math
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

import jax

from xmodal_jax.errors import UserError, output_file, run_script
from xmodal_jax.eval.languages import ranked
from xmodal_jax.workdir import open_run

Column = list[dict[str, Any]]  # the seeds of one name


def measured(workdir: pathlib.Path, split: str) -> dict[str, Any]:
    """Read a run: recall by language, its languages trained on or not, and its numbers of parameters.

    Raises UserError for a run that is not evaluated by language.
    """
    path = workdir / f"eval-{split}.json"
    result = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "by_language" not in result:
        raise UserError(f"'{path}' has no recall by language; run xmodal eval --workdir {workdir}, or write --split")
    groups = {name: result["by_language"][name] for name in ("seen", "unseen")}
    recall = {code: round(value, 2) for code, value in ranked(result)}
    return {"run": workdir.name, "step": result["step"], "R@1": recall, **groups, **parameters(workdir)}


def refuse_other_languages(columns: dict[str, Column]) -> None:
    """Raise UserError for runs that were trained on other languages, or asked in others, than the first."""
    first, *others = [run for column in columns.values() for run in column]
    for run in others:
        if any(set(run[group]) != set(first[group]) for group in ("seen", "unseen")):
            raise UserError(
                f"'{run['run']}' has other languages, trained or asked, than '{first['run']}'; write a table for each"
            )


def parameters(workdir: pathlib.Path) -> dict[str, int]:
    """Count the parameters that a run trains, and those of them that are one language's alone."""
    assembly, params, _ = open_run(str(workdir), {})
    frozen = assembly.config.optimizer.freeze
    found = {"trained": 0, "a language": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not (frozen and re.search(frozen, name)):
            found["trained"] += math.prod(leaf.shape)
            found["a language"] += math.prod(leaf.shape[1:]) if "/acquirers/" in name else 0
    return found


def cell(values: Sequence[float]) -> str:
    """Format the mean of some seeds, with half their range where there are several."""
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(columns: dict[str, Column]) -> str:
    """Return the table: a row for each language, those trained on first, then means and numbers of parameters."""
    first = next(iter(columns.values()))[0]
    rows = [(code, [code]) for code in first["seen"]] + [(f"{code} *", [code]) for code in first["unseen"]]
    rows += [("mean of trained", first["seen"]), ("mean of others", first["unseen"])]
    text = f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}\n"
    for name, codes in rows:
        own = [[mean_of(run, codes) for run in column] for column in columns.values()]
        text += f"| {name} | {' | '.join(cell([v for v in seeds if v is not None] or [math.nan]) for seeds in own)} |\n"
    for name, field in (("parameters trained", "trained"), ("of them, for each language", "a language")):
        text += f"| {name} | {' | '.join(f'{column[0][field]:,}' for column in columns.values())} |\n"
    return text + f"| seeds | {' | '.join(str(len(column)) for column in columns.values())} |\n"


def mean_of(run: dict[str, Any], codes: Sequence[str]) -> float | None:
    """Average the recall of those of some languages that a run has; None if there are none."""
    values = [run["R@1"][code] for code in codes if code in run["R@1"]]
    return statistics.mean(values) if values else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=WORKDIR", help="the columns, in their order")
    parser.add_argument("--split", default="test", help="that was evaluated (default: test)")
    parser.add_argument("--out", type=output_file, required=True, help="what the two files begin with")
    args = parser.parse_args(arguments)
    columns: dict[str, Column] = collections.defaultdict(list)
    for word in args.runs:
        name, _, workdir = word.partition("=")
        if not workdir:
            raise UserError(f"'{word}' is no NAME=WORKDIR; write for example MLA=runs/mla-transfer")
        columns[name].append(measured(pathlib.Path(workdir), args.split))
    refuse_other_languages(columns)
    args.out.with_suffix(".json").write_text(json.dumps(columns, indent=1, ensure_ascii=False) + "\n", "utf-8")
    args.out.with_name(f"{args.out.name}-table.md").write_text(table(columns), "utf-8")
    print(table(columns))


if __name__ == "__main__":
    run_script(main)
