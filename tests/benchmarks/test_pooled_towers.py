"""The pooled features that the second floor reads: grid means of the caches, text of the frozen tower."""

import numpy as np
import pooled_towers

from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.features import write_features
from xmodal_jax.data.split import Split


def test_pictures_are_grid_means_without_the_summary(shapes_data, tmp_path):
    import shutil

    folder = tmp_path / "shapes"
    shutil.copytree(shapes_data, folder)

    def tokens(images):
        grid = images.astype(np.float32).reshape(len(images), 4, -1, 6).mean(2) / 255  # four tokens of six numbers
        return np.concatenate([grid, np.full((len(images), 1, 6), 100.0, np.float32)], axis=1)

    write_features(folder, "toy", tokens, tower="lite0", size=24)
    split = Split(folder, "test", DataConfig(path=str(folder), features=("toy", "toy")))
    view = Card.load(folder).views[0]
    pooled = pooled_towers.pooled_pictures(split, view, False)
    assert pooled.shape == (len(split), 12) and pooled.max() < 2  # the summary's 100 is not in the mean
    np.testing.assert_allclose(pooled[:, :6], pooled[:, 6:])
    np.testing.assert_allclose(pooled[3, :6], split.tokens(3, view, False)[:4].astype(np.float32).mean(0), rtol=1e-3)
    split.close()


def test_captions_of_one_meaning_lie_closest():
    rows = pooled_towers.pooled_captions(["a red apple", "an apple that is red", "the train is late"], 12)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert rows.shape == (3, 384) and cosine[0, 1] > 0.8 > cosine[0, 2]
