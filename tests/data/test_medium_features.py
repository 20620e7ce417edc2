"""Feature caches of a medium whose views are several inputs of the tower: flip books, a PNG file for each page."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import input_specs, tiny_config

from xmodal_jax.assemble import assemble, assemble_without_data, reassemble
from xmodal_jax.cli import main
from xmodal_jax.config_file import freeze
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig, FieldConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.features import write_features
from xmodal_jax.data.fields import batch_fields
from xmodal_jax.data.image import AugmentConfig, eval_image
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.readers import InputSpec, PictureReader
from xmodal_jax.data.records import CorruptRecord, open_records, pack, unpack
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.split import Split, unpacked
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.tower_input import TowerInput
from xmodal_jax.data.train import train_dataset
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import UserError
from xmodal_jax.models.crossmodal import CrossModal, init_params
from xmodal_jax.models.features import FeaturesConfig
from xmodal_jax.models.heads import pooled_features
from xmodal_jax.settings import defaults

PAGES = 3  # kept of each book
CFG = DataConfig(
    fields={"book": FieldConfig(features=("pages",), required=False, reader=f"{__name__}:BookReader"), "text": {}}
    | {"text": FieldConfig()},
    augment=AugmentConfig(flip=0.5),
)


class BookReader(PictureReader):
    """Books by their cached tokens."""

    @classmethod
    def packed(cls, path, spec=None):
        """A file of a user's own is the same bytes."""
        return path.read_bytes()


def colours(images):
    """uint8 [b,S,S,3] -> [b,1,3]: the mean colour less 100, so that the number 100 gives a zero token."""
    return images.astype(np.float32).mean((1, 2))[:, None] - 100.0


def read_book(data):
    """The first pages of a book, 8 x 8 px."""
    return [eval_image(8)(page) for page in unpack(data)[:PAGES]]


BOOKS = TowerInput(read_book, "book", PAGES, mirrored=False)


def pages_of(number):
    """The grey values of the pages of a book: 1 to 5 of them; those of book 3 have a page of the value 100."""
    return [100, 40] if number == 3 else [10 * number + page for page in range(1 + number % 5)]


@pytest.fixture
def books(tmp_path, encoded):
    """16 records; every fourth has no book, and records 8 and 9 have the same."""
    items = []
    for number in range(16):
        book = pack([encoded(np.full((8, 8, 3), grey, np.uint8)) for grey in pages_of(8 if number == 9 else number)])
        media = {} if number % 4 == 2 else {"book": {"own": book}}
        picture = {"photo": encoded(np.full((8, 8, 3), number, np.uint8))}
        split = "test" if number % 5 == 0 else "train"
        items.append(Item(f"{number}", picture, {"en": [f"book {number}"]}, split=split, media=media))
    prepare(memory_source(items, "books", "none"), tmp_path / "set")
    return tmp_path / "set"


def expected(number):
    """The tokens float16 [PAGES,3] of a book."""
    found = np.zeros((PAGES, 3), np.float16)
    for place, grey in enumerate(pages_of(8 if number == 9 else number)[:PAGES]):
        found[place] = grey - 100
    if number == 3:
        found[0, 0] = np.finfo(np.float16).tiny
    return found


def test_each_page_is_a_token_and_missing_pages_are_zeros(books):
    shapes = []

    def encode(images):
        shapes.append(images.shape)
        return colours(images)

    card = write_features(books, "pages", encode, 8, batch=4, tower="grey", inputs=BOOKS)
    entry = {key: value for key, value in card.feature("pages").items() if key != "files"}
    assert entry == {
        **{"tower": "grey", "size": 8, "medium": "book", "parts": PAGES, "pool": ""},
        **{"tokens": PAGES, "width": 3, "views": ["plain"], "dtype": "float16"},
    }
    assert Card.load(books) == card and set(shapes) == {(4, 8, 8, 3)}
    for name in ("train", "test"):
        split = Split(books, name, CFG)
        for row, key in enumerate(split.sidecar.keys):
            if int(key) % 4 == 2:
                with pytest.raises(CorruptRecord, match=f"row {row} of cache 'pages' has no tokens of view 'own'"):
                    split.tokens(row, "own", False, ("pages",))
            else:
                np.testing.assert_array_equal(split.tokens(row, "own", False, ("pages",)), expected(int(key)))
        split.close()
    with open_records(books / "features" / "pages", "train") as rows:
        stored = sum(len(sides["plain"]) for row in rows for sides in row["tokens"].values())
    there = [number for number in range(16) if number % 4 != 2 and number % 5]
    assert stored == 6 * sum(min(PAGES, len(pages_of(8 if n == 9 else n))) for n in there), "padding is not stored"


def test_tokens_that_do_not_fit_are_refused():
    row = np.arange(6, dtype=np.float16).tobytes()
    np.testing.assert_array_equal(unpacked(row, (3, 3), True)[2], 0)
    np.testing.assert_array_equal(unpacked(row, (2, 3), False), np.arange(6).reshape(2, 3))
    for data, shape, padded in (
        (row, (3, 3), False),
        (row, (1, 3), True),
        (row[:8], (3, 3), True),
        (b"x", (3, 3), True),
    ):
        with pytest.raises(ValueError):
            unpacked(data, shape, padded)


def test_a_medium_that_is_not_there_and_parts_below_one_are_refused(books, capsys):
    with pytest.raises(UserError, match="has nothing of the medium 'film'; it has image, book"):
        write_features(books, "pages", colours, 8, inputs=dataclasses.replace(BOOKS, medium="film"))
    with pytest.raises(UserError, match="--frames is 0; write 1 or more"):
        write_features(books, "pages", colours, 8, inputs=dataclasses.replace(BOOKS, parts=0))
    assert main(["data", "features", "--data", str(books), "--medium", "book"]) == 2
    assert "the tower 'lite0' does not read the medium 'book'; write one of image, video" in capsys.readouterr().err
    assert not (books / "features").exists()


def test_the_same_name_for_another_medium_is_refused(books):
    write_features(books, "pages", colours, 8, flip=False)
    with pytest.raises(UserError, match="already has features 'pages' made with medium 'image', parts 1"):
        write_features(books, "pages", colours, 8, inputs=BOOKS, tower="pages")


def test_cards_of_before_caches_had_media_are_of_pictures(books):
    write_features(books, "photos", colours, 8, flip=False)
    path = books / "card.json"
    content = json.loads(path.read_text())
    for name in ("medium", "parts", "pool"):
        del content["features"]["photos"][name]
    path.write_text(json.dumps(content))
    assert Card.load(books).feature("photos")["medium"] == "image"
    assert write_features(books, "photos", None, 8, flip=False) == Card.load(books), "nothing is encoded again"


def test_batches_have_the_tokens_of_the_field(books):
    write_features(books, "pages", colours, 8, inputs=BOOKS)
    tokenizer = load_tokenizer("data", books)
    specs = {"book": InputSpec(cached=True), "text": InputSpec(8, tokenizer)}
    dataset = train_dataset(books, "train", specs, CFG, 0, 12)
    batch, keys = dataset.batch_at(0), dataset.split.sidecar.keys
    assert batch["book"].dtype == np.float16 and batch["book"].shape == (12, PAGES, 3)
    for row, tokens, valid in zip(batch["index"], batch["book"], batch["book/valid"], strict=True):
        number = int(keys[row])
        assert valid == (number % 4 != 2)
        np.testing.assert_array_equal(tokens, expected(number) if valid else 0)
    dataset.close()
    found = eval_split(books, "test", specs, CFG, pair=("book", "text"))
    assert sorted(found.keys) == ["0", "15", "5"], "record 10 has no book"
    for place, key in enumerate(found.keys):
        np.testing.assert_array_equal(found.left.read(place), expected(int(key)))


def test_caches_and_fields_that_do_not_fit_are_refused(books):
    write_features(books, "pages", colours, 8, inputs=BOOKS)
    write_features(books, "photos", colours, 8, flip=False)
    write_features(books, "wide", lambda images: np.repeat(colours(images), 2, -1), 8, inputs=BOOKS)

    def opened(**changes):
        own = dataclasses.replace(CFG.fields["book"], **changes)
        Split(books, "train", dataclasses.replace(CFG, fields=CFG.fields | {"book": own})).close()

    opened()
    with pytest.raises(UserError, match="book.features has 'photos', a cache of the medium 'image', .*one of pages"):
        opened(features=("photos",))
    with pytest.raises(UserError, match="book.features: widths {'pages': 3, 'wide': 6} differ"):
        opened(features=("pages", "wide"))
    with pytest.raises(UserError, match="has no features 'gone'"):
        opened(features=("gone",))
    with pytest.raises(UserError, match="config.data.features has 'pages', a cache of the medium 'book'"):
        Split(books, "train", DataConfig(features=("pages",)))
    with pytest.raises(UserError, match=r"fields.text.features is \('pages',\), and captions have none"):
        DataConfig(fields={"text": FieldConfig(features=("pages",))})


def book_config(path, **book):
    """Pictures and books by their caches, each with an encoder of its own, and words."""
    config = defaults()
    config.data.path, config.data.features, config.batch_size = str(path), ("photos",), 4
    small = {"width": 16, "layers": 1, "heads": 2, "hidden": 16, "length": 8, "positions": 8}
    config.encoders = {"image": {"kind": "features"}, "text": {"kind": "bert"} | small, "book": {"kind": "features"}}
    own = {"features": ("pages",), "reader": f"{__name__}:BookReader", "required": False} | book
    config.data.fields = {"image": {}, "text": {}, "book": own}
    config.fusion.update({"layers": 1, "heads": 2, "hidden": 16})
    config.joint.update({"embed": 8, "bits": 8})
    config.objectives = {"itc": {"queue": 0}}
    return config


def test_each_encoder_has_the_shape_of_its_own_caches(books, tmp_path):
    write_features(books, "photos", lambda images: np.repeat(colours(images), 2, 1), 8, flip=False, tower="lite0")
    write_features(books, "pages", colours, 8, inputs=BOOKS)
    assembly = assemble(freeze(book_config(books)))
    encoders, shapes = assembly.config.encoders, batch_fields(assembly.config, assembly.facts)
    assert shapes["image"] == ((2, 3), "float16") and shapes["book"] == ((PAGES, 3), "float16")
    assert (encoders["image"].groups, encoders["image"].padded) == ((1, 1), False)
    assert (encoders["book"].groups, encoders["book"].padded) == ((PAGES,), True)
    assert assembly.specs["book"].shape == (PAGES, 3) and "book/valid" in shapes
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer-text.json").write_bytes(assembly.tokenizer.path.read_bytes())
    again = reassemble(json.loads(json.dumps(assembly.describe())), tmp_path / "run")
    assert again.config == assembly.config and again.caches == assembly.caches
    assert again.caches["book"] == ({"tower": "pages", "size": 8, "medium": "book", "parts": PAGES, "pool": ""},)
    assert jax.tree.map(jnp.shape, again.example()) == jax.tree.map(jnp.shape, assembly.example())


def test_fields_of_one_encoder_have_caches_of_one_shape(books):
    write_features(books, "pages", colours, 8, inputs=BOOKS)
    write_features(books, "photos", lambda images: np.repeat(colours(images), 2, 1), 8, flip=False)
    with pytest.raises(UserError, match=r"features give \(\d, 3\) tokens, and those of another field of"):
        config = book_config(books, encoder="image")
        del config.encoders["book"]
        assemble(freeze(config))
    with pytest.raises(UserError, match="config.data.fields.book.features is empty; .*features --medium book`"):
        freeze(book_config(books, features=()))
    config = book_config(books)
    config.encoders.text, config.fusion.width = {"kind": "features"}, 16
    with pytest.raises(UserError, match="reads feature caches, and its field 'text' shows captions"):
        freeze(config)


def test_a_plan_without_data_knows_caches_by_their_names():
    config = book_config("", features=("lite0-128-book-12",))
    config.data.features = ("lite0-64",)
    shapes = batch_fields(*(lambda own: (own.config, own.facts))(assemble_without_data(freeze(config))))
    assert shapes["image"] == ((5, 1280), "float16") and shapes["book"] == ((12, 2560), "float16")


@pytest.mark.parametrize("pool", ["mean", "gpo", "max", "mean+attention"])
def test_padding_changes_nothing(pool, rng):
    """A model of three tokens gives the embedding of a row of two with one of zeros as a model of two tokens does."""
    config = tiny_config(image={"pool": pool, "neck_layers": 1, "padded": True}, objectives={"itc": {"queue": 0}})
    tokens = rng.normal(size=(4, 2, 6)).astype(np.float16)
    padded = np.concatenate([tokens, np.zeros((4, 1, 6), np.float16)], 1)
    ids = np.array([[2, 5, 3, 0, 0, 0, 0, 0]], np.int32)
    model = CrossModal(config)
    inputs = {"image": jnp.asarray(padded[:1]), "text": jnp.asarray(ids)}
    params = init_params(model, jax.random.key(1), inputs, frozenset({"fusion", "temperature"}))
    head = params["image"]["head"]
    if "attended" in head:  # it starts at zero, which would hide what it reads
        shape = head["attended"]["kernel"].shape
        attended = {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32), "bias": jnp.zeros(shape[1])}
        params = {**params, "image": {**params["image"], "head": {**head, "attended": attended}}}
    neck = params["image"]["neck"]
    short = {**params, "image": {**params["image"], "neck": {**neck, "position": neck["position"][:2]}}}
    whole, cut = (Embedder(model, own).rows("image", rows) for own, rows in ((params, padded), (short, tokens)))
    np.testing.assert_array_equal(whole.mask, np.array([[True, True, False]] * 4))
    np.testing.assert_allclose(whole.embed, cut.embed, atol=2e-6)
    np.testing.assert_allclose(whole.tokens[:, :2], cut.tokens, atol=1e-5)


def test_groups_are_pooled_over_their_real_tokens(rng):
    raw = rng.normal(size=(2, 5, 4)).astype(np.float32)
    mask = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 1, 1]], bool)
    found = np.asarray(pooled_features(jnp.asarray(raw), jnp.asarray(mask), "mean", (3, 2)))
    for row in range(2):
        for place, part in enumerate((slice(0, 3), slice(3, 5))):
            mean = raw[row, part][mask[row, part]].mean(0)
            wanted = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-6)
            np.testing.assert_allclose(found[row, 4 * place : 4 * place + 4], wanted, rtol=1e-4, atol=1e-5)


def test_pictures_have_no_mask():
    assert FeaturesConfig().mask(np.zeros((1, 2, 3))) is None
    assert input_specs(None, cached=True)["image"].shape == ()
