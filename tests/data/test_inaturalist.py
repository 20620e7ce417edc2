"""iNaturalist on a small made-up folder: captions from the taxonomy, phrasings held out, bad rows counted."""

import json
import re

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, Skip
from xmodal_jax.data.sources.inaturalist import (
    COARSE,
    NAMED,
    RANKS,
    SPLITS,
    TEMPLATES,
    captions,
    inaturalist_source,
    read_categories,
)
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.errors import UserError

# made-up species: two of one genus, one of its family, one of another kingdom, one with unknown ranks
TAXA = {
    3: ("Avis prima", ("Animalia", "Chordata", "Aves", "Volantes", "Avidae", "Avis"), "Aves"),
    5: ("Avis secunda", ("Animalia", "Chordata", "Aves", "Volantes", "Avidae", "Avis"), "Aves"),
    7: ("Pluma alba", ("Animalia", "Chordata", "Aves", "Volantes", "Avidae", "Pluma"), "Aves"),
    8: ("Herba viridis", ("Plantae", "Tracheophyta", "Magnoliopsida", "Herbales", "Herbaceae", "Herba"), "Plantae"),
    9: ("Res ignota", ("Chromista", "", "", "", "", "Res"), "Chromista"),
}


def categories():
    return [
        {"id": number, "name": name, **dict(zip(RANKS, taxa, strict=True)), "supercategory": above}
        for number, (name, taxa, above) in TAXA.items()
    ]


def table(split, wanted):
    """A COCO-style table whose names are hidden as in the real file; `wanted`: category of each image."""
    images = [
        {"id": 100 + n, "file_name": f"train_val2018/{split}{n}.jpg", "license": 3, "rights_holder": "nobody"}
        for n in range(len(wanted))
    ]
    rows = [{"id": n, "image_id": 100 + n, "category_id": category} for n, category in enumerate(wanted)]
    hidden = [{"id": number, "name": f"x{number}", "supercategory": TAXA[number][2]} for number in TAXA]
    return {"images": images, "annotations": rows, "categories": hidden}


def write(path, content):
    path.write_text(json.dumps(content), "utf-8")


@pytest.fixture
def folder(tmp_path, encoded):
    """Twelve training pictures and six of validation."""
    root = tmp_path / "inat"
    (root / "train_val2018").mkdir(parents=True)
    write(root / "categories.json", categories())
    for split, wanted in (("train", [3, 3, 3, 5, 5, 7, 8, 8, 9, 9, 3, 7]), ("val", [3, 3, 5, 7, 8, 9])):
        write(root / SPLITS[split], table(split, wanted))
        for n in range(len(wanted)):
            picture = encoded(np.full((8, 8, 3), 10 * n, np.uint8), "JPEG")
            (root / "train_val2018" / f"{split}{n}.jpg").write_bytes(picture)
    return root


def test_pictures_get_their_species_split_and_captions(folder):
    items = list(inaturalist_source(folder).items())
    assert [item.split for item in items] == ["train"] * 12 + ["val"] * 6
    first = items[0]
    assert first.key == "train_val2018/train0.jpg" and first.labels == ("Avis prima",)
    assert len(first.captions["en"]) == len(NAMED) and all("Avis prima" in text for text in first.captions["en"])
    assert len(first.captions["en-taxa"]) == len(COARSE)
    assert not any("prima" in text for text in first.captions["en-taxa"])
    assert "Aves" in first.captions["en-taxa"][3] and "bird" in first.captions["en-taxa"][4]
    assert [item.captions for item in inaturalist_source(folder).items()] == [item.captions for item in items]


def as_pattern(template):
    return re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(template)))


def test_no_phrasing_of_validation_is_used_in_training(folder):
    species = read_categories(folder / "categories.json")
    written = {split: set() for split in TEMPLATES}
    for split, texts in written.items():
        for one in species.values():
            for n in range(40):
                texts.update(text for own in captions(one, split, f"key {n}").values() for text in own)
    for split, other in (("train", "val"), ("val", "train")):
        patterns = [as_pattern(text) for level in TEMPLATES[split].values() for text in level]
        assert all(any(pattern.fullmatch(text) for text in written[split]) for pattern in patterns)  # each is in use
        assert not [text for text in written[other] if any(pattern.fullmatch(text) for pattern in patterns)]


def test_training_phrasings_vary_and_pictures_of_a_taxon_share_theirs_in_validation(folder):
    species = read_categories(folder / "categories.json")
    train = {captions(species[3], "train", f"key {n}")["en"][0] for n in range(40)}
    assert len(train) == len(TEMPLATES["train"]["name"])
    first, second, other = (captions(species[number], "val", key) for number, key in ((3, "a"), (3, "b"), (5, "c")))
    assert first == second and first["en"] != other["en"]
    assert first["en-taxa"] == other["en-taxa"]  # one genus


def test_a_level_without_a_name_has_no_sentence(folder):
    unknown = read_categories(folder / "categories.json")[9]
    for split in TEMPLATES:
        texts = captions(unknown, split, "key")
        assert len(texts["en-taxa"]) == 2  # the genus and the supercategory
        for text in (text for own in texts.values() for text in own):
            assert "  " not in text and "family ." not in text and "the ," not in text


def test_prepare_writes_the_taxonomy_of_all_species(folder, tmp_path, capsys):
    assert main(["data", "prepare", "inaturalist", "--path", str(folder), "--out", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "train: 12 records, " in said and "best possible R@1/5/10" in said and "shared by pictures" in said
    tree, card = Taxonomy.load(tmp_path / "set"), Card.load(tmp_path / "set")
    assert tree.ranks == RANKS and tree.labels == [name for name, _, _ in TAXA.values()]
    np.testing.assert_array_equal(tree.taxa(tree.labels, "genus"), [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(tree.taxa(tree.labels, "family"), [0, 0, 0, 1, -1])
    assert card.languages[0] == "en" and card.skipped == {}
    # validation: two pictures of "Avis prima" share both sentences; 12 captions, 10 texts
    assert card.duplicates["val"] == {"captions": 12, "unique": 10, "unique_per_image": 2.0, "shared": 33.33}
    assert card.label_names[Sidecar(tmp_path / "set", card, "val").labels(3)[0]] == "Pluma alba"


def test_annotations_that_lead_nowhere_are_counted(folder):
    content = table("train", [3, 3, 3, 5, 5, 7, 8, 8, 9, 9, 3, 7])
    rows = content["annotations"]
    rows[0]["image_id"], rows[1]["category_id"] = 999, 77
    rows += [{"id": 50, "image_id": 102, "category_id": 8}, "nothing", {"image_id": [1], "category_id": 3}]
    content["images"] += [{"id": 500}, 7]
    (folder / "train_val2018" / "train4.jpg").unlink()
    write(folder / SPLITS["train"], content)
    found = list(inaturalist_source(folder).items())
    skips = [item for item in found if isinstance(item, Skip)]
    assert [skip.reason for skip in skips] == [
        "annotation of an unknown image",
        "annotation of an unknown category",
        "second species of an image",
        "annotation of an unknown image",
        "annotation of an unknown image",
        "image without a species",
        "image without a species",
        "missing image",
        "broken row",
        "broken row",
    ]
    assert "train2018.json: annotations[0]: image_id 999" in skips[0].where
    assert sum(isinstance(item, Item) for item in found) == 9 + 6


def test_one_list_is_enough_and_pictures_may_be_elsewhere(folder, tmp_path):
    (folder / SPLITS["train"]).unlink()
    (tmp_path / "pictures").mkdir()
    (folder / "train_val2018").rename(tmp_path / "pictures" / "train_val2018")
    items = list(inaturalist_source(folder, tmp_path / "pictures", "mine").items())
    assert {item.split for item in items} == {"val"} and len(items) == 6


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("categories.json", None, "categories.json does not exist: the names in train2018.json are hidden"),
        ("categories.json", {}, "must be a JSON list of categories"),
        ("categories.json", [{"name": "A b"}], "a category has no id or name"),
        ("categories.json", [{"id": 1, "name": "A b"}, {"id": 7, "name": " "}], r"the name of category \[7\] is empty"),
        ("categories.json", [{"id": 1, "name": "A b"}, {"id": 2, "name": "A  b"}], r"\['A b'\] occurs twice"),
        ("train2018.json", [], "train2018.json has no list 'images'"),
        ("val2018.json", {"images": []}, "val2018.json has no list 'annotations'"),
    ],
)
def test_broken_files_are_refused_by_name(folder, name, content, words):
    (folder / name).unlink()
    if content is not None:
        write(folder / name, content)
    with pytest.raises(UserError, match=words):
        inaturalist_source(folder)


def test_what_is_no_json_or_no_folder_is_refused(folder, tmp_path):
    (folder / SPLITS["val"]).write_text("{")
    with pytest.raises(UserError, match=r"val2018\.json is not JSON"):
        inaturalist_source(folder)
    for name in SPLITS.values():
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"has neither train2018\.json nor val2018\.json"):
        inaturalist_source(folder)
    with pytest.raises(UserError, match="iNaturalist folder .* does not exist"):
        inaturalist_source(tmp_path / "none")
