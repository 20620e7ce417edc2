"""The section `config.data`: what is read and how."""

import dataclasses

from xmodal_jax.data.image import AugmentConfig
from xmodal_jax.errors import refuse_unless


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how. Raises `UserError` for impossible values.

    `path`: the data set's folder. `image_size`: px of a side. `length`: tokens of a text, [CLS] and [SEP] included; a
    longer one loses its end.
    `languages`: those of the captions. `views`: those of the pictures, () for all. `features`: names of cached tokens
    to read in place of pictures. `second_view`: batches also have another picture of each record, `image2`.
    `embeddings`: name of a frozen teacher's embeddings that batches carry (`xmodal data embed`).
    `threads`, `prefetch`: threads that make batches, and how many batches ahead. `keep_gb`: rows of feature caches stay
    in memory after their first reading, up to so many GB in each process.
    `stall_seconds`: how long to wait for a batch before a warning names what each thread is at.
    `labels`: batches carry the labels as float32 [B,C]; False leaves them out (thousands of species that no loss reads).
    `match`: training pairs with the same `id` are never negatives of each other; "record" numbers the records, "labels" the
    sets of labels, so that two pictures of one species match each other's captions.
    """

    path: str = ""
    split: str = "train"
    eval_split: str = "test"
    image_size: int = 128
    length: int = 32
    languages: tuple[str, ...] = ("en",)
    views: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    second_view: bool = False
    embeddings: str = ""
    augment: AugmentConfig = AugmentConfig()
    threads: int = 4
    prefetch: int = 4
    keep_gb: float = 1.0
    stall_seconds: float = 60.0
    labels: bool = True
    match: str = "record"

    def __post_init__(self):
        for name, least in (("image_size", 8), ("length", 3), ("threads", 1), ("prefetch", 1)):
            value = getattr(self, name)
            refuse_unless(value >= least, f"config.data.{name} is {value}; write {least} or more")
        refuse_unless(self.keep_gb >= 0, f"config.data.keep_gb is {self.keep_gb}; write 0 for none or a number of GB")
        refuse_unless(
            self.stall_seconds > 0,
            f"config.data.stall_seconds is {self.stall_seconds}; write seconds above 0, such as 60",
        )
        refuse_unless(len(self.languages) > 0, "config.data.languages is empty; write one or more, such as ('en',)")
        refuse_unless(
            self.match in ("record", "labels"), f"config.data.match is '{self.match}'; write 'record' or 'labels'"
        )
