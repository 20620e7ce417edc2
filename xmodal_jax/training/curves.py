"""Learning curves of a run as a picture: losses, learning rate and evaluations over the steps."""

import math
import os
import pathlib
from typing import Any

from xmodal_jax.drawing import save_figure
from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import COUNTS, flat
from xmodal_jax.training.log import METRICS_FILE, read_log

Points = dict[str, tuple[list[int], list[float]]]  # {name: (steps, values)}

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # told apart by all (Okabe, Ito)
SMOOTHED = 100  # lines of the log above which a loss is drawn as a running mean, with its points faint behind
EVALUATIONS = ("mR", "R@1")  # ends of the names of numbers in % that are drawn


def plot_curves(workdir: str | pathlib.Path, path: str | os.PathLike) -> pathlib.Path:
    """Draw a run's losses, learning rate and evaluations from its metrics.jsonl into `path` (.png, .svg or .pdf).

    Raises UserError for a folder without a log, and where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("learning curves need the package matplotlib; write pip install matplotlib") from None
    lines = read_lines(pathlib.Path(workdir))
    losses, rate, scores = loss_points(lines), points_of(lines, ("lr",)), evaluation_points(lines)
    panels = [panel for panel in (("loss", losses), ("learning rate", rate), ("evaluation", scores)) if panel[1]]
    if not panels:
        raise UserError(f"'{workdir}' has no numbers in its {METRICS_FILE} yet; train for more steps")
    figure = Figure(figsize=(8, 2.6 * len(panels) + 0.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for one, (title, points) in zip(axes, panels, strict=True):
        _draw(one, title, points)
    for step in [line["stopped_early"]["step"] for line in lines if "stopped_early" in line][-1:]:
        axes[-1].axvline(step, color="0.5", linestyle=":", linewidth=1.2, label="best, early stop" if scores else None)
    for one in axes:
        if one.get_legend_handles_labels()[1] != ["lr"]:
            one.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    axes[-1].set_xlabel("step")
    figure.suptitle(f"Learning curves of {pathlib.Path(workdir).resolve().name}", fontsize=11)
    return save_figure(figure, path)


def read_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; torn ones are left out. Raises UserError for a folder without a log."""
    if not (workdir / METRICS_FILE).is_file():
        raise UserError(f"'{workdir}' has no {METRICS_FILE}; name the work directory of a run")
    return read_log(workdir)


def points_of(lines: list[dict[str, Any]], names: tuple[str, ...]) -> Points:
    """Return the points of these numbers; steps at which one is not finite are left out of it."""
    found: Points = {}
    for name in names:
        kept = [(line["step"], line[name]) for line in lines if finite(line.get(name))]
        if kept:
            found[name] = ([step for step, _ in kept], [float(value) for _, value in kept])
    return found


def loss_points(lines: list[dict[str, Any]]) -> Points:
    """Return the points of the sum of the losses, where there are several, and of each objective's."""
    names = list(dict.fromkeys(name for line in lines for name in line if name.startswith("loss/")))
    found = points_of(lines, (*(("loss",) if len(names) > 1 else ()), *names))
    return {"sum, weighted" if name == "loss" else name.removeprefix("loss/"): own for name, own in found.items()}


def evaluation_points(lines: list[dict[str, Any]]) -> Points:
    """Return the points of the evaluations' main numbers: mR and R@1 of the embeddings, and those of `config.evals`."""
    rows = [{"step": line["step"], **flat(line["eval"])} for line in lines if isinstance(line.get("eval"), dict)]
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(("itc/", "evals/")))
    names = [name for name in names if "/languages/" not in name or name.rpartition("/")[2] not in COUNTS]
    shown = [name for name in names if name.startswith("evals/") or name.endswith(EVALUATIONS)]
    return {
        name.removeprefix("itc/").removeprefix("evals/"): own for name, own in points_of(rows, tuple(shown)).items()
    }


def finite(value: Any) -> bool:
    """Return True for a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def running_mean(values: list[float], width: int) -> list[float]:
    """Return the mean of each value and up to `width` - 1 before it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[n + 1] - sums[max(n + 1 - width, 0)]) / min(n + 1, width) for n in range(len(values))]


def _draw(axis: Any, title: str, points: Points) -> None:
    """Draw the points of one panel, each number in a colour of its own."""
    for number, (name, (steps, values)) in enumerate(points.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": "-" if number < len(COLOURS) else "--"}
        drawn = values
        if title == "loss" and len(values) > SMOOTHED:
            axis.plot(steps, values, color=style["color"], alpha=0.2, linewidth=0.7)
            drawn = running_mean(values, len(values) // 50)
        few = "o" if len(values) < 30 else None
        axis.plot(steps, drawn, label=name, linewidth=1.4, marker=few, markersize=3, **style)
    axis.set_ylabel(title)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if title == "loss" and all(value > 0 for _, values in points.values() for value in values):
        axis.set_yscale("log")
