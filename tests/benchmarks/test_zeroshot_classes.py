"""The benchmark of large class heads, on a few classes of the small tower."""

import json

import zeroshot_classes


def test_names_differ_and_come_again():
    names = zeroshot_classes.binomials(2000)
    assert len(set(names)) == 2000 and names == zeroshot_classes.binomials(2000)
    assert all(len(name.split()) == 2 for name in names)


def test_it_prints_what_it_writes(tmp_path, capsys):
    arguments = [
        "--tower",
        "small",
        "--classes",
        "60",
        "--pictures",
        "50",
        "--batch",
        "28",
        "--out",
        str(tmp_path / "x"),
    ]
    zeroshot_classes.main(arguments)
    line = json.loads(capsys.readouterr().out)
    assert line == json.loads((tmp_path / "x").read_text())
    assert (line["classes"], line["texts_at_once"], line["largest_score_block"]) == (60, 28, [64, 64])
    assert line["peak_mib"] >= line["peak_mib_before_head"] > 0


def test_the_block_of_8142_classes_is_a_part_of_the_scores():
    rows = zeroshot_classes.block_rows(2000, 8142)
    assert rows == 512 and rows * 8192 * 4 == 16 * zeroshot_classes.MIB < 2000 * 8142 * 4
