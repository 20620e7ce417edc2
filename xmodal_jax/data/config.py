"""The section `config.data`: what is read and how."""

import dataclasses

from xmodal_jax.data.image import AugmentConfig
from xmodal_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """A field of the batch: who reads it, and what the loader puts there.

    `encoder`: the row of `config.encoders` that takes it ("": the one of the field's own name). `medium`: under which name
    records keep it ("": that of `of`, or the field's own name). `reader`: what makes an input of it (data/readers.py; "": the
    medium's own). `of`: another field, of whose record this one shows another view. `required`: False keeps records without it, whose rows are then masked; a view of a field that is not required is not either.
    """

    encoder: str = ""
    medium: str = ""
    reader: str = ""
    of: str = ""
    required: bool = True


def complete(fields: dict[str, FieldConfig]) -> dict[str, FieldConfig]:
    """The fields with `encoder` and `medium` filled in. Raises UserError for an `of` that is no other field."""
    filled = {}
    for name, own in fields.items():
        if own.of and (own.of not in fields or fields[own.of].of or own.of == name):
            raise UserError(
                f"config.data.fields.{name}.of is '{own.of}'; write another field that is no view itself, or ''"
            )
        source = fields[own.of] if own.of else own
        medium = own.medium or source.medium or own.of or name
        encoder = own.encoder or source.encoder or own.of or name
        reader, required = own.reader or source.reader or medium, own.required and source.required
        filled[name] = dataclasses.replace(own, encoder=encoder, medium=medium, reader=reader, required=required)
    return filled


PAIR = ("image", "text")  # the fields of a config that names none


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how. Raises `UserError` for impossible values.

    `path`: the data set's folder. `fields`: those of the batch. `languages`: those of the captions. `views`: those of the pictures, () for all. `features`: names of cached tokens
    to read in place of pictures. `embeddings`: name of a frozen teacher's embeddings that batches carry (`xmodal data embed`).
    `threads`, `prefetch`: threads that make batches, and how many batches ahead. `keep_gb`: rows of feature caches stay
    in memory after their first reading, up to so many GB in each process.
    `stall_seconds`: how long to wait for a batch before a warning names what each thread is at.
    `labels`: batches carry the labels as float32 [B,C]; False leaves them out (thousands of species that no loss reads).
    `positives`: training pairs with the same `id` are never negatives of each other; "record" numbers the records, "labels" the
    sets of labels, so that two pictures of one species match each other's captions.
    """

    path: str = ""
    split: str = "train"
    eval_split: str = "test"
    fields: dict[str, FieldConfig] = dataclasses.field(default_factory=lambda: dict.fromkeys(PAIR, FieldConfig()))
    languages: tuple[str, ...] = ("en",)
    views: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    embeddings: str = ""
    augment: AugmentConfig = AugmentConfig()
    threads: int = 4
    prefetch: int = 4
    keep_gb: float = 1.0
    stall_seconds: float = 60.0
    labels: bool = True
    positives: str = "record"

    def __post_init__(self):
        object.__setattr__(self, "fields", complete(self.fields))
        for name in ("threads", "prefetch"):
            value = getattr(self, name)
            if not value >= 1:
                raise UserError(f"config.data.{name} is {value}; write 1 or more")
        if not self.keep_gb >= 0:
            raise UserError(f"config.data.keep_gb is {self.keep_gb}; write 0 for none or a number of GB")
        if not self.stall_seconds > 0:
            raise UserError(f"config.data.stall_seconds is {self.stall_seconds}; write seconds above 0, such as 60")
        if len(self.languages) == 0:
            raise UserError("config.data.languages is empty; write one or more, such as ('en',)")
        if self.positives not in ("record", "labels"):
            raise UserError(f"config.data.positives is '{self.positives}'; write 'record' or 'labels'")

    def __hash__(self) -> int:
        """Equal sections have equal hashes; the fields are left out."""
        return hash((self.path, self.split, self.languages, self.features))

    def other_view(self, field: str) -> str:
        """The first field that shows another view of the records of `field`; "" for none."""
        return next((name for name, own in self.fields.items() if own.of == field), "")

    def fields_of(self, encoder: str) -> tuple[str, ...]:
        """The fields that an encoder reads."""
        return tuple(name for name, own in self.fields.items() if own.encoder == encoder)
