import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.eval import rerank, retrieval

IMAGES, TEXTS = 12, 20


@pytest.fixture
def scene(rng):
    """Embeddings, positives both ways, and a matrix of matching logits [IMAGES, TEXTS]."""
    image, text = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (IMAGES, TEXTS))
    owner = np.arange(TEXTS) % IMAGES
    to_text, to_image = retrieval.positives_from_owners(owner, np.arange(TEXTS))
    return image, text, to_text, to_image, rng.integers(-2, 3, (IMAGES, TEXTS)).astype(np.float32)


def scorer(matrix):
    """A pair scorer over `matrix`, and the shapes it was called with."""
    shapes = set()
    lookup = jax.jit(lambda table, image, text: table[image, text])

    def score(image_rows, text_rows):
        shapes.add(image_rows.shape)
        assert image_rows.dtype == text_rows.dtype == jnp.int32
        return lookup(jnp.asarray(matrix), image_rows, text_rows)

    return score, shapes


def reference_places(itc, itm, positives, k, combine, weight):
    """Sort by a key of three parts: in the shortlist or not, second-stage score there, contrastive score elsewhere."""
    found = []
    for i, row in enumerate(itc):
        front = np.argsort(-row, kind="stable")[:k]
        second = itm[i] if combine == "replace" else row + np.float32(weight) * itm[i]
        score = row - 1e6
        score[front] = second[front]
        relevant = np.isin(np.arange(len(row)), positives[i])
        best = score[relevant].max()
        equal = score == best
        found.append(((score > best).sum(), equal.sum(), (equal & relevant).sum()))
    return retrieval.Places(*np.array(found).T)


@pytest.mark.parametrize(("combine", "weight"), [("replace", 1.0), ("add", 0.25)])
def test_every_k_equals_sorting_the_whole_matrix(scene, combine, weight):
    image, text, to_text, to_image, matrix = scene
    score, shapes = scorer(matrix)
    table = rerank.rerank(score, image, text, to_text, to_image, (0, 1, 4, 12), combine, weight, block=32)
    assert shapes == {(32,)}
    itc = image @ text.T
    for k, row in table.items():
        want = [
            reference_places(itc, matrix, to_text, k, combine, weight),
            reference_places(itc.T, matrix.T, to_image, k, combine, weight),
        ]
        want = retrieval.summary(*map(retrieval.recall_of_places, want))
        assert {name: row[name] for name in want} == want
        assert row["pairs"] == k * (IMAGES + TEXTS)
        assert ("alone" in row) == (combine == "add" and k > 0)
        if "alone" in row:
            sides = ((itc, matrix, to_text), (itc.T, matrix.T, to_image))
            alone = [reference_places(*side, k, "replace", 1.0) for side in sides]
            assert row["alone"] == retrieval.summary(*map(retrieval.recall_of_places, alone))
    seconds = [row["seconds"] for row in table.values()]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0.0


def test_pairs_that_all_score_alike_are_drawn_from_the_shortlist():
    """Two in three queries have an answer among the first three; there each order of the three is as likely."""
    image, text = np.eye(6, dtype=np.float32)[:3], np.eye(6, dtype=np.float32)
    text[3:] = text[:3] * 0.5 + text[3:] * 0.1  # what a query finds after its own
    to_text = np.array([[0], [4], [4]])
    side = rerank.score_shortlist(scorer(np.zeros((3, 6)))[0], rerank.shortlist(image, text, to_text, 3), True)
    missed = 4 not in side.rows[2]
    found = retrieval.recall_of_places(rerank.reranked(side, 3, "replace"), (1, 2, 3))
    assert missed and [found[f"R@{k}"] for k in (1, 2, 3)] == pytest.approx([200 / 9, 400 / 9, 200 / 3])


def test_k_zero_is_the_contrastive_result(scene):
    image, text, to_text, to_image, matrix = scene
    table = rerank.rerank(scorer(matrix)[0], image, text, to_text, to_image, (0, 3))
    want = retrieval.summary(retrieval.recall(image, text, to_text), retrieval.recall(text, image, to_image))
    assert {name: table[0][name] for name in want} == want


def test_choose_weight_finds_the_better_score(scene):
    image, text, to_text, _, _ = scene
    truth = np.zeros((IMAGES, TEXTS), np.float32)
    truth[np.arange(TEXTS) % IMAGES, np.arange(TEXTS)] = 1.0
    side = rerank.shortlist(image, text, to_text, TEXTS)
    good = rerank.score_shortlist(scorer(truth)[0], side, True)
    bad = rerank.score_shortlist(scorer(-truth)[0], side, True)
    best, table = rerank.choose_weight([good])
    assert best >= 2.0
    assert table[best] == max(table.values()) > table[0.0]
    assert rerank.choose_weight([bad])[0] == 0.0


def test_equal_weights_are_settled_by_the_smaller(scene):
    image, text, to_text, _, _ = scene
    side = rerank.score_shortlist(scorer(np.zeros((IMAGES, TEXTS)))[0], rerank.shortlist(image, text, to_text, 4), True)
    assert rerank.choose_weight([side], weights=(0.5, 0.1, 1.0))[0] == 0.1


def test_bad_input_is_refused(scene):
    image, text, to_text, to_image, matrix = scene
    with pytest.raises(UserError, match="A shortlist of 13 does not fit a gallery of 12; write at most 12"):
        rerank.rerank(scorer(matrix)[0], image, text, to_text, to_image, (13,))
    with pytest.raises(UserError, match='write "add" or "replace"'):
        rerank.rerank(scorer(matrix)[0], image, text, to_text, to_image, (4,), combine="mean")
    with pytest.raises(UserError, match="matching logits are not finite"):
        rerank.rerank(scorer(matrix * np.nan)[0], image, text, to_text, to_image, (4,))
    side = rerank.shortlist(image, text, to_text, 4)
    with pytest.raises(UserError, match="no matching scores"):
        rerank.reranked(side, 4)
    with pytest.raises(UserError, match="k = 5 does not fit a shortlist of 4"):
        rerank.reranked(side, 5)


def test_pairs_of_like_length_are_scored_together(rng):
    lengths = rng.integers(1, 9, TEXTS).astype(np.int32)
    matrix = rng.normal(size=(IMAGES, TEXTS)).astype(np.float32)
    image, text = (rng.integers(0, n, 50).astype(np.int32) for n in (IMAGES, TEXTS))

    class Lengths:
        """A scorer that notes the longest text of each block."""

        def __init__(self):
            self.lengths, self.seen = lengths, []

        def length_of(self, text_rows):
            return int(lengths[text_rows].max())

        def __call__(self, image_rows, text_rows):
            self.seen.append(self.length_of(text_rows))
            return matrix[image_rows, text_rows]

    score = Lengths()
    np.testing.assert_array_equal(rerank.score_pairs(score, image, text, block=16), matrix[image, text])
    assert score.seen == sorted(score.seen)
    score.seen = []
    rerank.compile_lengths(score, 0, text, 16)
    assert sorted(score.seen) == sorted(set(lengths[text]))


def test_long_scoring_shows_how_far_it_is(scene, capsys, monkeypatch):
    image, text, to_text, _, matrix = scene
    side = rerank.shortlist(image, text, to_text, 6)
    rerank.score_shortlist(scorer(matrix)[0], side, True, [2], block=8)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("xmodal_jax.data.progress.LOG_SECONDS", 0.0)
    rerank.score_shortlist(scorer(matrix)[0], side, True, [2], block=8)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("pair score, first field asks, 1 to 2 [") and f" {8}/{2 * IMAGES} pairs" in shown[0]
    assert (
        shown[-1].startswith("pair score, first field asks, 3 to 6 [")
        and f" {4 * IMAGES}/{4 * IMAGES} pairs" in shown[-1]
    )
