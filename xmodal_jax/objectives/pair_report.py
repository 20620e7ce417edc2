"""Numbers about the losses of training pairs and their posteriors, with the truth where noise was made on purpose."""

from typing import Any

import numpy as np

BINS = 40  # of the histograms


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks float64 [n] of values from 1, ties having the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2.0)[place]


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the area under the ROC curve of scores [n] for positives bool [n]; None where all are of one kind.

    It is the chance that a positive has a higher score than another, ties counting one half.

    Example:
        >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
        0.875
    """
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    return float((ranks(scores)[positive].sum() - count * (count + 1) / 2.0) / (count * others))


def pair_report(losses: np.ndarray, clean: np.ndarray, unseen: float, changed: np.ndarray | None) -> dict[str, Any]:
    """Return numbers about the losses [P] of pairs and their posteriors `clean` [P] for the log of a run.

    "seen" is the share of pairs with a loss, "trusted" the mean posterior, "histogram" their number in `BINS` equal
    bins from "low" to "high". Where `changed` bool [P] marks wrong pairs: "auc" of the loss, "auc_posterior", the mean
    posterior of right and wrong pairs, and the histogram of either.
    """
    seen = losses != unseen
    if not seen.any():
        return {"seen": 0.0}
    losses, clean = losses[seen], clean[seen]
    low, high = float(losses.min()), float(losses.max())
    found: dict[str, Any] = {"seen": float(seen.mean()), "trusted": float(clean.mean())}
    sides = {"all": np.ones(len(losses), bool)}
    if changed is not None:
        wrong = changed[seen]
        sides = {"right": ~wrong, "wrong": wrong}
        found |= {"auc": auc(losses, wrong), "auc_posterior": auc(-clean, wrong)}
        found |= {f"trusted_{name}": float(clean[own].mean()) for name, own in sides.items() if own.any()}
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    counts = {name: np.histogram(losses[own], edges)[0].tolist() for name, own in sides.items()}
    return found | {"histogram": {"low": low, "high": high, **counts}}
