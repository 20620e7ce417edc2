"""Write captions for picture files, or for a whole split with their scores against the true ones.

Captions in several languages are scored by language, against the true ones in the same language: a pool of references
in all languages would take a word in any of them for right.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import Card
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import EvalSplit, eval_split
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.encode.inputs import encode_blocks
from xmodal_jax.errors import UserError
from xmodal_jax.eval.caption import caption_scores
from xmodal_jax.eval.folds import fold_of, languages_of
from xmodal_jax.eval.generate import start_of, write_captions
from xmodal_jax.eval.zeroshot import naming_accuracy, record_labels
from xmodal_jax.origin import refuse_trained
from xmodal_jax.settings import Config
from xmodal_jax.types import Params

BLOCK = 32  # pictures encoded and captioned together
NAMING = (" named", " right")  # how the shares of `naming_accuracy` end


class Unwritten(UserError):
    """A split has true captions in no language that the run writes."""


def refuse_uncaptioned(params: Params, beam: int) -> None:
    """Refuse a run without a decoder or an impossible beam, before any picture is read."""
    if "decoder" not in params:
        raise UserError("this run has no captioning decoder; train it with the objective 'lm' in its config")
    if beam < 1:
        raise UserError(f"beam is {beam}; write 1 (greedy) or more")


def decoded_pair(config: Config) -> tuple[str, str]:
    """Return the fields that the decoder reads and writes: the first of each encoder of `config.fusion.pair`."""
    read, written = (config.data.fields_of(encoder)[0] for encoder in config.fusion.pair)
    return read, written


def caption_files(
    assembly: Assembly, params: Params, pictures: Sequence[Any], beam: int = 3, language: str = ""
) -> Iterator[str]:
    """Yield one caption for each picture: a path, a Pillow picture or an array.

    `language`, such as "de", is that of the captions, for a run that tells languages apart; "": the first of its own.
    Raises UserError for a run without a decoder, for a language that it does not write, and for a picture that cannot
    be read, by name.
    """
    refuse_uncaptioned(params, beam)
    start_of(assembly, language)
    field = decoded_pair(assembly.config)[0]
    for part in encode_blocks(assembly, Embedder(assembly.model, params), field, pictures, tokens=True):
        assert part.tokens is not None  # they were asked for
        yield from write_captions(assembly, params, part.tokens, beam, language=language)


def caption_split(
    assembly: Assembly,
    params: Params,
    split: str = "",
    limit: int = 0,
    beam: int = 3,
    allow_trained: bool = False,
    poll: Callable[[], None] = lambda: None,
    language: str = "",
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Caption the first `limit` (0: all) pictures of a split, in its first view.

    With true captions in several languages they are written and scored by language, those in `language` alone if that
    is given. A run that does not tell languages apart writes one caption for all; of a run that does, languages that it
    does not write are left out.

    Returns:
      Rows {"key", "language", "caption", "references": the true captions in this language}, record by record, and
        {"BLEU-4" (0 to 1), "CIDEr" (COCO tool's scale)}; if the data set has a taxonomy also the shares of captions
        that name a label and a right one (`naming_accuracy`). With several languages these are means over them, and
        "languages" has the scores of each with "records", and "lacking": records without a caption in it, left out.

    Raises:
      UserError: a run without a decoder, a negative limit, a split that is not there, a language that the run does not
        write or the split does not have, records that the run was trained on, unless `allow_trained`.
    """
    refuse_uncaptioned(params, beam)
    if limit < 0:
        raise UserError(f"limit is {limit}; write how many pictures to caption, or 0 for all")
    start_of(assembly, language)
    data, split = assembly.config.eval_data, split or assembly.config.data.eval_split
    refuse_trained(assembly.origin, data.path, split, allow_trained)
    data = dataclasses.replace(data, languages=(language,)) if language else data
    found = eval_split(data.path, split, assembly.specs, data, pair=decoded_pair(assembly.config))
    parts, records = first_records(by_language(assembly, found, language), limit, len(found.keys))
    captions = written(Embedder(assembly.model, params, poll), assembly, found, parts, beam)
    rows = [row for code, own in parts.items() for row in rows_of(own, code, captions[code])]
    tables = {code: part_scores(data, split, own, captions[code]) for code, own in parts.items()}
    counts = {code: {"records": len(own.keys), "lacking": records - len(own.keys)} for code, own in parts.items()}
    told = len(parts) > 1 or bool(assembly.model.starts)
    return [row for _, row in sorted(rows, key=lambda entry: entry[0])], mean_scores(tables, counts if told else {})


def first_records(parts: dict[str, EvalSplit], limit: int, records: int) -> tuple[dict[str, EvalSplit], int]:
    """Return the records of each language that are among the first `limit` (0: all) of those in any, and their number.

    `records` is the number in the split, which it is without a limit. A language that is left without any is left out.
    """
    rows = np.unique(np.concatenate([own.rows for own in parts.values()]))[: limit or None]
    if not limit:
        return parts, records
    kept = {code: np.flatnonzero(np.isin(own.rows, rows)) for code, own in parts.items()}
    return {code: fold_of(parts[code], places).split for code, places in kept.items() if len(places)}, len(rows)


def rows_of(found: EvalSplit, language: str, captions: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row in the split, what `caption_split` says of it) of each record."""
    for place, (row, key, text) in enumerate(zip(found.rows.tolist(), found.keys, captions, strict=True)):
        yield row, {"key": key, "language": language, "caption": text, "references": found.words_of(place)}


def by_language(assembly: Assembly, found: EvalSplit, language: str = "") -> dict[str, EvalSplit]:
    """Return the records with captions in each language that the run writes, or in `language`, and these captions.

    Captions of no language, as a reader of one's own may give, are those of "". Raises UserError for a split without
    any that the run writes.
    """
    names, spoken = Card.load(assembly.config.data.path).languages, found.right.language
    if spoken is None:
        return {"": found}
    own = {names[code]: fold.split for code, fold in languages_of(found).items()}
    if len(set(spoken.tolist())) == 1:
        own = {names[spoken[0]]: found}
    known = (language,) if language else assembly.model.starts or tuple(own)
    if not set(known) & set(own):
        raise Unwritten(
            f"the captions of the split are in {', '.join(own)}, and those to write in {', '.join(known)}; evaluate on "
            "captions in some of these (config.eval.languages, or the field's languages)"
        )
    return {code: part for code, part in own.items() if code in known}


def written(
    embedder: Embedder, assembly: Assembly, found: EvalSplit, parts: dict[str, EvalSplit], beam: int
) -> dict[str, list[str]]:
    """Write captions of each language's records; a run that tells no languages apart writes one of each record."""
    if assembly.model.starts:
        return {code: caption_records(embedder, assembly, own, beam, code) for code, own in parts.items()}
    captions = dict(zip(found.rows.tolist(), caption_records(embedder, assembly, found, beam), strict=True))
    return {code: [captions[row] for row in own.rows.tolist()] for code, own in parts.items()}


def part_scores(data: DataConfig, split: str, found: EvalSplit, captions: Sequence[str]) -> dict[str, float]:
    """Score the captions of some records of a split against the true ones, and by the taxonomy where there is one."""
    truths, tree = [found.words_of(place) for place in range(len(found.keys))], Taxonomy.load(data.path)
    scores = caption_scores(captions, truths)
    if tree and tree.leaf != "folder":  # captions name animals, not folders
        scores |= naming_accuracy(captions, record_labels(data, split, found.rows), tree)
    return scores


def mean_scores(tables: dict[str, dict[str, float]], counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Average scores over languages, and put those of each with its counts under "languages".

    Without counts these are the scores of the only table. Shares of captions that name a label have no mean over
    several languages, for a taxonomy has its names in one.
    """
    first = next(iter(tables.values()))
    if not counts:
        return first
    names = [name for name in first if len(tables) == 1 or not name.endswith(NAMING)]
    mean: dict[str, Any] = {name: float(np.mean([own[name] for own in tables.values()])) for name in names}
    return mean | {"languages": {code: own | counts[code] for code, own in tables.items()}}


def caption_records(
    embedder: Embedder, assembly: Assembly, found: EvalSplit, beam: int, language: str = ""
) -> list[str]:
    """Caption the pictures of an opened split in a language; tokens live for one block only."""
    captions: list[str] = []
    for block in found.left.blocks(min(BLOCK, len(found.keys))):
        embedder.poll()
        tokens = embedder.rows(found.left.encoder, block[found.left.field]).tokens
        assert tokens is not None, "rows keep their tokens unless told otherwise"
        real = tokens[block["id"] >= 0]
        captions += write_captions(assembly, embedder.params, real, beam, language=language)
    return captions
