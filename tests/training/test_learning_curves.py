"""The picture of learning curves: which numbers are drawn, and what is refused."""

import json

import pytest
from PIL import Image

from xmodal_jax.errors import UserError
from xmodal_jax.training.curves import evaluation_points, loss_points, plot_curves, read_lines, running_mean


@pytest.fixture
def workdir(tmp_path):
    """A folder with the log of 40 steps, evaluations, a loss that is not finite once, and a torn line."""
    lines = []
    for step in range(1, 41):
        losses = {"loss": 3.0 / step, "loss/itc": 2.0 / step, "loss/hash": None if step == 3 else 1.0 / step}
        lines.append(json.dumps({"step": step, "pairs": 8 * step, "lr": 1e-3 * min(step, 10), **losses}))
        if step % 10 == 0:
            sides = {side: {"R@1": 1.0 * step, "median_rank": 3.0} for side in ("i2t", "t2i")}
            numbers = {
                "itc": {**sides, "mR": 2.0 * step},
                "ceiling": {"rSum": 600.0},
                "evals": {"labels": {"right": 5.0}},
            }
            lines.append(json.dumps({"step": step, "eval": numbers}))
    lines += [json.dumps({"step": 40, "stopped_early": {"step": 20}}), '{"step": 41, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_numbers_that_are_drawn(workdir):
    lines = read_lines(workdir)
    losses, scores = loss_points(lines), evaluation_points(lines)
    assert list(losses) == ["sum, weighted", "itc", "hash"] and losses["itc"][1][:2] == [2.0, 1.0]
    assert len(losses["itc"][0]) == 40 and 3 not in losses["hash"][0]
    assert list(scores) == ["i2t/R@1", "t2i/R@1", "mR", "labels/right"] and scores["mR"] == (
        [10, 20, 30, 40],
        [20.0, 40.0, 60.0, 80.0],
    )
    assert running_mean([1.0, 2.0, 3.0, 6.0], 2) == [1.0, 1.5, 2.5, 4.5]


def test_a_picture_with_a_panel_for_each_kind(workdir):
    with Image.open(plot_curves(workdir, workdir / "curves.png")) as picture:
        assert picture.size == (1200, 1230)
        colours = {pixel for _, pixel in picture.convert("RGB").getcolors(2**20)}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours
    only = [line for line in (workdir / "metrics.jsonl").read_text().splitlines() if "eval" not in line]
    (workdir / "metrics.jsonl").write_text("\n".join(only))
    with Image.open(plot_curves(str(workdir), workdir / "curves.png")) as picture:
        assert picture.size == (1200, 840)


def test_a_folder_without_numbers_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics.jsonl; name the work directory of a run"):
        plot_curves(tmp_path, tmp_path / "curves.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"has no numbers in its metrics.jsonl yet; train for more steps"):
        plot_curves(tmp_path, tmp_path / "curves.png")
