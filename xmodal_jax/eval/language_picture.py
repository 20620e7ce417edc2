"""Recall by language as a picture: a bar a language, sorted, languages that were never trained on told apart."""

import os
import pathlib

from xmodal_jax.drawing import save_figure
from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import Tables, first_recall, languages_in_order

SEEN, UNSEEN = "#0072b2", "#e69f00"  # told apart by all (Okabe, Ito)
INCH = 0.24  # of a bar
ENGLISH = "en"


def plot_languages(result: Tables, path: str | os.PathLike) -> pathlib.Path:
    """Draw R@1 by language, the mean of both directions and of the views, into `path` (.png, .svg or .pdf).

    Each pair of fields with captions in several languages has a panel. Raises UserError for a result without, and where
    matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a picture of languages needs the package matplotlib; write pip install matplotlib") from None
    pairs = [own for own in (result, *result.get("pairs", {}).values()) if "by_language" in own]
    if not pairs:
        raise UserError("the result has captions in one language; write more of them in config.eval.languages")
    longest = max(len(own["mean"]["languages"]) for own in pairs)
    figure = Figure(figsize=(5.2 * len(pairs), 1.6 + INCH * longest), layout="constrained")
    for axis, own in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        _draw(axis, own)
    return save_figure(figure, path)


def _draw(axis, result: Tables) -> None:
    """Draw one pair of fields."""
    own, trained = result["mean"]["languages"], result["by_language"]["trained"]
    codes = languages_in_order(own)[::-1]
    values = [first_recall(own[code]) for code in codes]
    bars = axis.barh(codes, values, color=[SEEN if code in trained else UNSEEN for code in codes], height=0.75)
    for code, bar, value in zip(codes, bars, values, strict=True):
        bar.set_hatch("" if code in trained else "///")
        bar.set_edgecolor("white")
        axis.annotate(
            f"{value:.1f}",
            (value, bar.get_y() + bar.get_height() / 2),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == ENGLISH else "normal")
    for words, name, colour in (("trained", "seen", SEEN), ("never trained on", "unseen", UNSEEN)):
        if name in result["by_language"]:
            mean = first_recall(result["by_language"][name])
            axis.axvline(mean, color=colour, linestyle="--", linewidth=1.2, zorder=0, label=f"{words}: mean {mean:.1f}")
    one, two = result["pair"]
    axis.set_title(f"{one} and {two}", fontsize=10)
    axis.set_xlabel("R@1 in %, mean of both directions")
    axis.set_xlim(0, 1.12 * max([*values, 1.0]))
    axis.margins(y=0.01)
    axis.legend(loc="lower right", fontsize=8, framealpha=1.0, edgecolor="none")
    axis.spines[["top", "right"]].set_visible(False)
