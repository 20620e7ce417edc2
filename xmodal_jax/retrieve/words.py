"""Read the words of a query as the model does, and report words that it does not know or has no room for."""

import logging
import unicodedata

import numpy as np

from xmodal_jax.data.readers import InputSpec
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.errors import UserError

log = logging.getLogger(__name__)


def encoded_words(spec: InputSpec, encoder: str, query: str, language: str = "") -> np.ndarray:
    """Return a query as its encoder takes it, int32 [1,...]; warn of words that are unknown, or lost as it is too long.

    Raises UserError for an empty query, one that is not UTF-8, and one without a known word.
    """
    if not query.strip():
        raise UserError('the query is empty; write words, such as "a red fruit"')
    if not _is_text(query):
        raise UserError("the query is not UTF-8 text; write it in UTF-8, or set the locale to one that is")
    tokenizer, length = spec.tokenizer, spec.size
    if tokenizer is None:
        raise UserError(f"config.encoders.{encoder} reads no words; ask with a file")
    read, lost = read_and_lost(tokenizer, query, length)
    unknown = [word for word, ids in read if not (known(tokenizer, word, ids) or _is_punctuation(word))]
    sensible = [word for word, ids in read if known(tokenizer, word, ids) and not _is_punctuation(word)]
    if not sensible:
        raise UserError(
            f"the model's tokenizer knows no word of '{_short(query)}'; write other words, in the language of the "
            "captions that it was trained on"
        )
    if unknown:
        log.warning("the model's tokenizer does not know %s; the rest is searched", ", ".join(map(_short, unknown)))
    if lost:
        log.warning(
            "the model reads %d tokens of a text (config.encoders.%s.length) and the query has %d: "
            "not read is the end, '%s'",
            length,
            encoder,
            tokenizer.lengths([query])[0],
            _short(lost),
        )
    return spec.ids([query], [language])


def read_and_lost(tokenizer: Tokenizer, query: str, length: int) -> tuple[list[tuple[str, list[int]]], str]:
    """Return the words that `encode` keeps some tokens of, with their ids, and the end of the query that is lost.

    The end begins at the first word that is not kept whole; it is "" where all is read.
    """
    read, lost, used, room = [], len(query), 0, length - 2  # [CLS] and [SEP]
    for start, stop, ids in tokenizer.words(query):
        if used < room:
            read.append((query[start:stop], ids))
        used += len(ids)
        if used > room:
            lost = min(lost, start)
    return read, query[lost:].strip()


def known(tokenizer: Tokenizer, word: str, ids: list[int]) -> bool:
    """Return True if a word means something to the model: no token of it is unknown, and it is not spelled from bits.

    A vocabulary that was built from captions and has room left has every word that occurs twice there as one token.
    Another word in Latin letters counts as one of these with an ending if its first piece has three letters; else its
    pieces come from words that were seen once at most.
    """
    if tokenizer.unk_id in ids:
        return False
    if len(ids) == 1 or not tokenizer.has_all_words or not all(map(_is_latin, word)):
        return True
    return len(tokenizer.decode(ids[:1])) > 2


def _is_latin(letter: str) -> bool:
    """Return True for a Latin letter."""
    return unicodedata.name(letter, "").startswith("LATIN")


def _is_punctuation(word: str) -> bool:
    """Return True for a word without letters and digits."""
    return all(unicodedata.category(letter)[0] in "PZC" for letter in word)


def _is_text(query: str) -> bool:
    """Return True if a command line argument was UTF-8: other bytes arrive as lone surrogates."""
    try:
        query.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(text: str, most: int = 80) -> str:
    """Cut a text for a message."""
    return text if len(text) <= most else f"{text[:most]}..."
