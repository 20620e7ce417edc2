"""The picture of pair losses: what is drawn, the density of the mixture, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from xmodal_jax.cli import main
from xmodal_jax.errors import UserError
from xmodal_jax.objectives.pair_report import pair_report
from xmodal_jax.training.pair_curves import PANELS, density, pair_notes, plot_pair_losses

MIXTURE = {"kind": "beta", "mean": [0.2, 0.6], "deviation": [0.1, 0.15], "share": [0.7, 0.3], "range": [0.0, 1.0]}
NONE = {"kind": "beta", "mean": [0.0, 0.0], "deviation": [0.0, 0.0], "share": [0.0, 0.0], "range": [0.0, 0.0]}


@pytest.fixture
def workdir(tmp_path):
    """The log of eight evaluations, the first before any fit, and lines of the log between them."""
    rng = np.random.default_rng(0)
    changed = rng.random(500) < 0.3
    losses = np.where(changed, rng.beta(6, 4, 500), rng.beta(3, 12, 500))
    lines = []
    for step in range(1, 9):
        note = pair_report(losses, 1 - losses, -1.0, changed) | {"mixture": MIXTURE if step > 1 else NONE}
        lines += [{"step": step, "loss": 1.0}, {"step": step, "eval": {"memory": {"refurbish": note}}}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_component_is_the_beta_distribution_of_its_moments():
    x = np.linspace(0.01, 0.99, 9)
    own = stats.beta(*(0.2 * (0.2 * 0.8 / 0.01 - 1), 0.8 * (0.2 * 0.8 / 0.01 - 1)))
    np.testing.assert_allclose(density(x, MIXTURE, 0), 0.7 * own.pdf(x), rtol=1e-9)
    moved = MIXTURE | {"range": [1.0, 3.0], "mean": [1.4, 2.2], "deviation": [0.2, 0.3]}
    np.testing.assert_allclose(density(1 + 2 * x, moved, 0), 0.35 * own.pdf(x), rtol=1e-9)
    area = np.trapezoid(density(np.linspace(0, 1, 2001), MIXTURE, 1), np.linspace(0, 1, 2001))
    np.testing.assert_allclose(area, 0.3, rtol=1e-3)


def test_a_gaussian_component_is_drawn_as_one():
    x = np.linspace(-0.5, 1.5, 9)
    wanted = 0.3 * stats.norm(0.6, 0.15).pdf(x)
    np.testing.assert_allclose(density(x, MIXTURE | {"kind": "gaussian"}, 1), wanted, rtol=1e-9)


def test_a_component_without_width_is_not_drawn():
    assert (density(np.array([0.1, 0.5]), NONE | {"share": [1.0, 0.0]}, 0) == 0).all()


def test_the_command_draws_the_picture(workdir, capsys):
    assert main(["curves", "--workdir", str(workdir), "--out", str(workdir / "pairs.png"), "--pairs"]) == 0
    assert "wrote" in capsys.readouterr().out
    with Image.open(workdir / "pairs.png") as picture:
        found = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()}
    assert picture.size == (1500, 960) and len(found) > 100
    assert len(pair_notes(workdir, "")) == 8 > PANELS


@pytest.mark.parametrize("entry", ["", "other"])
def test_runs_without_losses_are_refused(workdir, tmp_path, entry):
    if not entry:
        (workdir / "metrics.jsonl").write_text(json.dumps({"step": 1, "eval": {}}))
    with pytest.raises(UserError, match="train with an objective of kind 'refurbish' and config.eval.every above 0"):
        plot_pair_losses(workdir, tmp_path / "x.png", entry)
    assert not (tmp_path / "x.png").exists()
