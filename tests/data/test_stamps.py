"""Tux Paint stamps, on a tree in the layout of the Debian package."""

import numpy as np
import pytest

from xmodal_jax.data.image import verify
from xmodal_jax.data.source import Item, Skip, usable_item
from xmodal_jax.data.sources.stamps import group_key, name_of, read_captions, stamps_source
from xmodal_jax.errors import UserError

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="10" height="5"/></svg>'
TEXT = "A flower.\nfr.utf8=Une fleur.\npt_BR.utf8=Uma flor.\nca@valencia.utf8=Una flor.\nde.utf8=\n# a comment\n"


@pytest.fixture
def tree(tmp_path, encoded):
    """Flowers as PNG and SVG, one letter, one stamp without a picture, one broken drawing."""
    root = tmp_path / "stamps"
    for folder in ("plants/garden/roses", "town", "symbols/alphabets/english"):
        (root / folder).mkdir(parents=True)
    picture = encoded(np.zeros((4, 6, 3), np.uint8))
    for name in ("plants/garden/roses/flower", "plants/flower2", "town/lost", "symbols/alphabets/english/a"):
        (root / f"{name}.txt").write_text(TEXT, "utf-8")
        if "lost" not in name:
            (root / f"{name}.png").write_bytes(picture)
    (root / "plants/flower2_mirror.png").write_bytes(picture)
    for name, svg in (("town/house", SVG), ("town/broken", "<svg")):
        (root / f"{name}.svg").write_text(svg)
        (root / f"{name}.txt").write_text("A house.\n")
    return root


def test_stamps_become_items_in_path_order(tree):
    pytest.importorskip("resvg_py")
    flower2, flower, broken, house, lost = stamps_source(tree, size=32, held_out=0).items()
    captions = {"en": ["A flower."], "fr": ["Une fleur."], "pt_BR": ["Uma flor."], "ca@valencia": ["Una flor."]}
    assert flower.captions == flower2.captions == captions
    assert flower.key == "plants/garden/roses/flower" and flower.labels == ("plants/garden",)
    assert flower2.labels == ("plants",) and set(flower.images) == {"image"}
    assert flower.images["image"] == (tree / "plants/garden/roses/flower.png").read_bytes()
    assert isinstance(house, Item) and verify(house.images["image"]) == (32, 32)
    assert isinstance(broken, Skip) and broken.reason == "unreadable drawing" and "town/broken" in broken.where
    assert lost == Skip("missing image", "town/lost: no .png or .svg")


def test_stamps_of_one_caption_share_a_split(tree):
    flowers = [item for item in stamps_source(tree, held_out=3).items() if isinstance(item, Item)]
    groups = {(item.group, item.split) for item in flowers}
    assert len(groups) == len({item.group for item in flowers}) == 2


def test_by_default_most_of_a_small_set_is_for_training(tree, encoded):
    picture = encoded(np.zeros((4, 6, 3), np.uint8))
    for number in range(8):
        for suffix, data in ((".txt", f"Tree {'abcdefgh'[number]}.".encode()), (".png", picture)):
            (tree / f"plants/tree{number}{suffix}").write_bytes(data)
    source = stamps_source(tree, only="plants")
    splits = [item.split for item in source.items()]
    assert source.arguments["held_out"] == 2 and sorted(splits) == ["test"] * 2 + ["train"] * 8
    for number in range(4):
        (tree / f"plants/tree{number}.png").write_bytes(picture[:20])
    good = [usable_item([item]) and item.split for item in stamps_source(tree, only="plants", held_out=4).items()]
    assert good.count("test") == 4 and good.count("train") == 2, "torn pictures are not drawn"
    for wrong in (10, 200, -1):
        with pytest.raises(UserError, match=f"held_out is {wrong}, but there are 10 stamps; write fewer"):
            stamps_source(tree, only="plants", held_out=wrong)


def test_an_empty_first_line_is_an_empty_caption(tree):
    (tree / "plants/flower2.txt").write_text("\nfr.utf8=Une fleur.\n")
    first, second, *_ = stamps_source(tree, held_out=0).items()
    assert first == Skip("empty caption", "plants/flower2 (en)") and second.captions == {"fr": ["Une fleur."]}
    (tree / "plants/flower2.txt").write_text("")
    assert read_captions(tree / "plants/flower2.txt") == {"en": [""]}


@pytest.mark.parametrize("caption", ["A flower.", "the  Flower", "Flower 2!", "flower"])
def test_group_is_the_caption_without_article_digits_and_points(caption):
    assert group_key(caption) == "flower"


def test_a_folder_without_stamps_is_refused(tmp_path):
    with pytest.raises(UserError, match="apt-get install tuxpaint-stamps-default"):
        stamps_source(tmp_path / "none")
    with pytest.raises(UserError, match="holds no stamp"):
        stamps_source(tmp_path)


def test_only_some_folders_with_the_name_as_the_label(tree):
    (tree / "plants/garden/cartoon").mkdir()
    for suffix in (".txt", ".png"):
        (tree / f"plants/garden/cartoon/rose{suffix}").write_bytes((tree / f"plants/flower2{suffix}").read_bytes())
    (tree / "plants/garden/cartoon/rose.txt").write_text("A red rose (a flower), in 2 pots.\n")
    source = stamps_source(tree, held_out=1, only="plants", label="name")
    items = list(source.items())
    assert [item.labels for item in items] == [("flower",), ("red rose",), ("flower",)]
    assert [item.split for item in items] == ["train", "test", "train"]
    # the style folder says nothing; the deepest place of a name is its lineage
    assert source.taxonomy.lineage == {"flower": ("plants", "garden", "roses"), "red rose": ("plants", "garden", "")}
    assert source.arguments["only"] == "plants" and source.arguments["label"] == "name"


def test_folder_labels_belong_to_their_first_folder(tree):
    source = stamps_source(tree)
    assert source.taxonomy.lineage == {"plants": ("plants",), "plants/garden": ("plants",), "town": ("town",)}
    assert not {"only", "label"} & set(source.arguments)  # sets prepared before are still the same


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("A peacock (a male peafowl).", "peacock"),
        ("A spiny lobster, from Hawaii.", "spiny lobster"),
        ("Tux\u2014the mascot!", "tux"),
        ("Tux - a bird", "tux"),
        ("(a bird)", "bird"),
    ],
)
def test_a_name_has_no_asides(caption, name):
    assert name_of(caption) == name


def test_unknown_folders_and_labels_are_refused(tree):
    with pytest.raises(UserError, match=r"has no \['animals'\]; write some of plants, town"):
        stamps_source(tree, only="plants,animals")
    with pytest.raises(UserError, match="label is 'colour'; write folder or name"):
        stamps_source(tree, label="colour")
