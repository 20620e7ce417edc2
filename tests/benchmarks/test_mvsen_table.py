"""MVSEN's table: its rows are valid configs that differ in what they say, and its lines become means and spreads."""

import mvsen
import pytest

from xmodal_jax.assemble import assemble_without_data
from xmodal_jax.config_file import freeze, load


def summary(total):
    """A table of recall with this rSum."""
    return {"rSum": total, "i2t": {"R@1": total / 10}, "t2i": {"R@1": total / 20}}


def line(system, row, seed, *sums):
    """A line of a run with the rSum of its embeddings and, where there is a scorer, of both ways to re-rank."""
    found = {"system": system, "row": row, "seed": seed, "steps": 2340, "seconds": {"train": 600.0}}
    found["itc"] = summary(sums[0])
    return found | ({"rerank": summary(sums[1]) | {"alone": summary(sums[2])}} if len(sums) > 1 else {})


def test_the_table_has_each_way_to_rank(tmp_path):
    lines = [
        line("embeddings", "hinge", 0, 240.0),
        line("MVSEN", "full", 0, 250.0, 280.0, 270.0),
        line("MVSEN", "full", 1, 256.0, 290.0, 272.0),
    ]
    mvsen.write(lines, tmp_path / "mvsen.md")
    full, hinge = (tmp_path / "mvsen.md").read_text("utf-8").splitlines()[2:]
    assert full == (
        "| MVSEN: full | 253.0 ± 3.0 | 285.0 ± 5.0 | 271.0 ± 1.0 | 28.5 ± 0.5 | 14.2 ± 0.2 | 2 | 2340 | 10 |"
    )
    assert hinge == "| embeddings: hinge | 240.0 |  |  | 24.0 | 12.0 | 1 | 2340 | 10 |"


def built(row):
    """The config of a row, and what it is assembled to."""
    config = freeze(load(*mvsen.command(row, "flickr8k", "", 0)))
    return config, assemble_without_data(config)


@pytest.mark.parametrize("row", mvsen.ROWS, ids=lambda row: f"{row.system}, {row.name}")
def test_every_row_is_a_valid_config_of_one_budget(row):
    config, assembly = built(row)
    full, _ = built(mvsen.ROWS[0])
    assert (config.steps, config.batch_size, config.optimizer.lr) == (full.steps, full.batch_size, full.optimizer.lr)
    assert not config.eval.keep_best  # by the records that the table shows
    assert ("scorer" in assembly.parts) == bool(config.eval.rerank)


def test_the_rows_that_are_spelled_out_are_the_config_less_a_part():
    whole = load(mvsen.CONFIG, [])["objectives"].to_dict()
    for row, gone in (("both further tasks", {"text_text", "multilabel"}), ("classification", {"multilabel"})):
        (own,) = (own for own in mvsen.ROWS if own.name == row)
        found = load(*mvsen.command(own, "flickr8k", "", 0))["objectives"].to_dict()
        assert found == {name: entry for name, entry in whole.items() if name not in gone}
