"""Ask an index with words, files or pictures, and show the answers: a table, a contact sheet."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal_jax import drawing
from xmodal_jax.assemble import Assembly
from xmodal_jax.data.media import find_file, read_file
from xmodal_jax.data.readers import has_views, reader_classes
from xmodal_jax.data.records import PICTURES
from xmodal_jax.encode.embed import Embedded, Embedder, join_rows
from xmodal_jax.encode.inputs import block_size, encode_rows_of, read_inputs, single
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.retrieve.build import kind_in
from xmodal_jax.retrieve.faiss_backend import FaissIndex, load_faiss
from xmodal_jax.retrieve.milvus import COLLECTION, MilvusIndex, load_milvus, refuse_bad_uri
from xmodal_jax.retrieve.origin import open_origin
from xmodal_jax.retrieve.pipeline import (
    RowInputs,
    SearchPipeline,
    matched,
    pair_weight,
    refuse_unmatchable,
    staged,
)
from xmodal_jax.retrieve.words import encoded_words
from xmodal_jax.search.backend import Backend
from xmodal_jax.search.hits import Hit, Hits
from xmodal_jax.search.index import Index
from xmodal_jax.search.sharded import ShardedIndex
from xmodal_jax.settings import Config, MeshConfig
from xmodal_jax.types import Params

if TYPE_CHECKING:
    from PIL import Image

    Query = str | os.PathLike | np.ndarray | Image.Image

log = logging.getLogger(__name__)
COSINE = SearchPipeline()
BACKENDS = ("jax", "numpy", "sharded", "faiss", "milvus")  # sharded: jax, the rows spread over all devices
SCORES = {"dense": "cosine", "codes": "distance", "match": "match"}
COLUMNS = 5  # pictures in a row of a contact sheet
TILE = 168  # px


PICTURE_FILES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp"})


@dataclasses.dataclass(frozen=True)
class SearchTarget:
    """An index and how it is searched.

    Attributes:
      index: its folder.
      backend: one of `BACKENDS`.
      uri, collection, token: for Milvus: server or file, start of the collections' names, "user:password" or API key.
      prefix: search the rows before a damaged file.
      verify: compare all checksums again.
      workdir, data: the run that made the index and the data set of its pictures, if they moved away from it.
    """

    index: str | os.PathLike
    backend: str = "jax"
    uri: str = ""
    prefix: bool = False
    verify: bool = False
    collection: str = ""
    token: str = ""
    workdir: str | os.PathLike = ""
    data: str | os.PathLike = ""

    def refuse_bad(self) -> None:
        """Raise `UserError` for an unknown backend, one that is not installed, or what does not go with it."""
        if self.backend not in BACKENDS:
            raise UserError(f"backend '{self.backend}' is not one of {', '.join(BACKENDS)}; write one of them")
        if bool(self.uri) != (self.backend == "milvus"):
            raise UserError(
                "uri goes with backend 'milvus', which wants one; write http://HOST:19530 or the path of a .db file"
            )
        if self.backend != "milvus" and (self.collection or self.token):
            raise UserError("collection and token go with backend 'milvus'; leave them out")
        if self.backend == "faiss":
            load_faiss()
        elif self.backend == "milvus":
            load_milvus()
            refuse_bad_uri(self.uri)

    def open(self) -> Index:
        """Open the index itself. Raises `UserError` as `refuse_bad` and `Index.open`."""
        self.refuse_bad()
        engine = "numpy" if self.backend == "numpy" else "jax"
        return Index.open(self.index, prefix=self.prefix, engine=engine, again=self.verify)

    def searcher(self, opened: Index) -> Backend:
        """Return the backend that answers queries, filled from the index if needed; the caller closes it."""
        self.refuse_bad()
        if self.backend == "faiss":
            return FaissIndex(opened)
        if self.backend == "sharded":
            return ShardedIndex(opened, make_mesh(MeshConfig(data=-1)))
        if self.backend == "milvus":
            found = MilvusIndex(opened, self.uri, self.collection or COLLECTION, self.token)
            try:
                found.fill()
            except BaseException:
                found.close()
                raise
            return found
        return opened


class Searcher:
    """An index with the run that made it, opened once for many queries; a context manager, or call `close`.

    A query is words (str), a file (a path object), or a picture (a Pillow image, or an array uint8 [H,W] or [H,W,3]).
    The run and the backend are opened by the first search. Raises UserError as `SearchTarget.open`.

    Attributes: target, index.
    """

    def __init__(self, target: SearchTarget | str | os.PathLike):
        self.target = target if isinstance(target, SearchTarget) else SearchTarget(target)
        self.index = self.target.open()
        self._opened = contextlib.ExitStack()
        warn_of(self.index)

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.index.count

    def __repr__(self) -> str:
        return f"Searcher({str(self.index.path)!r}, {self.index.count} {self.index.extra.get('noun', 'rows')})"

    def close(self) -> None:
        """Close the backend's connections."""
        self._opened.close()

    @functools.cached_property
    def run(self) -> tuple[Assembly, Params]:
        """The run that made the index, and its weights."""
        return open_origin(self.index, self.target.workdir)

    @functools.cached_property
    def backend(self) -> Backend:
        """The backend that answers queries, filled from the index if needed."""
        return self._opened.enter_context(contextlib.closing(self.target.searcher(self.index)))

    @functools.cached_property
    def weight(self) -> float:
        """The weight of the pair score beside the cosine."""
        return pair_weight(*self.run)

    def search(
        self, query: Query, k: int | None = None, stages: SearchPipeline = COSINE, field: str = "", language: str = ""
    ) -> Hits:
        """Return the `k` best rows for one query. Arguments and errors as in `search_many`."""
        if isinstance(query, (list, tuple)):
            raise UserError(f"search takes one query, and this is a list of {len(query)}; call search_many")
        return self.search_many([query], k, stages, field, language)[0]

    def search_many(
        self,
        queries: Sequence[Query],
        k: int | None = None,
        stages: SearchPipeline = COSINE,
        field: str = "",
        language: str = "",
    ) -> list[Hits]:
        """Return the `k` best rows for each query, which are encoded in blocks of one compiled shape.

        Args:
          queries: words, files and pictures, in any order.
          k: hits per query (default: 10, or all of fewer rows); more than there are gives all, with a warning.
          stages: how rows are ranked: cosine, Hamming distance of the hash codes, a shortlist by codes ordered by
            cosine, the matching head on the best.
          field: what the queries are inputs of; default: words are read as a field of words, pictures as one of
            pictures, and a file as the rows are, or if these are words as what is evaluated with them.
          language: of words, such as "ja", for a run whose encoders tell languages apart.

        Raises:
          UserError: k below 1, stages that do not follow each other, a run that is gone or has changed since, no codes,
            an unreadable file, a query that means nothing to the model.
        """
        if one := single(queries):
            raise UserError(f"search_many takes a list of queries, and this is one {one}; call search")
        stages, k = stages.fitted(k, self.index.count, f"{self.index.extra.get('noun', 'rows')} of {self.index.path}")
        fields, found = [self._field_of(query, field, language) for query in queries], [Hits()] * len(queries)
        for name in dict.fromkeys(fields):
            places = [place for place, own in enumerate(fields) if own == name]
            answers = self._answers(name, [queries[place] for place in places], stages, k, language)
            for place, hits in zip(places, answers, strict=True):
                found[place] = hits
        return found

    def _field_of(self, query: Query, field: str, language: str) -> str:
        """Return the field that a query is an input of."""
        what = "words" if isinstance(query, str) else "files" if isinstance(query, os.PathLike) else "pictures"
        if isinstance(query, str) and pathlib.Path(query).suffix.lower() in PICTURE_FILES and os.path.isfile(query):
            raise UserError(
                f"the query '{query}' is taken as words and names a file; for the picture write a "
                "pathlib.Path, or in a shell `xmodal search --image FILE`"
            )
        return asked_field(self.run[0].config, kind_in(self.index.extra)["field"], what, field, language)

    def _answers(self, field: str, queries: list[Query], stages: SearchPipeline, k: int, language: str) -> list[Hits]:
        """Return the hits of queries of one field."""
        assembly, params = self.run
        if stages.rerank:
            refuse_unmatchable(self.index, assembly, params, field)
        coded = encoded_queries(assembly, params, field, queries, stages.rerank > 0, language)
        if stages.kind != "dense" and coded.codes is None:
            raise UserError(f"the run behind {self.index.path} has no hash codes; write kind 'dense'")
        found = staged(self.backend, self.index, coded, stages, k)
        if not stages.rerank:
            return found
        how, rows = self.weight, RowInputs(assembly, self.index, self.target.data)
        asked = [(field, coded.take(slice(i, i + 1))) for i in range(len(found))]
        return [matched(assembly, params, rows, one, hits, k, how) for one, hits in zip(asked, found, strict=True)]


def answer(
    where: SearchTarget | str | os.PathLike,
    query: str = "",
    image: str | os.PathLike = "",
    k: int | None = None,
    stages: SearchPipeline = COSINE,
    file: str | os.PathLike = "",
    field: str = "",
    language: str = "",
) -> Hits:
    """Open an index and its run for one query: words, the picture file `image`, or the `file` of a `field`.

    Other arguments and errors as in `Searcher.search_many`.
    """
    with Searcher(where) as searcher:
        if image and not field:
            field = asked_field(searcher.run[0].config, kind_in(searcher.index.extra)["field"], "pictures")
        return searcher.search(pathlib.Path(image or file) if image or file else query, k, stages, field, language)


def warn_of(opened: Index) -> None:
    """Warn about rows that an answer of this index may lack, or have twice."""
    if opened.damage:
        log.warning("searching the first %d of %d rows: %s", opened.count, opened.total, opened.damage)
    if opened.extra.get("repeated"):
        log.warning(
            "%d rows of %s were added under keys that were there (duplicates were allowed; %d data sets): "
            "a hit may come twice",
            opened.extra["repeated"],
            opened.path,
            len(opened.extra.get("sets", [])) or 1,
        )


def asked_field(config: Config, rows: str, what: str, field: str = "", language: str = "") -> str:
    """Return the field that a query is for, `field` if it is given.

    For "words" and "pictures", fields that are evaluated with the field `rows` of the index come first; for "files" it
    is `rows` itself. With a `language` it is the first of those that read it. Raises UserError where the config has no
    such field.
    """
    fields = config.data.fields
    worded = {name for name, cls in reader_classes(fields).items() if cls.worded}
    if field and field not in fields:
        raise UserError(f"the query's field is '{field}'; write one of {', '.join(fields)}")
    if field:
        return field
    partners = [other for pair in config.eval.pairs if rows in pair for other in pair if other != rows]
    order = [rows, *partners, *fields] if what == "files" else [*partners, rows, *fields]
    pictured = {name for name in fields if has_views(fields, name)}
    suits = {"pictures": pictured, "words": worded, "files": set(fields) - worded}[what]
    found = [name for name in order if name in suits]
    if not found:
        raise UserError(f"the run has no field of {what}; it has {', '.join(fields)}")
    return field_in(config, found, language) if what == "words" and language else found[0]


def field_in(config: Config, fields: Sequence[str], language: str) -> str:
    """Return the first of some fields of captions that reads a language. Raises UserError for none."""
    known = {name: config.languages_of(name) for name in fields}
    for name, languages in known.items():
        if language in languages:
            return name
    told = dict.fromkeys(code for languages in known.values() for code in languages)
    raise UserError(f"the run knows captions in {', '.join(told)}, not in '{language}'; write one of these")


def encoded_queries(
    assembly: Assembly,
    params: Params,
    field: str,
    queries: Sequence[Query],
    keep_tokens: bool = True,
    language: str = "",
) -> Embedded:
    """Encode queries as inputs of a field, in blocks of one compiled shape; warn of unknown words."""
    embedder, size, parts = Embedder(assembly.model, params), block_size(len(queries)), []
    for start in range(0, len(queries), size):
        rows = query_inputs(assembly, field, queries[start : start + size], language)
        parts.append(encode_rows_of(assembly, embedder, field, rows, size, keep_tokens))
    return join_rows(parts)


def query_inputs(assembly: Assembly, field: str, queries: Sequence[Query], language: str = "") -> np.ndarray:
    """Return queries as their encoder takes them, [n,...]: token ids of words, or what the field's reader reads."""
    encoder = assembly.config.data.fields[field].encoder
    texts = [query for query in queries if isinstance(query, str)]
    if texts:
        return np.concatenate([encoded_words(assembly.specs[encoder], encoder, text, language) for text in texts])
    return read_inputs(assembly, field, queries)


def as_table(hits: Sequence[Hit]) -> str:
    """Return rank, score, key, view and first caption of each hit, aligned; "" where an index does not keep them.

    Hits of several splits have their split beside the key.
    """
    named = ["key", "split", "view"] if len({hit.item.get("split") for hit in hits}) > 1 else ["key", "view"]
    head = ("rank", SCORES[hits[0].kind], *named, "caption")
    rows = [
        (str(rank), hit.score_text, *(str(hit.item.get(name, "")) for name in named), hit.caption)
        for rank, hit in enumerate(hits, 1)
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def contact_sheet(
    hits: Sequence[Hit], path: str | os.PathLike, title: str, image: str | os.PathLike = ""
) -> pathlib.Path:
    """Write a picture of the answers: the query on top, the hits with rank, score and caption below.

    `image`: the file of the picture that was the query, shown beside the title. A hit without a readable thumbnail is
    an empty frame. Raises UserError where `path` cannot be written, or no hit has a thumbnail.
    """
    path = pathlib.Path(path)
    if not any("thumbnail" in hit.item for hit in hits):
        raise UserError("the index keeps no thumbnails of its pictures; leave out --show")
    tiles = [hit_tile(rank, hit) for rank, hit in enumerate(hits, 1)]
    columns = min(max(len(tiles), 3), COLUMNS)
    width = columns * TILE + (columns - 1) * 12
    heading = drawing.text_block(title, width - 140 * bool(image), 24, bold=True)
    if image:
        heading = drawing.beside([drawing.framed(read_file(find_file(image)), 128), heading], 12)
    sheet = drawing.with_margin(drawing.stacked([heading, drawing.grid(tiles, columns)], 16))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be written ({error}); {PICTURE}") from error
    return path


PICTURE = "write a path that ends in .png or .jpg, in a folder that can be written"


def refuse_unshowable(path: str | os.PathLike) -> None:
    """Raise `UserError` for a path that `contact_sheet` could not write to, before anything is searched."""
    from PIL import Image

    path = pathlib.Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"'{path}' does not end as a picture that can be written; {PICTURE}")
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; {PICTURE}")
    there = path if path.exists() else next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(there, os.W_OK) or (there != path and not there.is_dir()):
        raise UserError(f"'{path}' cannot be written, because of '{there}'; {PICTURE}")


def hit_tile(rank: int, hit: Hit) -> Any:
    """Draw one hit: its thumbnail, with rank, score, first caption and view below."""
    item = hit.item
    blocks = [
        thumbnail(item),
        drawing.text_block(f"{rank}.  {hit.score_text}", TILE, 14, drawing.GREY, lines=1),
        drawing.text_block(hit.caption, TILE, 15, lines=3),
    ]
    if item.get("view", PICTURES) not in ("", PICTURES):  # the name of the only view of a set says nothing
        blocks.append(drawing.text_block(item["view"], TILE, 12, drawing.GREY, lines=1))
    return drawing.stacked(blocks, 4)


def thumbnail(item: dict[str, Any]) -> Any:
    """Draw the thumbnail of a hit in its frame, the frame alone where it has none that can be read."""
    from PIL import Image

    try:
        return drawing.framed(base64.b64decode(item["thumbnail"]), TILE)
    except (KeyError, TypeError, ValueError):  # no thumbnail, no text, no base64, no picture
        file = io.BytesIO()
        Image.new("RGB", (8, 8), drawing.GREY).save(file, "PNG")
        return drawing.framed(file.getvalue(), TILE)
