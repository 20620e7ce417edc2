"""The lineage of labels: what is written comes back, and taxa are compared by their whole path."""

import json

import numpy as np
import pytest

from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.source import Item, Source
from xmodal_jax.data.taxonomy import TAXONOMY_FILE, Taxonomy, folder_taxonomy
from xmodal_jax.errors import UserError

LINEAGE = {
    "oenanthe crocata": ("plantae", "oenanthe"),
    "oenanthe deserti": ("animalia", "oenanthe"),
    "oenanthe isabellina": ("animalia", "oenanthe"),
    "something": ("animalia", ""),
}
TREE = Taxonomy("species", ("kingdom", "genus"), LINEAGE, {"oenanthe deserti": "desert wheatear"})


def test_a_taxonomy_comes_back_as_it_was(tmp_path):
    assert Taxonomy.load(tmp_path) is None
    TREE.save(tmp_path)
    assert Taxonomy.load(tmp_path) == TREE and TREE.labels == list(LINEAGE)


def test_two_genera_of_one_name_in_two_kingdoms_differ():
    labels = [*LINEAGE, "unheard of"]
    np.testing.assert_array_equal(TREE.taxa(labels, "genus"), [0, 1, 1, -1, -1])
    np.testing.assert_array_equal(TREE.taxa(labels, "kingdom"), [0, 1, 1, 1, -1])


def test_folders_are_ranks_and_what_is_missing_is_empty():
    tree = folder_taxonomy({"bear": ("animals", "mammals"), "fern": ("plants",)}, "name")
    assert tree == Taxonomy("name", ("folder 1", "folder 2"), {"bear": ("animals", "mammals"), "fern": ("plants", "")})
    with pytest.raises(UserError, match="at least one label"):
        folder_taxonomy({}, "name")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"ranks": [], "lineage": {}}', '{"leaf": "x", "ranks": ["a"], "lineage": {"b": []}}']
)
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / TAXONOMY_FILE).write_text(content)
    with pytest.raises(UserError, match=r"taxonomy\.json is not a taxonomy"):
        Taxonomy.load(tmp_path)


def test_it_travels_with_the_data_set(tmp_path, tiny_items):
    item = tiny_items(1)[0]
    source = Source("made", "made", "none", lambda: iter([Item("a", item.images, {"en": ["x"]})]), {}, 1, TREE)
    prepare(source, tmp_path / "set")
    assert Taxonomy.load(tmp_path / "set") == TREE
    assert json.loads((tmp_path / "set" / TAXONOMY_FILE).read_text())["leaf"] == "species"
