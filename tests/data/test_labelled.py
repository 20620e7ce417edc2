"""MIRFlickr-25K, NUS-WIDE and Wikipedia in the layouts they come in, on made-up files."""

import numpy as np
import pytest

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.source import Skip
from xmodal_jax.data.sources.labelled import mirflickr_source, nuswide_source, wikipedia_source
from xmodal_jax.errors import UserError


@pytest.fixture
def put(tmp_path, encoded):
    """Write text, or a small picture for None, under the temporary folder."""

    def write(name, text=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.write_bytes(encoded(np.full((8, 8, 3), len(name) * 9 % 255, np.uint8), "JPEG"))
        else:
            path.write_text(text)

    return write


@pytest.fixture
def mirflickr(put, tmp_path):
    for n in range(1, 21):
        put(f"mirflickr/im{n}.jpg")
        put(f"mirflickr/meta/tags/tags{n}.txt", f"tag{n}\nsky\n" if n != 3 else "")
    put("annotations/README.txt", "how to read")
    put("annotations/sky.txt", "\n".join(map(str, range(1, 11))))
    put("annotations/sky_r1.txt", "1\n2\n")
    put("annotations/dog.txt", "2\n20\n")
    return tmp_path


def test_mirflickr(mirflickr):
    found = list(mirflickr_source(mirflickr).items())
    items = {item.key: item for item in found if not isinstance(item, Skip)}
    assert [item.reason for item in found if isinstance(item, Skip)] == ["empty caption"] and "im3" not in items
    assert items["im2"].captions == {"en": ["tag2 sky"]} and items["im2"].labels == ("dog", "sky")
    assert items["im12"].labels == () and items["im20"].labels == ("dog",)
    assert list(items)[:4] == ["im1", "im2", "im4", "im5"]  # by number, not by name
    assert sum(item.split == "test" for item in items.values()) in (1, 2)
    narrow = {
        item.key: item.labels for item in mirflickr_source(mirflickr, narrow=True).items() if item.__class__ != Skip
    }
    assert narrow["im1"] == ("sky",) and narrow["im5"] == ()


@pytest.fixture
def nuswide(put, tmp_path):
    names = [f"actor\\000{n}_77{n}.jpg" for n in range(6)]
    for n in range(6):
        put(f"Flickr/actor/000{n}_77{n}.jpg")
    put("ImageList/Imagelist.txt", "\n".join(names))
    put("ImageList/TrainImagelist.txt", "\n".join(names[:4]))
    put("ImageList/TestImagelist.txt", "\n".join(names[4:]))
    marks = {"sky": "111010", "dog": "011001", "moon": "000100"}
    for concept, row in marks.items():
        put(f"Groundtruth/AllLabels/Labels_{concept}.txt", "\n".join(row) + "\n")
    put("All_Tags.txt", "".join(f"77{n}      blue tag{n} \n" for n in range(6)))
    return tmp_path, marks


def read(folder, **how):
    return {item.key: item for item in nuswide_source(folder, **how).items()}


def test_nuswide(nuswide, put):
    folder, marks = nuswide
    items = read(folder, top=2)
    assert [item.split for item in items.values()] == ["train"] * 3 + ["test"] * 2  # the moon is not among the top 2
    assert items["actor/0001_771.jpg"].captions == {"en": ["blue tag1"]}
    assert sorted(items["actor/0001_771.jpg"].labels) == ["dog", "sky"]
    assert len(read(folder)) == 6
    divided = [item.split for item in read(folder, top=2, train=1).values()]
    assert sorted(divided[:3]) == ["rest", "rest", "train"] and divided[3:] == ["test"] * 2
    assert nuswide_source(folder, train=1).arguments["train"] == 1 and "train" not in nuswide_source(folder).arguments
    for concept, row in marks.items():  # the other form of the labels says the same
        for title, own in (("Train", row[:4]), ("Test", row[4:])):
            put(f"Groundtruth/TrainTestLabels/Labels_{concept}_{title}.txt", " \n".join(own))
    assert {key: sorted(item.labels) for key, item in read(folder, top=2).items()} == {
        key: sorted(item.labels) for key, item in items.items()
    }
    (folder / "All_Tags.txt").unlink()
    put("NUS_WID_Tags/TagList1k.txt", "blue\nred\n")
    put("NUS_WID_Tags/AllTags1k.txt", "1\t0\n1\t1\n" + "0\t1\n" * 4)
    assert read(folder)["actor/0001_771.jpg"].captions == {"en": ["blue red"]}


@pytest.fixture
def wikipedia(put, tmp_path):
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        put(f"{split}set_txt_img_cat.list", "".join(f"text-{n}\tpicture{n}\t{n % 2 + 1}\n" for n in numbers))
    for n in range(6):
        put(f"images/{('art', 'biology')[n % 2]}/picture{n}.jpg")
        body = (
            f"<images><image>a {n}</image></images><text>A painting\n number {n}, by <i>S</i> & W &amp; 3 < 4.</text>"
        )
        put(f"texts/text-{n}.xml", f'<document id="{n}" name="n{n}" cat="{n % 2 + 1}">\n{body}\n</document>')
    return tmp_path


def test_wikipedia_through_the_command_line(wikipedia, tmp_path):
    items = list(wikipedia_source(wikipedia).items())
    assert [(item.key, item.labels, item.split) for item in items[3:5]] == [
        ("text-3", ("biology",), "train"),
        ("text-4", ("art",), "test"),
    ]
    assert items[0].captions == {"en": ["A painting number 0, by S & W & 3 < 4."]}
    assert main(["data", "prepare", "wikipedia", "--path", str(wikipedia), "--out", str(tmp_path / "set")]) == 0
    card = Card.load(tmp_path / "set")
    assert card.label_names == ["art", "biology"] and card.split("test")["records"] == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("annotations/dog.txt", "2\nx\n", "dog.txt says 'x' where the number of a picture must be"),
        ("annotations/dog.txt", "9" * 5000, "dog.txt says '9{40}' where the number of a picture must be"),
        ("mirflickr/imx.jpg", "", "imx.jpg says 'x'"),
    ],
)
def test_broken_mirflickr_is_refused(mirflickr, put, name, text, words):
    put(name, text)
    with pytest.raises(UserError, match=words):
        mirflickr_source(mirflickr)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("Groundtruth/AllLabels/Labels_dog.txt", "1\n0\n", "has 2 lines for 6 pictures"),
        ("All_Tags.txt", None, "no All_Tags.txt or AllTags1k.txt"),
        ("ImageList/TestImagelist.txt", None, "image list .*TestImagelist.txt does not exist"),
    ],
)
def test_broken_nuswide_is_refused(nuswide, put, name, text, words):
    (nuswide[0] / name).unlink()
    if text is not None:
        put(name, text)
    with pytest.raises(UserError, match=words):
        nuswide_source(nuswide[0])


def test_broken_wikipedia_is_refused(wikipedia, put):
    for torn in ("<document><text>A painting", "<document><text>whole</text><text>A painting"):
        put("texts/text-1.xml", torn)
        with pytest.raises(UserError, match=r"text-1.xml ends inside its text"):
            wikipedia_source(wikipedia)
    put("texts/text-1.xml", "<document><text/><text><![CDATA[A <b>painting</b>]]></text></document>")
    assert list(wikipedia_source(wikipedia).items())[1].captions == {"en": ["A painting"]}
    put("testset_txt_img_cat.list", "text-4 picture4\n")
    put("texts/text-1.xml", "<document>words</document>")
    with pytest.raises(UserError, match="testset_txt_img_cat.list, line 1, is not 'text picture category'"):
        wikipedia_source(wikipedia)
    with pytest.raises(UserError, match="MIRFlickr folder .* does not exist"):
        mirflickr_source(wikipedia / "none")
