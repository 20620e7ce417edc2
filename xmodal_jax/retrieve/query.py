"""Ask an index with words or with a picture, and show the answers: a table, a contact sheet."""

import base64
import contextlib
import dataclasses
import io
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from xmodal_jax import drawing
from xmodal_jax.assemble import Assembly
from xmodal_jax.config import Config, MeshConfig
from xmodal_jax.data.media import find_file, read_file
from xmodal_jax.data.readers import has_views, reader_classes
from xmodal_jax.data.records import PICTURES
from xmodal_jax.encode.embed import Embedded, Embedder
from xmodal_jax.encode.files import read_files
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.retrieve.build import kind_in
from xmodal_jax.retrieve.faiss_backend import FaissIndex, load_faiss
from xmodal_jax.retrieve.milvus import COLLECTION, MilvusIndex, load_milvus, refuse_bad_uri
from xmodal_jax.retrieve.origin import open_origin
from xmodal_jax.retrieve.pipeline import SearchPipeline, matched, refuse_unmatchable, staged
from xmodal_jax.retrieve.words import encoded_words
from xmodal_jax.search.backend import Backend, Hit
from xmodal_jax.search.index import Index
from xmodal_jax.search.sharded import ShardedIndex
from xmodal_jax.types import Params

log = logging.getLogger(__name__)
COSINE = SearchPipeline()
BACKENDS = ("jax", "numpy", "sharded", "faiss", "milvus")  # sharded: jax, the rows spread over all devices
SCORES = {"dense": "cosine", "codes": "distance", "match": "match"}
COLUMNS = 5  # pictures in a row of a contact sheet
TILE = 168  # px


@dataclasses.dataclass(frozen=True)
class SearchTarget:
    """What is searched. backend: one of `BACKENDS`; prefix: the rows before a damaged file; verify: compare all checksums
    again; milvus: at `uri`, with `token` ("user:password" or an API key), in the collections `collection`_*; workdir: the run
    that made the index, data: the data set of its pictures, where they are not found as the index remembers them."""

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
            raise UserError(f"--backend '{self.backend}' is not one of {', '.join(BACKENDS)}; write one of them")
        if bool(self.uri) != (self.backend == "milvus"):
            raise UserError(
                "--uri goes with --backend milvus, and milvus wants one; write --uri http://HOST:19530 or a .db file"
            )
        if self.backend != "milvus" and (self.collection or self.token):
            raise UserError("--collection and --token go with --backend milvus; leave them out")
        if self.backend == "faiss":
            load_faiss()
        elif self.backend == "milvus":
            load_milvus()
            refuse_bad_uri(self.uri)

    def open(self) -> Index:
        """The index itself. Raises `UserError` as `refuse_bad` and `Index.open`."""
        self.refuse_bad()
        engine = "numpy" if self.backend == "numpy" else "jax"
        return Index.open(self.index, prefix=self.prefix, engine=engine, again=self.verify)

    def searcher(self, opened: Index) -> Backend:
        """What finds the rows: the index, or a copy of it elsewhere (filled first, where it is Milvus). To be closed."""
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


def answer(
    where: SearchTarget | str | os.PathLike,
    query: str = "",
    image: str | os.PathLike = "",
    k: int = 10,
    stages: SearchPipeline = COSINE,
    file: str | os.PathLike = "",
    field: str = "",
) -> list[Hit]:
    """The `k` rows of an index that fit `query` (words), the picture file `image`, or the `file` of a `field` best.

    Without `field` a file is read as the rows are, or where these are words as what is evaluated with them.

    Opens the run that made the index. `stages` says what ranks them: cosine, Hamming distance of the hash codes, a
    shortlist by codes ordered by cosine, the matching head on the best. More than there are is all there are, with a warning.
    Raises UserError for a k below 1, stages that do not follow each other, a run that is gone or has changed since, no
    codes, an unreadable picture, a query that means nothing to the model.
    """
    where = where if isinstance(where, SearchTarget) else SearchTarget(where)
    opened = where.open()
    stages, k = stages.fitted(k, opened.count, f"{opened.extra.get('noun', 'rows')} of {opened.path}")
    warn_of(opened)
    assembly, params = open_origin(opened, where.workdir)
    asked = asked_field(assembly.config, kind_in(opened.extra)["field"], query, image, field)
    if stages.rerank:
        refuse_unmatchable(opened, assembly, params, asked)
    coded = encoded_query(assembly, params, asked, words=query, file=image or file)
    dense = stages.kind == "dense"
    if not dense and coded.codes is None:
        raise UserError(f"the run behind {opened.path} has no hash codes; write --kind dense")
    with contextlib.closing(where.searcher(opened)) as backend:
        hits = staged(backend, opened, coded, stages, k)
    return matched(assembly, params, opened, (asked, coded), hits, k, where.data) if stages.rerank else hits


def warn_of(opened: Index) -> None:
    """Say what an answer of this index may lack, or have twice."""
    if opened.damage:
        log.warning("searching the first %d of %d rows: %s", opened.count, opened.total, opened.damage)
    if opened.extra.get("repeated"):
        log.warning(
            "%d rows of %s were added under keys that were there (--allow-duplicates; %d data sets): a hit may come twice",
            opened.extra["repeated"],
            opened.path,
            len(opened.extra.get("sets", [])) or 1,
        )


def asked_field(config: Config, rows: str, query: str, image: str | os.PathLike, field: str = "") -> str:
    """The field that a query is for: of `query` words, of `image` pictures, else `field`; those evaluated with `rows` first.

    Raises UserError where the config has no such field.
    """
    fields = config.data.fields
    worded = {name for name, cls in reader_classes(fields).items() if cls.worded}
    if field and field not in fields:
        raise UserError(f"--as is '{field}'; write one of {', '.join(fields)}")
    if field:
        return field
    partners = [other for pair in config.eval.pairs if rows in pair for other in pair if other != rows]
    order = [*partners, rows, *fields] if query or image else [rows, *partners, *fields]
    suits = {name for name in fields if has_views(fields, name)} if image else worded if query else set(fields) - worded
    found = [name for name in order if name in suits]
    what = "pictures" if image else "words" if query else "files"
    if not found:
        raise UserError(f"the run has no field of {what}; it has {', '.join(fields)}")
    return found[0]


def encoded_query(
    assembly: Assembly, params: Params, field: str, words: str = "", file: str | os.PathLike = ""
) -> Embedded:
    """One query as the model sees it: `words`, or a `file` of the field. Warns of words it does not read."""
    encoder, embedder = assembly.config.data.fields[field].encoder, Embedder(assembly.model, params)
    if file:
        return embedder.rows(encoder, read_files(assembly, field, [file]))
    return embedder.rows(encoder, encoded_words(assembly.specs[encoder], encoder, words))


def score_text(hit: Hit) -> str:
    """The score of a hit, for people: a cosine, a matching score, or a number of bits."""
    return f"{hit.score:.0f} bits" if hit.kind == "codes" else f"{hit.score:.3f}"


def as_table(hits: Sequence[Hit]) -> str:
    """Rank, score, key, view and first caption of each hit, aligned; empty where an index does not keep them."""
    head = ("rank", SCORES[hits[0].kind], "key", "view", "caption")
    rows = [
        (str(rank), score_text(hit), str(hit.item.get("key", "")), str(hit.item.get("view", "")), first_caption(hit))
        for rank, hit in enumerate(hits, 1)
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def first_caption(hit: Hit) -> str:
    """The caption that is shown of a hit, "" where there is none."""
    return next(iter(hit.item.get("captions") or []), "")


def contact_sheet(
    hits: Sequence[Hit], path: str | os.PathLike, title: str, image: str | os.PathLike = ""
) -> pathlib.Path:
    """Write a picture of the answers: the query on top, the hits with rank, score and caption below.

    `image`: the picture that was the query, shown beside the title. A hit without a thumbnail that can be read is an empty
    frame. Raises UserError where `path` cannot be written, or no hit has a thumbnail.
    """
    path = pathlib.Path(path)
    if not any("thumbnail" in hit.item for hit in hits):
        raise UserError("the index keeps no thumbnails of its pictures; leave out --show")
    tiles = [hit_tile(rank, hit) for rank, hit in enumerate(hits, 1)]
    width = COLUMNS * TILE + (COLUMNS - 1) * 12
    heading = drawing.text_block(title, width - 140 * bool(image), 24, bold=True)
    if image:
        heading = drawing.beside([drawing.framed(read_file(find_file(image)), 128), heading], 12)
    sheet = drawing.with_margin(drawing.stacked([heading, drawing.grid(tiles, COLUMNS)], 16))
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
    good = os.access(there, os.W_OK) and (there == path or there.is_dir())
    if not good:
        raise UserError(f"'{path}' cannot be written, because of '{there}'; {PICTURE}")


def hit_tile(rank: int, hit: Hit) -> Any:
    """One hit: its thumbnail, with rank, score, first caption and view below."""
    item = hit.item
    blocks = [
        thumbnail(item),
        drawing.text_block(f"{rank}.  {score_text(hit)}", TILE, 14, drawing.GREY, lines=1),
        drawing.text_block(first_caption(hit), TILE, 15, lines=3),
    ]
    if item.get("view", PICTURES) not in ("", PICTURES):  # the name of the only view of a set says nothing
        blocks.append(drawing.text_block(item["view"], TILE, 12, drawing.GREY, lines=1))
    return drawing.stacked(blocks, 4)


def thumbnail(item: dict[str, Any]) -> Any:
    """The thumbnail of a hit in its frame, the frame alone where it has none that can be read."""
    from PIL import Image

    try:
        return drawing.framed(base64.b64decode(item["thumbnail"]), TILE)
    except (KeyError, TypeError, ValueError):  # no thumbnail, no text, no base64, no picture
        file = io.BytesIO()
        Image.new("RGB", (8, 8), drawing.GREY).save(file, "PNG")
        return drawing.framed(file.getvalue(), TILE)
