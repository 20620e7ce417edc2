"""The table of wrong pairs: its rows are valid configs, and its lines become means, spreads and AUCs."""

import pytest
import robust

from xmodal_jax.assemble import assemble_without_data
from xmodal_jax.config_file import freeze, load


def lines():
    """Lines of two seeds of one row on two sets, and of a row that keeps no losses of pairs."""

    def line(system, name, row, seed, sums, **note):
        notes = [note] * len(sums)
        return {"system": system, "row": row, "set": name, "seed": seed, "rSum": sums, "pairs": notes}

    return [
        line("RCAR", "clean", "hinge", 0, [100.0, 220.0, 210.0]),
        line("RCAR", "clean", "hinge", 1, [100.0, 200.0, 204.0]),
        line("RCAR", "complete40", "hinge", 0, [90.0, 180.0], auc=0.97),
        line("undefended", "complete40", "ITC", 0, [80.0, 60.0]),
    ]


def test_the_table_has_last_and_best_epochs_and_aucs(tmp_path):
    robust.write(lines(), tmp_path / "robust.md")
    last, best, auc = (tmp_path / "robust.md").read_text("utf-8").split("\n\n| method")[1:]
    assert "| RCAR: hinge | 207.0 ± 3.0 |  | 180.0 |" in last and "| undefended: ITC |  |  | 60.0 |" in last
    assert "| RCAR: hinge | 212.0 ± 8.0 |" in best and "| undefended: ITC |  |  | 80.0 |" in best
    assert "| RCAR: hinge |  |  | 0.970 |" in auc and "undefended" not in auc


@pytest.mark.parametrize("row", robust.ROWS, ids=lambda row: f"{row.system}, {row.name}")
def test_every_row_is_a_valid_config(row):
    spec, overrides = robust.command(row, "clean", "", 0)
    config = freeze(load(spec, overrides))
    assembly = assemble_without_data(config)
    trained = {name for name in assembly.objectives if name != "refurbish"}
    assert trained and config.steps == 1170 and config.batch_size == 256
    defended = any(getattr(item, "robust", "") for item in assembly.objectives.values())
    assert defended == ("refurbish" in assembly.objectives)


def test_the_row_of_itc_is_the_variant_of_the_config():
    (row,) = (row for row in robust.ROWS if (row.system, row.name) == ("RCAR", "ITC"))
    spec, overrides = robust.command(row, "clean", "data/flickr8k", 0)
    found = [freeze(load(*own)).objectives for own in ((spec, overrides), ("configs/rcar.py:itc", []))]
    assert {name: dict(own) for name, own in found[0].items()} == {name: dict(own) for name, own in found[1].items()}
