"""Sets of cross-modal hashing in MATLAB files of both versions, written as MATLAB and SciPy write them."""

import io
import sys

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from xmodal_jax.cli import main
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import check_record, open_records
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item, Skip, usable_item
from xmodal_jax.data.sources import matfile
from xmodal_jax.data.sources.labelled import divide_train, mirflickr_source
from xmodal_jax.data.sources.mat import mat_source
from xmodal_jax.errors import UserError

COUNT, HEIGHT, WIDTH, WORDS, LABELS = 40, 6, 9, 13, 5
HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan 1 00:00:00 2018 HDF5 schema 1.00 ."


def save73(path, chunked=True, **values):
    """A version 7.3 file: HDF5 after 512 bytes of header, axes in reverse; lists are cells of texts or of cells."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            put73(file, name, value, chunked)
    with path.open("r+b") as file:
        file.write(HEADER.ljust(116) + bytes(8) + b"\x00\x02IM")


def put73(file, name, value, chunked=False):
    if isinstance(value, list):
        places = [put73(file, f"#refs#/{name}{number}", part).ref for number, part in enumerate(value)]
        data = file.create_dataset(name, (1, len(value)), h5py.ref_dtype)
        data[0] = places
        kind = b"cell"
    elif isinstance(value, str):
        kind = b"char"
        codes = np.frombuffer(value.encode("utf-16-le"), np.uint16)[:, None]
        data = file.create_dataset(name, data=codes if value else np.zeros(2, np.uint64))
        if not value:
            data.attrs["MATLAB_empty"] = np.uint8(1)
    else:
        data = file.create_dataset(name, data=value.T, compression="gzip" if chunked else None)
        kind = {"float64": b"double"}.get(value.dtype.name, value.dtype.name.encode())
    data.attrs["MATLAB_class"] = np.bytes_(kind)
    return data


@pytest.fixture(scope="module")
def truth():
    """Pictures uint8 [n,height,width,3], a bag of words [n,words] and labels [n,labels]; row 3 is without any."""
    rng = np.random.default_rng(1)
    bag, labels = rng.random((COUNT, WORDS)) < 0.3, rng.random((COUNT, LABELS)) < 0.4
    bag[:, 0], bag[3], labels[3] = True, False, False
    return rng.integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), np.uint8), bag.astype(float), labels.astype(float)


@pytest.fixture
def dcmh(truth, tmp_path):
    """DCMH's one file: MATLAB's images [height,width,3,n]."""
    pictures, bag, labels = truth
    file = tmp_path / "FLICKR-25K.mat"
    save73(file, images=pictures.transpose(1, 2, 3, 0), YAll=bag, LAll=labels)
    return file


def read(source):
    """{key: item} and the reasons of what was left out."""
    found = list(source.items())
    skips = [item.reason for item in found if isinstance(item, Skip)]
    return {item.key: item for item in found if isinstance(item, Item)}, skips


def same_as(truth, items, words=lambda column: f"w{column}"):
    pictures, bag, labels = truth
    for key, item in items.items():
        row = int(key)
        assert item.captions == {"en": [" ".join(words(column) for column in np.flatnonzero(bag[row]))]}
        assert item.labels == tuple(f"label{column}" for column in np.flatnonzero(labels[row]))
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(item.images["image"]))), pictures[row])
    return True


def test_one_file_of_version_73_to_a_data_set(dcmh, truth, tmp_path):
    source = mat_source(dcmh, queries=7, train=20)
    card = prepare(source, tmp_path / "set", allow_bad=True)
    assert {split: entry["records"] for split, entry in card.splits.items()} == {"rest": 12, "test": 7, "train": 20}
    assert card.skipped == {"empty caption": 1} and card.arguments["queries"] == 7 and card.arguments["train"] == 20
    items = {}
    for split in card.splits:
        own = Sidecar(tmp_path / "set", card, split)
        with open_records(tmp_path / "set", split) as records:
            for number in range(len(records)):
                record = check_record(records[number])
                labels = tuple(card.label_names[label] for label in own.labels(number))
                items[record["key"]] = Item(record["key"], record["media"]["image"], own.captions(number), labels)
    assert len(items) == COUNT - 1 and same_as(truth, items)


def test_defaults_of_the_protocol(dcmh):
    plain = mat_source(dcmh)
    assert set(plain.arguments) == {"path", "content"} and plain.total == COUNT
    splits = [item.split for item in read(plain)[0].values()]
    assert splits.count("test") == 3 and splits.count("train") == 36  # a tenth of the 39 that have a word
    more = read(mat_source(dcmh, train=30))[0]
    assert all(more[key].split == "test" for key, item in read(plain)[0].items() if item.split == "test")
    assert sum(item.split == "train" for item in more.values()) == 30


@pytest.mark.parametrize("blocks", ["chunked", "contiguous"])
def test_pictures_are_read_in_blocks(truth, tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(matfile, "BLOCK_ROWS", 7)
    monkeypatch.setattr(matfile, "SLICE_BYTES", 1000)
    pictures, bag, labels = truth
    file = tmp_path / "x.mat"
    save73(file, blocks == "chunked", IAll=pictures.transpose(1, 2, 3, 0), TAll=bag, LAll=labels)
    variable = next(one for one in matfile.variables(file) if one.name == "IAll")
    assert max(len(block) for block in variable.blocks((3, 0, 1, 2))) < COUNT // 2
    assert same_as(truth, read(mat_source(file))[0])


@pytest.mark.parametrize("layout", ["matlab", "rows first", "channels last", "version 7.3", "columns are rows"])
def test_three_files(truth, tmp_path, layout):
    """Tags and labels of version 5 beside pictures of either version, and the orders of axes that there are."""
    pictures, bag, labels = truth
    orders = {"rows first": (0, 3, 1, 2), "channels last": (0, 1, 2, 3)}
    array = pictures.transpose(orders.get(layout, (1, 2, 3, 0)))
    if layout == "version 7.3":
        save73(tmp_path / "nus-wide-tc21-iall.mat", IAll=array)
    else:
        scipy.io.savemat(tmp_path / "nus-wide-tc21-iall.mat", {"IAll": array.astype(float)}, do_compression=True)
    turned = layout == "columns are rows"
    scipy.io.savemat(tmp_path / "nus-wide-tc21-yall.MAT", {"YAll": bag.T if turned else bag}, appendmat=False)
    labels = scipy.sparse.csc_matrix(labels) if layout == "matlab" else labels
    scipy.io.savemat(tmp_path / "nus-wide-tc21-lall.mat", {"LAll": labels.T if turned else labels.astype(np.uint8)})
    assert same_as(truth, read(mat_source(tmp_path))[0])


def test_words_and_labels_by_name(dcmh, truth, tmp_path):
    (tmp_path / "TagList.txt").write_text("\n".join(f"word-{n}" for n in range(WORDS)))
    names = tmp_path / "names"
    names.write_text("".join(f"thing {n}\n" for n in range(LABELS)))
    item = read(mat_source(dcmh, label_names=names))[0]["5"]
    assert item.captions["en"] == [" ".join(f"word-{n}" for n in np.flatnonzero(truth[1][5]))]
    assert item.labels == tuple(f"thing {n}" for n in np.flatnonzero(truth[2][5]))
    assert mat_source(dcmh).arguments["content"] != mat_source(dcmh, label_names=names).arguments["content"]
    for lines in ("one\ntwo\n", "same\n" * WORDS):
        names.write_text(lines)
        with pytest.raises(UserError, match=r"names must have 13 lines, each another name, for the columns of 'YAll'"):
            mat_source(dcmh, vocabulary=names)


@pytest.fixture
def dcmht(truth, tmp_path, encoded):
    """DCMHT's three files, with paths of another machine and several captions a picture."""
    pictures, _, labels = truth
    parts = [("a", "b")[n % 2] + f"/im{n}.jpg" for n in range(COUNT)]
    for part, picture in zip(parts, pictures, strict=True):
        (tmp_path / "pictures" / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / part).write_bytes(encoded(picture))
    texts = np.array([[f"picture {n}", "a longer caption of it"] for n in range(COUNT)], object)
    cells = np.empty((1, COUNT), object)
    cells[0] = [row[: 1 + n % 2] for n, row in enumerate(texts)]
    scipy.io.savemat(tmp_path / "index.mat", {"index": [f"/home/me/set/{part}" for part in parts]})
    scipy.io.savemat(tmp_path / "caption.mat", {"caption": cells})
    scipy.io.savemat(tmp_path / "label.mat", {"category": labels})
    return tmp_path, parts


def test_paths_and_sentences(dcmht, truth):
    folder, parts = dcmht
    items, skips = read(mat_source(folder, folder / "pictures", train=10))
    assert list(items) == parts and not skips
    assert items["a/im2.jpg"].captions == {"en": ["picture 2"]}
    assert items["b/im5.jpg"].captions == {"en": ["picture 5", "a longer caption of it"]}
    assert items["b/im5.jpg"].images["image"] == (folder / "pictures/b/im5.jpg").read_bytes()
    assert items["b/im3.jpg"].labels == () and items["b/im3.jpg"].group == "b/im3.jpg"
    assert [sum(item.split == split for item in items.values()) for split in ("test", "train", "rest")] == [4, 10, 26]
    (folder / "pictures/a/im4.jpg").unlink()
    assert read(mat_source(folder, folder / "pictures"))[1] == ["missing image"]
    for number, item in enumerate(item for item in items.values() if item.split == "test"):
        file = folder / "pictures" / item.key
        file.write_bytes(file.read_bytes()[:40]) if number % 2 else file.unlink(missing_ok=True)
    found = read(mat_source(folder, folder / "pictures", queries=8, train=20))[0].values()
    splits = [item.split for item in found if usable_item([item])]
    assert (splits.count("test"), splits.count("train")) == (8, 20), "queries are drawn among whole pictures"


def test_other_forms_of_the_texts_say_the_same(dcmht, truth):
    folder, parts = dcmht
    wanted = {key: item.captions for key, item in read(mat_source(folder, folder / "pictures"))[0].items()}
    rows = [[text for texts in own.values() for text in texts] for own in wanted.values()]
    save73(folder / "caption.mat", caption=rows)
    pairs = np.array([[f"set/{part[0]}\\", part[2:]] for part in parts], object)  # NUS-WIDE: folder and file
    scipy.io.savemat(folder / "index.mat", {"imgs": pairs})
    assert {key: item.captions for key, item in read(mat_source(folder, folder / "pictures"))[0].items()} == wanted
    save73(folder / "caption.mat", caption=["", *(row[0] for row in rows[1:])])
    save73(folder / "index.mat", FAll=parts)
    items, skips = read(mat_source(folder, folder / "pictures"))
    assert skips == ["empty caption"] and list(items) == parts[1:] and items[parts[5]].captions == {"en": rows[5][:1]}
    (folder / "caption.mat").unlink()
    (folder / "caption.txt").write_text("first\n\n" + "more\n" * (COUNT - 2), "utf-8")
    items, skips = read(mat_source(folder, folder / "pictures"))
    assert skips == ["empty caption"] and items[parts[0]].captions == {"en": ["first"]} and parts[1] not in items
    with pytest.raises(UserError, match="'vocabulary' goes with a 0/1 bag of words"):
        mat_source(folder, folder / "pictures", vocabulary=folder / "caption.txt")


def test_paths_win_over_an_array_where_images_are_given(dcmht, truth):
    folder, parts = dcmht
    scipy.io.savemat(folder / "iall.mat", {"IAll": truth[0].transpose(1, 2, 3, 0)})
    assert list(read(mat_source(folder, folder / "pictures"))[0]) == parts
    assert list(read(mat_source(folder))[0]) == [str(number) for number in range(COUNT)]


def test_through_the_command_line(dcmh, tmp_path, capsys):
    command = ["data", "prepare", "mat", "--path", str(dcmh), "--out", str(tmp_path / "set"), "--allow-bad"]
    assert main([*command, "--queries", "5", "--train", "9"]) == 0
    assert main([*command, "--queries", "5", "--train", "9"]) == 0
    assert main([*command, "--queries", "5", "--train", "8"]) == 2
    assert "prepared with another train" in capsys.readouterr().err
    assert main(["data", "prepare", "wikipedia", "--path", "x", "--train", "5", "--out", str(tmp_path / "y")]) == 2
    assert "'wikipedia' takes no --train" in capsys.readouterr().err


def broken(truth, **changed):
    pictures, bag, labels = truth
    given = {"images": pictures.transpose(1, 2, 3, 0), "YAll": bag, "LAll": labels, **changed}
    return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize("version", [5, 7])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"LAll": None}, r"holds YAll, images, and a set needs pictures .* and labels \(LAll, category"),
        ({"images": None}, r"holds LAll, YAll, and a set needs"),
        ({"YAll": np.zeros((COUNT - 1, WORDS))}, f"'YAll' of .* has {COUNT - 1} rows for {COUNT} pictures"),
        ({"LAll": np.full((COUNT, 1), 2.0)}, "'LAll' of .* has values that are not 0 or 1"),
        ({"YAll": np.full((COUNT, WORDS), np.nan)}, "'YAll' of .* has values that are not 0 or 1"),
        ({"YAll": np.zeros((COUNT, WORDS, 2))}, "is no full matrix of numbers"),
        ({"images": np.zeros((COUNT, 4096))}, r"'images' of .* is \[40, 4096\] and no array of pictures"),
        ({"images": np.full((HEIGHT, WIDTH, 3, COUNT), 0.5)}, "no whole numbers from 0 to 255"),
        ({"images": np.full((HEIGHT, WIDTH, 3, COUNT), 300.0)}, "no whole numbers from 0 to 255"),
        ({"Tags": np.zeros((COUNT, WORDS))}, "'Tags' of .* and 'YAll' of .* are both texts"),
    ],
)
def test_other_content_is_refused(truth, tmp_path, version, changed, words):
    file = tmp_path / "x.mat"
    given = broken(truth, **changed)
    if version == 5:
        scipy.io.savemat(file, given)
    else:
        save73(file, **given)
    with pytest.raises(UserError, match=words):
        read(mat_source(file))


def test_features_are_refused_by_name(tmp_path):
    features = {"I_tr": np.zeros((5, 128)), "T_tr": np.zeros((5, 10)), "I_te": np.zeros((2, 128))}
    scipy.io.savemat(tmp_path / "raw_features.mat", features)
    with pytest.raises(UserError, match=r"raw_features.mat holds I_te, I_tr, T_tr, and a set needs pictures \(images"):
        mat_source(tmp_path / "raw_features.mat")


def test_torn_and_foreign_files_are_refused(dcmh, dcmht, tmp_path, monkeypatch):
    folder, _ = dcmht
    for file in (dcmh, folder / "label.mat"):
        whole = file.read_bytes()
        for kept in (len(whole) * 2 // 3, 700, 200):
            file.write_bytes(whole[:kept])
            with pytest.raises(UserError, match=rf"{file.name} (cannot be read .*download it again|is no MATLAB file)"):
                for variable in matfile.variables(file):
                    variable.marks()
        file.write_bytes(whole)
    (tmp_path / "x.mat").write_text("version https://git-lfs.github.com/spec/v1\n")
    for path, words in (("x.mat", "x.mat is no MATLAB file of version 5 or 7.3"), ("none", "none does not exist")):
        with pytest.raises(UserError, match=words):
            mat_source(tmp_path / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no .mat file"):
        mat_source(tmp_path / "empty")
    with pytest.raises(UserError, match="'images' goes with paths of pictures"):
        mat_source(dcmh, images=folder)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"version 7.3 and needs h5py: pip install -e '.\[mat\]'"):
        mat_source(dcmh)


def test_texts_of_another_kind_are_refused(dcmht, truth):
    folder, _ = dcmht
    numbers = np.empty(COUNT, object)
    numbers[:] = [np.zeros(3)] * COUNT
    scipy.io.savemat(folder / "caption.mat", {"caption": numbers})
    with pytest.raises(UserError, match="a cell holds .* where a text must be"):
        mat_source(folder, folder / "pictures")
    save73(folder / "caption.mat", caption=[np.zeros((1, 3))] * COUNT)
    with pytest.raises(UserError, match="a cell of .*caption.mat holds numbers where a text must be"):
        mat_source(folder, folder / "pictures")
    scipy.io.savemat(folder / "caption.mat", {"caption": ["few", "texts"]})
    with pytest.raises(UserError, match="'caption' of .* has 2 rows for 40 pictures"):
        mat_source(folder, folder / "pictures")
    save73(folder / "index.mat", index=np.zeros((COUNT, 1)))
    with pytest.raises(UserError, match="'index' of .* is no list of texts"):
        mat_source(folder, folder / "pictures")


def test_numbers_of_the_protocol(dcmh, tmp_path):
    for how, words in (
        ({"queries": COUNT - 1}, "queries is 39, but there are 39 records"),
        ({"queries": -1}, "queries is -1"),
        ({"queries": 9, "train": 31}, "train is 31, but 30 records that have a text are not queries"),
        ({"train": -1}, "train is -1"),
    ):
        with pytest.raises(UserError, match=words):
            mat_source(dcmh, **how)
    names, splits, usable = list("abcdef"), ["test", *["train"] * 5], [True] * 5 + [False]
    divided = divide_train(names, splits, usable, 2)
    assert divided[0] == "test" and divided.count("train") == 2 and divided[5] == "rest"
    assert divide_train(names[::-1], splits[::-1], usable[::-1], 2)[::-1] == divided  # by name, not by place
    assert divide_train(names, splits, usable, 0) == splits


def test_mirflickr_is_divided_too(tmp_path, encoded):
    picture = encoded(np.zeros((4, 6, 3), np.uint8), "JPEG")
    (tmp_path / "meta/tags").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/sky.txt").write_text("1\n")
    for n in range(1, 31):
        (tmp_path / f"im{n}.jpg").write_bytes(picture[: -10 if n % 5 == 0 else None])
        (tmp_path / f"meta/tags/tags{n}.txt").write_text("sky\n" if n != 7 else "")
    plain = mirflickr_source(tmp_path)
    assert set(plain.arguments) == {"path", "content"}
    source = mirflickr_source(tmp_path, queries=6, train=10)
    splits = [item.split for item in read(source)[0].values() if usable_item([item])]
    assert splits.count("train") == 10 and source.arguments["train"] == 10 and source.arguments["queries"] == 6
    assert splits.count("test") == 6 and splits.count("rest") == 7  # of 23 with a tag and a whole picture


def test_no_two_rows_take_one_file(truth, tmp_path):
    """The paths of another machine lose the same leading folders in every row; a file that is not there is missing."""
    pictures, bag, labels = truth
    names = [f"/far/away/{part}/{n}.png" for n in range(len(bag)) for part in ("train" if n % 2 else "test",)]
    names[1] = "/far/away/train/0.png"  # what test/0.png is called too
    for name in names[:1] + names[2:]:
        file = tmp_path / "images" / name.removeprefix("/far/away/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    cell = np.array(names, dtype=object).reshape(-1, 1)
    scipy.io.savemat(tmp_path / "index.mat", {"index": cell})
    scipy.io.savemat(tmp_path / "caption.mat", {"caption": bag})
    scipy.io.savemat(tmp_path / "label.mat", {"category": labels})
    items, skips = read(mat_source(tmp_path))
    assert skips.count("missing image") == 1 and "train/0.png" not in items
    assert all(item.images["image"] == f"/far/away/{key}".encode() for key, item in items.items())
