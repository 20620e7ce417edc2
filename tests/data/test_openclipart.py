"""Open Clip Art, on a tree in the layout of the Debian package."""

import pytest

from xmodal_jax.data.image import verify
from xmodal_jax.data.source import Item, Skip
from xmodal_jax.data.sources.openclipart import (
    SERIES,
    captions_of,
    clean_title,
    group_key,
    openclipart_source,
    read_drawing,
)
from xmodal_jax.errors import UserError

SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about=""><dc:title>{title}</dc:title>
<dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Somebody</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF></metadata>
<rect width="10" height="{height}"/></svg>"""


def svg(title, *keywords, height=5):
    """A drawing with this metadata."""
    return SVG.format(title=title, keywords="".join(f"<rdf:li>{word}</rdf:li>" for word in keywords), height=height)


@pytest.fixture
def tree(tmp_path):
    """Animals, a copy of one, a broken file, a title that says nothing, and a theme that is left out."""
    root = tmp_path / "svg"
    files = {
        "animals/mammals/cat_01": svg("Cat 01", "animal", "cat", "hash"),
        "animals/mammals/cat_02": svg("cat (2)", "animal", "pet_food", height=6),
        "animals/mammals/copy": svg("Cat 01", "animal", "cat", "hash"),
        "animals/birds/duck": svg("Drawing by A. B. - duck", "animal", height=7),
        "animals/broken": "<svg",
        "tools/nothing": svg("Part of the Flat Icon Collection", "tool"),
        "computer/icons/x/save": svg("save", "icon"),
    }
    for key, text in files.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{key}.svg").write_text(text, "utf-8")
    return root


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("bypass_pruner 01", "bypass pruner"),
        ("Clipart by Nicu Buculei - antenna", "antenna"),
        ("chair (12)", "chair"),
        ("house.svg", "house"),
        ("Lemon SVG theme", ""),
        ("37", ""),
        ("flower03", "flower"),
    ],
)
def test_titles(title, found):
    assert clean_title(title) == found


def test_drawings_become_items(tree):
    pytest.importorskip("resvg_py")
    found = {
        item.key if isinstance(item, Item) else item.where: item for item in openclipart_source(tree, 32, 0).items()
    }
    cat = found["animals/mammals/cat_01"]
    assert cat.captions == {"en": ["Cat"], "en-tags": ["Cat, animal"]}
    assert cat.labels == ("animals/mammals",) and cat.group == "cat" and verify(cat.images["image"]) == (32, 32)
    assert found["animals/mammals/cat_02"].captions["en-tags"] == ["cat, animal, pet food"]
    assert found["animals/birds/duck"].captions["en"] == ["duck"]
    assert [item.reason for item in found.values() if isinstance(item, Skip)] == ["unreadable drawing"]
    assert len(found) == 4, "a copy, a title that says nothing and a theme are left out"
    assert not any("icons" in key for key in found)


def test_drawings_of_one_title_share_a_split(tree):
    cats = [item for item in openclipart_source(tree, 32, 1).items() if isinstance(item, Item) and item.group == "cat"]
    assert len(cats) == 2 and len({item.split for item in cats}) == 1


def test_keywords_of_ten_drawings_are_labels(tree):
    for number in range(9):
        (tree / f"tools/saw{number}.svg").write_text(svg(f"Saw {'abcdefghi'[number]}", "tool", "animal", height=number))
    labels = {
        item.key: item.labels for item in openclipart_source(tree, 32, 0, "keyword").items() if isinstance(item, Item)
    }
    assert labels["animals/birds/duck"] == ("animals/birds", "#animal")
    assert labels["tools/saw1"] == ("tools", "#animal")  # "tool" is said nine times


def test_the_title_of_a_series_says_nothing(tree):
    for number in range(SERIES):
        (tree / f"tools/sign{number}.svg").write_text(svg(f"Road sign {number}", "sign", height=number))
    keys = [item.key for item in openclipart_source(tree, 32, 0).items() if isinstance(item, Item)]
    assert len(keys) == 3 and not any("sign" in key for key in keys)


def test_tags_that_the_title_says_are_not_said_twice(tree):
    drawing = read_drawing(tree / "animals/mammals/cat_01.svg", tree)
    assert drawing.keywords == ("animal", "cat") and captions_of(drawing)["en-tags"] == ["Cat, animal"]
    assert group_key("Cat-01") == group_key("cat (2)") == "cat"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"label": "colour"}, "label is 'colour'; write folder or keyword"),
        ({"held_out": 3}, "held_out is 3, but there are 3 drawings"),
        ({"size": 4}, "size is 4; write 16 px or more"),
    ],
)
def test_impossible_arguments_are_refused(tree, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        openclipart_source(tree, **arguments)


def test_a_folder_without_drawings_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no .svg with a title"):
        openclipart_source(tmp_path)
    with pytest.raises(UserError, match="apt-get install openclipart-svg"):
        openclipart_source(tmp_path / "nowhere")
