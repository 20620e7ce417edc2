"""The structure of a picture's consecutive tokens (grids, summaries, sets) and how they are pooled."""

import math

import numpy as np

SUMMARY_TOKENS = {"lite0": 1}  # a tower's last tokens that summarise the whole picture and are pooled separately


def pooling_groups(tower: str, tokens: int) -> tuple[int, ...]:
    """Return the numbers of consecutive tokens of a picture that are pooled together: the grid, then the summary."""
    extra = SUMMARY_TOKENS.get(tower, 0)
    return (tokens - extra, extra) if extra else (tokens,)


LOCAL_GRID = 4  # local features of a picture: at most 4 x 4 cells of each grid (Yang et al. 2022, TCL)


def grid_map(side: int, cells: int = LOCAL_GRID) -> np.ndarray:
    """Return adaptive average pooling of a square grid: float32 [c*c, side*side] with c = min(side, cells).

    Rows sum to 1. Cell i of an axis covers the rows floor(i * side / c) to ceil((i + 1) * side / c), as in PyTorch.
    """
    count = min(side, cells)
    axis = np.zeros((count, side), np.float32)
    for i in range(count):
        low, high = i * side // count, -(-(i + 1) * side // count)
        axis[i, low:high] = 1 / (high - low)
    return np.kron(axis, axis)


def group_parts(groups: tuple[int, ...], tokens: int) -> list[tuple[str, int]]:
    """Classify the groups of a picture's `tokens` as ("grid" | "set" | "summary", size), in order.

    A tower of `SUMMARY_TOKENS` gives a grid and its summary for each input size; any other group of tokens is a set
    without places, such as detected regions.
    """
    groups = groups or (tokens,)
    kinds = []
    for i, size in enumerate(groups):
        followed = i + 1 < len(groups) and groups[i + 1] == 1
        square = math.isqrt(size) ** 2 == size
        kinds.append("summary" if size == 1 and len(groups) > 1 else "grid" if followed and square else "set")
    return list(zip(kinds, groups, strict=True))


def local_map(parts: list[tuple[str, int]]) -> np.ndarray:
    """Return the averages float32 [P,N] that make local features of a picture's tokens.

    Summaries give none, grids at most 4 x 4. `parts` lists kind and size of consecutive tokens, as from `group_parts`.
    """
    make = {
        "grid": lambda n: grid_map(math.isqrt(n)),
        "set": lambda n: np.eye(n, dtype=np.float32),
        "summary": lambda n: np.zeros((0, n), np.float32),
    }
    blocks = [make[kind](size) for kind, size in parts]
    tokens = sum(size for _, size in parts)
    out, row, column = np.zeros((sum(len(b) for b in blocks), tokens), np.float32), 0, 0
    for block in blocks:
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out
