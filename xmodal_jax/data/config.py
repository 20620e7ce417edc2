"""The section `config.data`: the data to read, and how batches are made of it."""

import dataclasses

from xmodal_jax.data.image import AugmentConfig
from xmodal_jax.data.records import PICTURES, WORDS
from xmodal_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """A field of the batch: the encoder that takes it, and what the loader puts there."""

    encoder: str = ""
    """Row of `config.encoders` that takes the field; "": the one with the field's own name."""
    medium: str = ""
    """Name under which records keep the medium; "": the medium of the field `of`, or the field's own name."""
    reader: str = ""
    """Reader that makes an input of the medium (data/readers.py, or PACKAGE.MODULE:CLASS); "": the medium's own."""
    of: str = ""
    """Another field, of whose record this one shows another view, such as "image"; "": none."""
    required: bool = True
    """Whether records without the field are left out; False keeps them, with their rows masked.

    A view of a field that is not required is not required either.
    """
    languages: tuple[str, ...] = ()
    """Languages of a field of captions; (): those of the field `of`, or `data.languages`, or those of evaluation."""
    draw: str = "other"
    """What a field of captions shows of the record of the field `of`: "other", another caption; "translation", the one
    at the same place among the captions of another language, without which the field is missing."""
    per: str = "row"
    """What one language is drawn for: "row", each row by itself; "batch", all rows, where a row without it is missing.
    """
    features: tuple[str, ...] = ()
    """Names of the feature caches that an encoder of cached tokens reads for the field (`xmodal data features`); ():
    those of the field `of`, or for pictures `data.features`."""
    temperature: float = 1.0
    """Power of a language's number of captions in its chance to be drawn: 1 as they are, 0 each language alike."""


def complete(fields: dict[str, FieldConfig]) -> dict[str, FieldConfig]:
    """Return the fields with all names filled in. Raises `UserError` if `of` names no other field, or a view itself."""
    filled = {}
    for name, own in fields.items():
        if own.of and (own.of not in fields or fields[own.of].of or own.of == name):
            raise UserError(
                f"config.data.fields.{name}.of is '{own.of}'; write another field that is no view itself, or ''"
            )
        _check_draw(name, own)
        source = fields[own.of] if own.of else own
        medium = own.medium or source.medium or own.of or name
        _refuse_unread(name, own, medium)
        languages = own.languages or (source.languages if own.of and own.draw == "other" else ())
        encoder = own.encoder or source.encoder or own.of or name
        reader, required = own.reader or source.reader or medium, own.required and source.required
        features = own.features or source.features
        names = {"encoder": encoder, "medium": medium, "reader": reader, "languages": languages, "features": features}
        filled[name] = dataclasses.replace(own, **names, required=required)
    return filled


def _check_draw(name: str, own: FieldConfig) -> None:
    """Raise `UserError` for impossible ways to draw the captions of the field `name`."""
    where = f"config.data.fields.{name}"
    for field, choices in (("draw", ("other", "translation")), ("per", ("row", "batch"))):
        value = getattr(own, field)
        if value not in choices:
            raise UserError(f"{where}.{field} is '{value}'; write {' or '.join(map(repr, choices))}")
    if own.per == "batch" and own.of:
        raise UserError(f"{where}.per is 'batch', and it shows the record of '{own.of}'; write 'row'")
    if isinstance(own.languages, str):
        raise UserError(f"{where}.languages is '{own.languages}'; write a tuple, such as ('{own.languages}',)")
    if own.draw == "translation" and not own.of:
        raise UserError(f"{where}.draw is 'translation', and {where}.of is empty; write the field that it translates")
    if not 0 <= own.temperature <= 1:
        raise UserError(f"{where}.temperature is {own.temperature:g}; write a number from 0 to 1")


def _refuse_unread(name: str, own: FieldConfig, medium: str) -> None:
    """Raise `UserError` for what only captions have, set for the field `name` of another medium."""
    usual = FieldConfig()
    for field in ("languages", "draw", "per", "temperature"):
        if medium != WORDS and getattr(own, field) != getattr(usual, field):
            raise UserError(
                f"config.data.fields.{name}.{field} is {getattr(own, field)!r}, which is for captions, and it shows "
                f"'{medium}'; leave it {getattr(usual, field)!r}"
            )
    if medium == WORDS and own.features:
        raise UserError(f"config.data.fields.{name}.features is {own.features}, and captions have none; leave it ()")


PAIR = ("image", "text")  # the default fields


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data to read, and how batches are made of it. Raises `UserError` for impossible values."""

    path: str = ""
    """Folder of the prepared data set."""
    split: str = "train"
    """Split to train on."""
    eval_split: str = "test"
    """Split to evaluate on."""
    fields: dict[str, FieldConfig] = dataclasses.field(default_factory=lambda: dict.fromkeys(PAIR, FieldConfig()))
    """Fields of the batch, by name."""
    languages: tuple[str, ...] = ("en",)
    """Languages of the captions."""
    views: tuple[str, ...] = ()
    """Views of the pictures; (): all views of the data set."""
    features: tuple[str, ...] = ()
    """Names of feature caches whose tokens are read in place of pictures (`xmodal data features`); (): none."""
    embeddings: str = ""
    """Name of a frozen teacher's embeddings that batches carry (`xmodal data embed`); "": none."""
    concepts: str = ""
    """Name of the concepts mined from captions that batches carry, float32 [B,C] (`xmodal data concepts`); "": none."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of training pictures."""
    threads: int = 4
    """Threads that make batches."""
    prefetch: int = 4
    """Batches that are made ahead of the step."""
    keep_gb: float = 1.0
    """GB of memory in each process for rows of feature caches, which stay there once they are read; 0: none."""
    stall_seconds: float = 60.0
    """Seconds to wait for a batch before a warning tells what each thread is doing."""
    labels: bool = True
    """Whether batches carry the labels, float32 [B,C].

    False saves memory if there are thousands of labels that no loss reads.
    """
    positives: str = "record"
    """Which pairs have the same `id`, and so are never negatives of each other in training.

    "record": those of the same record. "labels": those with the same set of labels, so that two pictures of one species
    match each other's captions.
    """

    unit: str = "record"
    """One example of an epoch: "record", a record with one of its captions, drawn; "pair", a record with one caption,
    so that an epoch visits each caption once, and batches carry the number of the pair.
    """

    def __post_init__(self) -> None:
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
        if self.unit not in ("record", "pair"):
            raise UserError(f"config.data.unit is '{self.unit}'; write 'record' or 'pair'")
        if self.unit == "pair" and not any(own.medium == WORDS and not own.of for own in self.fields.values()):
            raise UserError("config.data.unit is 'pair', and config.data.fields has none of captions; write 'record'")
        for name, own in self.fields.items() if self.unit == "pair" else ():
            if own.per == "batch" or own.temperature != 1:
                raise UserError(
                    f"config.data.unit is 'pair', which visits each caption once, and config.data.fields.{name} draws "
                    "languages (per 'batch', or a temperature); write unit 'record', or leave them"
                )

    def __hash__(self) -> int:
        """Return a hash that is equal for equal sections; it leaves out the fields, which cannot be hashed."""
        return hash((self.path, self.split, self.languages, self.features))

    @property
    def unit_languages(self) -> tuple[str, ...]:
        """The languages whose captions are the units of `unit` "pair": those of the first field of captions."""
        own = [field for field in self.fields.values() if field.medium == WORDS and not field.of]
        return (own[0].languages if own else ()) or self.languages

    def caches_of(self, own: FieldConfig) -> tuple[str, ...]:
        """Return the names of the feature caches that a field reads, if its encoder takes cached tokens."""
        return own.features or (self.features if own.medium == PICTURES else ())

    @property
    def caches(self) -> tuple[str, ...]:
        """The names of all feature caches that are opened, each once."""
        return tuple(dict.fromkeys((*self.features, *(name for own in self.fields.values() for name in own.features))))

    def other_view(self, field: str) -> str:
        """Return the first field that shows another view of the records of `field`; "" if there is none."""
        return next((name for name, own in self.fields.items() if own.of == field), "")

    def languages_in(self, field: str) -> tuple[str, ...]:
        """Return the languages of a field of captions; () for another medium."""
        own = self.fields[field]
        return (own.languages or self.languages) if own.medium == WORDS else ()

    def spoken(self, *encoders: str) -> tuple[str, ...]:
        """Return the languages of all fields of captions, or of those that some encoders take."""
        own = [name for name, field in self.fields.items() if not encoders or field.encoder in encoders]
        return tuple(dict.fromkeys(language for name in own for language in self.languages_in(name)))

    def fields_of(self, encoder: str) -> tuple[str, ...]:
        """Return the names of the fields that an encoder takes."""
        return tuple(name for name, own in self.fields.items() if own.encoder == encoder)
