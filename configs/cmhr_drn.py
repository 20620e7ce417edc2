"""CMHR-DRN: a deep residual network and TF-IDF, hashed under labels (CSSE 2021, hash retrieval on residual networks).

Only the abstract is public: features of a deep residual network and of TF-IDF with a fully connected network, then hash
functions learnt from labels that leave distances "unchanged as far as possible"; Adam, then SGD. Choices of ours:

- text: the TF-IDF vector, 4,096 units and ReLU (`encoders.text.kind`, `encoders.text.width`), DCMH's text network with
  other weights.
- `objectives.hash.by_label`: DCMH's likelihood (Jiang and Li 2017) with S = 1 where two records share a label, beside
  quantisation and balance. Codes alone are trained; the embedding only carries them.
- `objectives.hash_supcon`: off; the supervised contrastive loss in place of the likelihood is
  `--config.objectives.hash_supcon.weight=1 --config.objectives.hash.similarity=0`.
- `objectives.hash_distance`: "unchanged" read as the cosine distances inside each side: of the TF-IDF vectors, and of
  the network's features, which stay as they are where they are cached; in `pixels` the network is trained and they
  follow it.
- Adam at 1e-4, a tenth of it for the network; SGD with momentum 0.9 over the last quarter (`optimizer.sgd_after`).
- the depth is not stated: ResNet-50 (`encoders.image.depth`), from the weights you name in `encoders.image.init`.

Variants with labels: `emoji_views` (95 subgroups) and `openclipart` (folders), on cached tokens of the frozen Lite0,
which stands where no ResNet weights are at hand, so Adam is at 1e-3; `pixels` is the paper's reading on MIRFlickr-25K,
in DCMH's protocol: 2,000 queries ask the records trained on and the rest (`xmodal data prepare mirflickr --train
10000`, or `mat` for DCMH's own file). Make the data set of `openclipart` with `xmodal data prepare openclipart --label
keyword` and the caches with `xmodal data features`.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of

OBJECTIVES = {"hash": {"by_label": True}, "hash_distance": {"weight": 0.5}, "hash_supcon": {"weight": 0.0}}


def get_config(variant: str = "emoji_views"):
    """Return the config of a variant.

    `emoji_views` or `openclipart` on cached tokens; `pixels`: ResNet-50 on MIRFlickr-25K; `tiny`: for tests.
    """
    variant_of(variant, ("emoji_views", "openclipart", "pixels", "tiny"), "configs/cmhr_drn.py")
    config = defaults()
    config.name, config.objectives = f"cmhr_drn-{variant}", OBJECTIVES
    if variant == "tiny":
        presets.tiny(config)
        config.encoders = {
            "image": {"kind": "resnet", "size": 32, "depth": 14, "width": 64},
            "text": {"kind": "tfidf", "length": 12, "width": 64},
        }
        config.joint.hash_hidden, config.optimizer.sgd_after, config.eval.rerank = 32, 1, ()
        return config
    if variant == "pixels":
        return pixels(config)
    presets.emoji_views(config)
    if variant == "openclipart":
        config.data.path, config.data.views, config.eval.views = "data/openclipart", (), ()
        config.data.languages = ("en",)
    config.encoders.text = {"kind": "tfidf", "length": 20, "width": 4096, "head_dropout": 0.5}
    config.encoders.image.head_dropout = 0.5
    config.joint.start, config.joint.embed, config.eval.rerank = "random", 512, ()
    config.optimizer.freeze, config.optimizer.groups = "", ()
    config.steps, config.optimizer.sgd_after = 400, 300
    return config


def pixels(config):
    """Set up MIRFlickr-25K as in DCMH: 224 px, tags as the text, batches of 128, 100 epochs of 10,000 pairs."""
    config.data.path, config.data.eval_split = "data/mirflickr", "test"
    config.data.augment.flip, config.batch_size, config.steps = 0.5, 128, 7_800
    config.eval.gallery = ("train", "rest")  # without the second where all that are no queries are trained on
    config.encoders = {
        "image": {"kind": "resnet", "size": 224, "depth": 50, "width": 2048},
        "text": {"kind": "tfidf", "length": 64, "width": 4096},
    }
    config.joint.embed, config.eval.rerank = 1024, ()
    config.optimizer.lr, config.optimizer.groups = 1e-4, (("^image/tower/", 0.1),)
    config.optimizer.sgd_after, config.optimizer.sgd_lr = 5_850, 1e-3
    return config
