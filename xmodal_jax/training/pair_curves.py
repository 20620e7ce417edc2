"""Losses of training pairs over the epochs as a picture: histograms, the fitted mixture, how well noise is told."""

import os
import pathlib
from typing import Any

import numpy as np

from xmodal_jax.drawing import save_figure
from xmodal_jax.errors import UserError
from xmodal_jax.training.curves import read_lines

PANELS = 6  # evaluations that are drawn: the first, the last, and some between
COLOURS = {"right": "#0072b2", "wrong": "#d55e00", "all": "0.55"}  # told apart by all (Okabe, Ito)
LABELS = {"right": "right pairs", "wrong": "wrong pairs", "all": "pairs"}


def plot_pair_losses(workdir: str | pathlib.Path, path: str | os.PathLike, entry: str = "") -> pathlib.Path:
    """Draw the losses that an entry of kind "refurbish" keeps, with their mixture, from a run's metrics.jsonl.

    entry: its name in config.objectives; "": the first in the log. Writes `path` (.png, .svg or .pdf). Raises UserError
    for a run without such an entry or without evaluations, and where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "the picture of pair losses needs the package matplotlib; write pip install matplotlib"
        ) from None
    notes = pair_notes(pathlib.Path(workdir), entry)
    chosen = [notes[round(place)] for place in np.linspace(0, len(notes) - 1, min(PANELS, len(notes)))]
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    grid_of = figure.add_gridspec(2, 1, height_ratios=(2, 1.2))
    top, bottom = figure.add_subfigure(grid_of[0]), figure.add_subfigure(grid_of[1])
    grid = top.subplots(2, (len(chosen) + 1) // 2, squeeze=False, sharex=True)
    for number, axis in enumerate(grid.flat):
        if number < len(chosen):
            _draw_panel(axis, *chosen[number])
        else:
            axis.set_axis_off()
    for axis in grid.flat[max(0, len(chosen) - grid.shape[1]) :]:
        axis.set_xlabel("loss of a pair")
        axis.tick_params(labelbottom=True)
    handles = {name: one for axis in grid.flat for one, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    top.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    _draw_measures(bottom.subplots(1, 1), notes)
    return save_figure(figure, path)


def pair_notes(workdir: pathlib.Path, entry: str) -> list[tuple[int, dict[str, Any]]]:
    """Return (step, numbers of `pair_report`) of each evaluation of a run. Raises UserError for a run without any."""
    lines = [(line["step"], line["eval"].get("memory", {})) for line in read_lines(workdir) if "eval" in line]
    names = [name for _, kept in lines for name, own in kept.items() if "histogram" in own]
    wanted = entry or (names[0] if names else "")
    if wanted not in names:
        raise UserError(
            f"'{workdir}' has no losses of pairs{f' named {entry!r}' if entry else ''} in its log; train with an "
            "objective of kind 'refurbish' and config.eval.every above 0"
        )
    return [(step, kept[wanted]) for step, kept in lines if "histogram" in kept.get(wanted, {})]


def density(x: np.ndarray, mixture: dict[str, Any], side: int) -> np.ndarray:
    """Return the density [n] at losses x [n] of a component of a mixture, times its share.

    A component is drawn as the beta distribution with its mean and deviation on the range of the fit, or as the
    Gaussian where the mixture was one.
    """
    from scipy import stats

    low, high = mixture["range"]
    if mixture.get("kind") == "gaussian":
        return mixture["share"][side] * stats.norm.pdf(x, mixture["mean"][side], max(mixture["deviation"][side], 1e-9))
    width = max(high - low, 1e-9)
    mean, deviation = (mixture["mean"][side] - low) / width, max(mixture["deviation"][side] / width, 1e-4)
    scale = mean * (1 - mean) / deviation**2 - 1
    if not 0 < mean < 1 or scale <= 0:
        return np.zeros_like(x)
    own = stats.beta.pdf((x - low) / width, mean * scale, (1 - mean) * scale)
    return np.nan_to_num(mixture["share"][side] * own / width, posinf=0.0)


def _draw_panel(axis: Any, step: int, note: dict[str, Any]) -> None:
    """Draw the histogram of one evaluation, and the mixture where it was fitted."""
    bars, fitted = note["histogram"], note["mixture"]["share"][1] > 0
    edges = np.linspace(bars["low"], max(bars["high"], bars["low"] + 1e-6), 1 + len(next(iter(_sides(bars).values()))))
    width, below = edges[1] - edges[0], np.zeros(len(edges) - 1)
    total = sum(sum(counts) for counts in _sides(bars).values())
    for name, counts in _sides(bars).items():
        heights = np.asarray(counts) / (total * width)
        axis.bar(edges[:-1], heights, width, below, align="edge", color=COLOURS[name], label=LABELS[name], alpha=0.75)
        below = below + heights
    if fitted:
        low, high = note["mixture"]["range"]
        x = np.linspace(low, high, 200)[1:-1]
        inside = below[(edges[1:] > low) & (edges[:-1] < high)].sum() * width  # the fit leaves out the others
        for side, (name, style) in enumerate((("fit, low losses", "-"), ("fit, high losses", "--"))):
            axis.plot(x, inside * density(x, note["mixture"], side), style, color="black", linewidth=1.2, label=name)
    axis.set_ylim(0, 1.15 * max(below.max(), 1e-9))
    found = "" if note.get("auc") is None else f", AUC {note['auc']:.3f}"
    axis.set_title(f"step {step}{found}" + ("" if fitted else ", all trusted (warm-up)"), fontsize=9)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)


def _sides(bars: dict[str, Any]) -> dict[str, list[int]]:
    """Return the counts of a histogram by the kind of pair."""
    return {name: bars[name] for name in COLOURS if name in bars}


def _draw_measures(axis: Any, notes: list[tuple[int, dict[str, Any]]]) -> None:
    """Draw over the steps how far pairs are trusted and, where the truth is known, how well losses tell wrong pairs."""
    shown = {
        "trusted_right": "trust, right pairs",
        "trusted_wrong": "trust, wrong pairs",
        "auc": "AUC, wrong above right",
    }
    if not any(note.get("auc") is not None for _, note in notes):
        shown = {"trusted": "trust, all pairs"}
    colours = {"trusted_right": COLOURS["right"], "trusted_wrong": COLOURS["wrong"], "auc": "black", "trusted": "0.4"}
    for name, label in shown.items():
        points = [(step, note[name]) for step, note in notes if note.get(name) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", markersize=3, color=colours[name], label=label)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel("step")
    axis.set_ylabel("mean trust, AUC")
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
