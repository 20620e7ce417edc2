"""Feature caches: the tokens of a frozen tower for every picture of a data set, or for another medium, beside it.

A cache is `DIR/features/<name>/<split>-*.arrayrecord`; row i belongs to record i. A row is {"shape": [N, D],
"tokens": {view: {"plain": bytes, "flip": bytes}}}, the bytes being float16 [N,D]; of a record without the medium it is
{"shape": [], "tokens": {}}. A view of a medium such as video is several inputs of the tower (tower_input.py), and N
counts the tokens of as many as a view may have. Of a view with fewer the last tokens are not stored: they are zeros,
which no stored token is.

A source may bring tokens of its own (`Item.features`), such as regions that a detector found: `GivenFeatures` writes
them in the same form. Their "tower" is the name of the cache and their "size" 0, as nothing here makes them of a
picture.
"""

import contextlib
import dataclasses
import itertools
import json
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from xmodal_jax.atomic import write_file
from xmodal_jax.data.card import OF_PICTURES, Card
from xmodal_jax.data.image import CorruptImage
from xmodal_jax.data.making import changing_card, only_process
from xmodal_jax.data.progress import Progress
from xmodal_jax.data.records import (
    PICTURES,
    CorruptRecord,
    Records,
    RecordWriter,
    check_record,
    is_split_name,
    open_records,
    pack,
    shard_files,
    split_names,
)
from xmodal_jax.data.sidecar import Sidecar
from xmodal_jax.data.source import Item
from xmodal_jax.data.tower_input import TowerInput, picture_input
from xmodal_jax.errors import UserError

Encoder = Callable[[np.ndarray], np.ndarray]
Part = tuple[int, str, str, int, Any]  # row, view, side, number, and the input or tokens of one part of a view

PLAN_FILE = "plan.json"
LARGEST = 4096  # px, the largest side that is asked of a tower


def write_features(
    data_dir: os.PathLike | str,
    name: str,
    encode_fn: Encoder,
    size: int,
    flip: bool = True,
    batch: int = 64,
    tower: str = "",
    inputs: TowerInput | None = None,
) -> Card:
    """Encode every picture of every split, add the tokens to the data set under `name`, and return the new card.

    Finished splits are kept if it is interrupted and not encoded again. The card changes last, in one step.

    Args:
      encode_fn: uint8 [batch,size,size,3] -> float [batch,N,D], stored as float16.
      size: pixels of a side, which the card keeps; 0 for a tower whose inputs have none.
      flip: encode the mirrored pictures too.
      tower: names the tower that made the tokens.
      inputs: what the tower reads, of another medium than pictures; the function then takes [batch,...] of its parts.

    Raises:
      UserError: as `refuse_misfit`; the name is taken by another tower, size or set of views; another process writes
        the same cache; a record cannot be read; a token does not fit float16.
    """
    data_dir = pathlib.Path(data_dir)
    inputs = inputs or picture_input(size)
    refuse_misfit(data_dir, name, size, batch, inputs.medium, inputs.parts)
    card = Card.load(data_dir)
    sides = ["plain", "flip"] if flip and inputs.mirrored else ["plain"]
    plan = {"tower": tower or name, "size": size, "views": sides}
    plan |= {"medium": inputs.medium, "parts": inputs.parts, "pool": inputs.pool}
    if name in card.features:
        refuse_other(card.features[name], plan, f"{data_dir} already has features {name!r}")
        return card
    with being_added(data_dir / "features", name, f"features '{name}' to '{data_dir}'"):
        folder, partial = data_dir / "features" / name, data_dir / "features" / f".{name}.part"
        start_partial(folder, partial, plan)
        shape = None
        for split, entry in card.splits.items():
            if split not in split_names(partial):
                count = Sidecar(data_dir, card, split).pictures if inputs.medium == PICTURES else 0
                with open_records(data_dir, split) as records, RecordWriter(partial, split) as writer:
                    parts = _encoded(_parts(records, inputs, sides), encode_fn, batch)
                    shown = Progress(parts, f"features {name} {split}", "inputs", count * len(sides), size=len)
                    _write_split(len(records), writer, shown, inputs)
            shape = _checked_shape(partial, split, entry["records"], shape)
        assert shape is not None  # `refuse_misfit`: there are pictures
        files = {split: [path.name for path in shard_files(partial, split)] for split in card.splits}
        os.replace(partial, folder)
        entry = plan | {"tokens": shape[0], "width": shape[1], "dtype": "float16", "files": files}
        return add_to_card(data_dir, "features", name, entry)


def refuse_misfit(
    data_dir: os.PathLike | str, name: str, size: int, batch: int, medium: str = PICTURES, parts: int = 1
) -> None:
    """Raise `UserError` for faults that show before a tower is loaded.

    They are those of the data set, the name, the size (px; 0: none), the batch, and the parts of a view.
    """
    card = Card.load(data_dir)
    if medium == PICTURES:
        refuse_no_pictures(card, data_dir)
    elif medium not in card.media:
        there = ", ".join([*([PICTURES] if card.views else []), *card.media])
        raise UserError(f"{data_dir} has nothing of the medium '{medium}'; it has {there or 'captions alone'}")
    refuse_bad_name(name, "features")
    if not (1 if medium == PICTURES else 0) <= size <= LARGEST:
        raise UserError(f"--size is {size}; write the side of the pictures in pixels, 1 to {LARGEST}")
    if batch < 1:
        raise UserError(f"--batch is {batch}; write 1 or more")
    if parts < 1:
        raise UserError(f"--frames is {parts}; write 1 or more")


def refuse_no_pictures(card: Card, data_dir: os.PathLike | str) -> None:
    """Raise `UserError` for a data set without pictures, or with features of them alone."""
    if set(card.views) <= set(card.without_pixels):
        if not card.views:
            other = f"; of its other media write --medium {' or '.join(card.media)}" if card.media else ""
            raise UserError(f"{data_dir} has no pictures to make features of{other}")
        there = ", ".join(card.features)
        raise UserError(f"{data_dir} has no pictures, only features of them ({there}); others are made of pictures.")


def refuse_bad_name(name: str, what: str) -> None:
    """Raise `UserError` for a name that is not a plain file name."""
    if not is_split_name(name):
        raise UserError(f"{what} name {name!r}: use a plain word of letters, digits, '.', '_', '-'.")


@contextlib.contextmanager
def being_added(folder: pathlib.Path, name: str, what: str) -> Iterator[None]:
    """Make the folder, and keep other processes from adding the same.

    Raises `UserError` at once if another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder / f".{name}.lock", f"adding {what}"):
        yield


def add_to_card(data_dir: pathlib.Path, field: str, name: str, entry: dict[str, Any]) -> Card:
    """Write an entry into the card as it is now, since others may have been added while this one was made.

    Raises `UserError` if the data set was made anew meanwhile: what was added went with the old one.
    """
    with changing_card(data_dir):
        card = Card.load(data_dir)
        if not (data_dir / field / name).is_dir():
            raise UserError(f"{data_dir} was prepared again while {name!r} was made for it; start this command again.")
        card = dataclasses.replace(card, **{field: getattr(card, field) | {name: entry}})
        card.save(data_dir)
    return card


def start_partial(folder: pathlib.Path, partial: pathlib.Path, plan: dict[str, Any]) -> None:
    """Make the folder of unfinished work, or continue the one that an interrupted run of the same plan left."""
    if folder.exists() and not partial.exists():  # a run was killed between the last split and the card
        os.replace(folder, partial)
    path = partial / PLAN_FILE
    if not path.is_file():
        partial.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(plan))
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({error}); remove {partial} and start again") from error
    refuse_other(OF_PICTURES | found, plan, f"{partial} holds an interrupted run")


def refuse_other(found: dict[str, Any], plan: dict[str, Any], where: str) -> None:
    """Raise `UserError` if `found`, under the same name, was made in another way than `plan`, and say how."""
    other = [f"{key} {found.get(key)!r}" for key in plan if found.get(key) != plan[key]]
    if other:
        raise UserError(f"{where} made with {', '.join(other)}: choose another name; nothing was overwritten.")


def _write_split(rows: int, writer: RecordWriter, encoded: Iterable[list[Part]], inputs: TowerInput) -> None:
    """Write a row for each record of a split from the tokens of the parts of its views."""
    empty = pack({"tokens": {}, "shape": []})
    for number, own in itertools.groupby(itertools.chain.from_iterable(encoded), key=operator.itemgetter(0)):
        for _ in range(writer.records, number):
            writer.write(empty)
        row: dict[str, dict[str, list[bytes]]] = {}
        for _, view, side, _, tokens in own:
            small = _float16(tokens, f"features {writer.folder.name} {writer.split}")
            small = small if inputs.medium == PICTURES else kept_tokens(small, inputs)
            row.setdefault(view, {}).setdefault(side, []).append(small.tobytes())
            shape = [inputs.parts * tokens.shape[0], tokens.shape[1]]
        joined = {view: {side: b"".join(data) for side, data in sides.items()} for view, sides in row.items()}
        writer.write(pack({"tokens": joined, "shape": shape}))
    for _ in range(writer.records, rows):
        writer.write(empty)


def kept_tokens(tokens: np.ndarray, inputs: TowerInput) -> np.ndarray:
    """Return the tokens float16 [n,D] of one part that a cache keeps, of which none is all zero."""
    return tokens[tokens.any(1)] if inputs.drops_zeros else lifted(tokens)


def lifted(tokens: np.ndarray) -> np.ndarray:
    """Return tokens float16 [N,D] of which none is all zero, which would tell that it is not there."""
    found = tokens.copy()
    found[~tokens.any(1), 0] = np.finfo(np.float16).tiny
    return found


def _parts(records: Records, inputs: TowerInput, sides: list[str]) -> Iterator[Part]:
    """Yield (row, view, side, number, input of the tower) of all parts of all views of the records, in order.

    The input is None where a record has the views of the one before it, as questions on one picture have.
    """
    before: dict[str, bytes] = {}
    read: dict[str, list] = {}
    for number in range(len(records)):
        try:
            own = check_record(records[number])["media"].get(inputs.medium, {})
            views = {view: data for view, data in own.items() if data}
            same = views == before
            read = {view: [None] * len(read[view]) if same else [*inputs.read(data)] for view, data in views.items()}
        except (CorruptRecord, CorruptImage) as error:
            raise UserError(f"row {number} cannot be read ({error}); copy or prepare the data set again.") from error
        before = views
        for view, found in read.items():
            for side in sides:
                for place, part in enumerate(found):
                    yield number, view, side, place, part if side == "plain" or part is None else part[:, ::-1]


def _encoded(parts: Iterator[Part], encode_fn: Encoder, batch: int) -> Iterator[list[Part]]:
    """Replace the inputs of `parts` by their tokens [N,D], `batch` at a time, None by those before it."""
    last: dict[tuple[str, str, int], np.ndarray] = {}  # of the last record that had views of its own
    owner = -1
    for chunk in _chunks(parts, batch):
        tokens, coded = iter(_tokens(chunk, encode_fn, batch)), []
        for number, view, side, place, part in chunk:
            if part is not None:
                last, owner = last if number == owner else {}, number
                last[view, side, place] = next(tokens).copy()
            coded.append((number, view, side, place, last[view, side, place]))
        yield coded


def _chunks(parts: Iterator[Part], batch: int) -> Iterator[list[Part]]:
    """Cut `parts` into lists with `batch` inputs each, the last with fewer."""
    chunk, inputs = [], 0
    for one in parts:
        if one[-1] is not None and inputs == batch:
            yield chunk
            chunk, inputs = [], 0
        chunk.append(one)
        inputs += one[-1] is not None
    if chunk:
        yield chunk


def _tokens(chunk: list[Part], encode_fn: Encoder, batch: int) -> np.ndarray:
    """Return the tokens [batch,N,D] of the inputs in a chunk, filled up with zeros such as black pictures."""
    inputs = np.stack([part for *_, part in chunk if part is not None])
    inputs = np.pad(inputs, [(0, batch - len(inputs)), *[(0, 0)] * (inputs.ndim - 1)])
    tokens = np.asarray(encode_fn(inputs))
    if tokens.ndim != 3 or len(tokens) != batch:
        raise UserError(f"the tower returned {tokens.shape} for {batch} images, not [B,N,D].")
    return tokens


def _float16(tokens: np.ndarray, title: str) -> np.ndarray:
    """Convert tokens to float16. Raises `UserError` for those that do not fit."""
    with np.errstate(over="ignore"):
        small = tokens.astype(np.float16)
    if not np.isfinite(small).all():
        raise UserError(f"{title}: a token is not finite in float16; scale the tower's output.")
    return small


def _checked_shape(folder: pathlib.Path, split: str, count: int, shape: list[int] | None) -> list[int] | None:
    """Return [N, D] of a finished split, or `shape` if it has no pictures.

    Raises `UserError` if it does not have `count` rows, or if another split has another shape.
    """
    with open_records(folder, split) as rows:
        if len(rows) != count:
            raise UserError(f"{folder}: split {split!r} has {len(rows)} rows for {count}; remove the folder.")
        found = next((row["shape"] for row in rows if row["tokens"]), shape)
    if shape not in (None, found):
        raise UserError(f"{folder}: splits differ in shape, {shape} and {found}; remove the folder.")
    return found


class GivenFeatures:
    """Writer of the feature caches that the items of a source bring along, while they stream by."""

    def __init__(self, folder: pathlib.Path, shard_bytes: int):
        self.views: dict[str, None] = {}  # of which some record has features alone
        self._folder, self._shard_bytes = folder / "features", shard_bytes
        self._shapes: dict[str, list[int]] = {}
        self._writers: dict[tuple[str, str], RecordWriter] = {}

    def add(self, item: Item, row: int) -> None:
        """Write the features of an item, which is record `row` of its split.

        Raises `UserError` for a cache whose name is no file's, and for tokens that are no numbers [N,D], not finite in
        float16, or of another shape than those before.
        """
        self.views.update((view, None) for view, data in item.pictures.items() if not data)
        for name, own in item.features.items():
            tokens = {view: {"plain": self._checked(name, item.key, one).tobytes()} for view, one in own.items()}
            self._write(name, item.split, row, {"tokens": tokens, "shape": self._shapes.get(name, [])})

    def _checked(self, name: str, key: str, tokens: np.ndarray) -> np.ndarray:
        """Return the tokens of one picture as float16 [N,D], if they fit."""
        where, shape = f"features '{name}' of {key!r}", list(tokens.shape)
        if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind != "f":
            raise UserError(f"{where} are {tokens.dtype} {shape}; give floating-point numbers [N,D].")
        if self._shapes.setdefault(name, shape) != shape:
            raise UserError(f"{where} have the shape {shape}, others {self._shapes[name]}; give all one shape [N,D].")
        return _float16(tokens, where)

    def _write(self, name: str, split: str, row: int, content: dict[str, Any]) -> None:
        """Write a row, after empty ones for the records before it that had none."""
        if (name, split) not in self._writers:
            refuse_bad_name(name, "features")
            self._writers[name, split] = RecordWriter(self._folder / name, split, self._shard_bytes)
        writer = self._writers[name, split]
        self._fill(writer, row)
        writer.write(pack(content))

    def _fill(self, writer: RecordWriter, rows: int) -> None:
        """Write empty rows until there are `rows`."""
        for _ in range(writer.records, rows):
            writer.write(pack({"tokens": {}, "shape": []}))

    def finish(self, records: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Finish all caches and return the card's entry of each; `records` are those of each split."""
        found = {}
        for name, (tokens, width) in self._shapes.items():
            files = {}
            for split, count in records.items():
                if (name, split) not in self._writers:
                    self._writers[name, split] = RecordWriter(self._folder / name, split, self._shard_bytes)
                self._fill(self._writers[name, split], count)
                files[split] = self._writers[name, split].close()
            entry = {"tower": name, "size": 0, "tokens": tokens, "width": width, "views": ["plain"]}
            found[name] = OF_PICTURES | entry | {"dtype": "float16", "files": files}
        return found

    def abort(self) -> None:
        """Remove unfinished files."""
        for writer in self._writers.values():
            writer.abort()
