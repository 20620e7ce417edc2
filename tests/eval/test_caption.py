import io
import pathlib
import shutil
import subprocess
import unicodedata
from contextlib import redirect_stdout

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.errors import UserError
from xmodal_jax.eval import caption

WORDS = ["a", "red", "dog", "runs", "on", "the", "grass"]


def random_corpus(rng, images=6, references=3):
    def draw():
        return list(rng.choice(WORDS, rng.integers(1, 9)))

    return [draw() for _ in range(images)], [[draw() for _ in range(references)] for _ in range(images)]


def coco(scorer, candidates, references):
    """The score of the COCO tool on the same tokens."""
    truths = {i: [" ".join(r) for r in refs] for i, refs in enumerate(references)}
    captions = {i: [" ".join(c)] for i, c in enumerate(candidates)}
    with redirect_stdout(io.StringIO()):
        return scorer.compute_score(truths, captions)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_bleu_and_cider_are_those_of_the_coco_tool(seed, references):
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    candidates, truths = random_corpus(np.random.default_rng(seed), references=references)
    np.testing.assert_allclose(caption.bleu(candidates, truths), coco(Bleu(4), candidates, truths)[0], rtol=1e-9)
    mean, each = caption.cider(candidates, truths)
    want_mean, want_each = coco(Cider(), candidates, truths)
    np.testing.assert_allclose(each, want_each, rtol=1e-9, atol=1e-12)
    assert mean == pytest.approx(want_mean)


def test_by_hand():
    tokens, truth = ["the", "the", "the", "cat"], ["the", "cat", "sat", "there"]
    # "the" counts once, "cat" once: 2 of 4; bigram "the cat": 1 of 3
    scores = caption.bleu([tokens], [[truth]], order=2)
    assert scores == pytest.approx([2 / 4, (2 / 4 * 1 / 3) ** 0.5])
    short = caption.bleu([["the", "cat"]], [[truth]], order=1)
    assert short == pytest.approx([np.exp(1 - 4 / 2)])


def test_perfect_and_empty_captions():
    truths = [[["a", "red", "dog", "runs"]], [["the", "grass", "is", "green"]]]
    perfect = [refs[0] for refs in truths]
    assert caption.bleu(perfect, truths)[3] == pytest.approx(1.0)
    assert caption.cider(perfect, truths)[0] == pytest.approx(10.0)
    assert caption.bleu([[], []], truths) == [0.0] * 4
    assert caption.cider([[], []], truths)[0] == 0.0


SENTENCES = {
    'A man (in red) says "hello" -- don\'t go!': "a man -lrb- in red -rrb- says hello do n't go",
    "It's the dog's ball, isn't it?": "it 's the dog 's ball is n't it",
    "I can't; you cannot. We're gonna go...": "i ca n't you can not we 're gon na go",
    "3.5 kg, $5.20 & 10% of 1,000 dots; 1/2": "3.5 kg $ 5.20 & 10 % of 1,000 dots 1/2",
    "A t-shirt/hat, 7:30 p.m. U.S. St. Mr. Smith's.": "a t-shirt/hat 7:30 p.m. u.s. st. mr. smith 's",
    "the dogs' bowl {x} [y] a_b c*d": "the dogs bowl -lcb- x -rcb- -lsb- y -rsb- a_b c * d",
    "'tis what I wanna, lemme": "'t is what i wan na lem me",
    "rock 'n' roll o'clock ma'am": "rock 'n' roll o'clock ma'am",
    "don’t “curly” it’s café – Москва": "do n't curly it 's café москва",
    "Dr. Jones vs. no. 5, and me.": "dr. jones vs. no. 5 and me",
    "100th 3D 5ft he said:go -left- ": "100th 3d 5ft he said go left",
    "wait !!!": "wait !!!",
}  # what Stanford's tokenizer makes of them, without the tool's list of punctuation


@pytest.mark.parametrize(("sentence", "tokens"), SENTENCES.items())
def test_tokens_are_those_of_the_treebank(sentence, tokens):
    assert " ".join(caption.tokenize(sentence)) == tokens


@pytest.mark.skipif(shutil.which("java") is None, reason="the COCO tool's own tokenizer runs in Java")
def test_the_table_above_is_what_the_java_tokenizer_says(tmp_path):
    tool = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    text = tmp_path / "sentences.txt"
    text.write_text("\n".join(SENTENCES) + "\n")
    jar = pathlib.Path(tool.__file__).with_name(tool.STANFORD_CORENLP_3_4_1_JAR)
    command = [
        "java",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        str(text),
    ]
    lines = subprocess.run(command, capture_output=True, check=True).stdout.decode().splitlines()
    kept = [" ".join(token for token in line.split() if token not in tool.PUNCTUATIONS) for line in lines]
    assert kept == list(SENTENCES.values())


FOREIGN = {
    "Ein schöner Hund läuft!": "ein schöner hund läuft",
    "कुल लाल फूल।": "कुल लाल फूल",
    "¿Qué año? «sí»": "qué año sí",
    "می\u200cخواهم؟": "می\u200cخواهم",
    "Он видит ёжика, т.е. его.": "он видит ёжика т.е. его",
    "赤いiPhoneの猫。": "赤 い iphone の 猫",
    "ครับ ครบ": "ค รั บ ค ร บ",
    "一只猫，两条狗！": "一 只 猫 两 条 狗",
    "빨간 꽃.": "빨간 꽃",
    "I ❤️ it's é": "i ❤ it 's é",
}


@pytest.mark.parametrize(("sentence", "tokens"), FOREIGN.items())
def test_words_of_other_languages_are_whole(sentence, tokens):
    assert caption.tokenize(sentence) == tokens.split(" ")
    assert caption.tokenize(unicodedata.normalize("NFD", sentence)) == tokens.split(" ")


UNSPACED = {  # two captions and their references, of which the last letters are others or missing
    "zh": (["红色的狗在草地上跑", "一只猫"], ["红色的狗在草地上走", "一只猫在树上"]),
    "ja": (["赤い犬が走る", "猫が一匹"], ["赤い犬が走り", "猫が一匹いる"]),
    "th": (["หมาสีแดง", "แมวดำ"], ["หมาสีแดด", "แมวดำตัว"]),
}


@pytest.mark.parametrize("code", UNSPACED)
def test_captions_without_spaces_are_scored_by_their_letters(code):
    """A letter that is another costs its own n-grams alone; as one word a caption would score 0."""
    written, true = UNSPACED[code]
    scores = caption.caption_scores(written, [[text] for text in true])
    spaced = [[" ".join(caption.tokenize(text)) for text in texts] for texts in (written, true)]
    assert scores == caption.caption_scores(spaced[0], [[text] for text in spaced[1]])
    assert scores["BLEU-4"] > 0.4 and scores["CIDEr"] > 1


def test_raw_captions_are_tokenised_first():
    scores = caption.caption_scores(
        ["A red dog runs!", "The grass."], [["a red dog runs"], ["the grass", "It's grass"]]
    )
    tokens = (
        [["a", "red", "dog", "runs"], ["the", "grass"]],
        [[["a", "red", "dog", "runs"]], [["the", "grass"], ["it", "'s", "grass"]]],
    )
    assert scores == {"BLEU-4": caption.bleu(*tokens)[3], "CIDEr": caption.cider(*tokens)[0]}


@pytest.mark.parametrize(
    ("candidates", "references", "words"),
    [([], [], "no captions"), (["a"], [], "1 captions and 0 lists"), (["a", "b"], [["a"], []], "no reference")],
)
def test_bad_input_is_refused(candidates, references, words):
    with pytest.raises(UserError, match=words):
        caption.caption_scores(candidates, references)
