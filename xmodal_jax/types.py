"""Types and constants that the whole package shares.

Axis letters used in every docstring:

| letter | axis |
| --- | --- |
| B | pairs in the batch (b: a block or a selection of rows) |
| L | text tokens |
| N | image patches or regions |
| D | width of a tower's tokens |
| E | width of the joint embedding |
| K | bits of a hash code |
| V | vocabulary |
| Q | rows of a queue |
| C | labels or concepts |
| T | frames |

A `Batch` is a dict of arrays, all with leading axis B. It holds each field of `config.data.fields` under the field's
name, in the form that its encoder takes: pixels uint8 [B,H,W,3], cached tokens float16 [B,N,D], words int32 [B,L] (0 is
padding). Further entries of a field are named with the field, a slash and a suffix:

| name | contents |
| --- | --- |
| `text/key` | int32 [B], number of the caption: equal keys are the same text (`NEVER`: missing) |
| `text/language` | int32 [B], place of the caption's language in `DataFacts.starts` (`NEVER`: none); only with these |
| `audio/valid` | bool [B], True for rows that have the field; only for fields that are not `required` |
| `text/tokens` | float16 [B,L,D], tokens of a frozen tower, computed once (`cache_tokens` of the encoder) |
| `text/teacher` | float32 [B,E], a frozen teacher's unit embedding of this very input (`data.embeddings`) |
| `mlm/ids` | an input that an objective derives, under the objective's own name |

Entries of a whole row: `id` int32 [B] (equal ids are the same thing), `index` int32 [B] (row in the training split);
with `config.data.unit` "pair" `pair` int32 [B] (number of the caption in the split); where the data set has labels,
`labels` float32 [B,C], how far each is right (0 to 1, 1 unless the source says less); with `data.concepts`, `concepts`
float32 [B,C], the words mined from captions that the row has, and `concepts/valid` bool [B], False for rows without
captions.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax

Array = jax.Array
Batch = dict[str, jax.Array]
Params = dict[str, Any]
Metrics = dict[str, jax.Array]
Schedule = float | tuple  # a number, or ((step, value), ...) joined by straight lines, where a step may be "2 epochs"
Steps = int | str  # a number of steps, or "2 epochs"

NEVER = -1  # id of an empty row, caption key of a row without a caption


@dataclass(frozen=True)
class Vocabulary:
    """The size and the special ids of a tokenizer.

    Example:
        >>> Vocabulary(vocab_size=30522, cls_id=101, mask_id=103, bos_id=1).mask_id
        103
    """

    vocab_size: int
    """Number of ids."""
    cls_id: int = 2
    """Id of [CLS], the first token of a text."""
    mask_id: int = 4
    """Id of [MASK], which masked language modelling writes over a token."""
    bos_id: int = 5
    """Id of the start token of a caption that is to be written."""


@dataclass(frozen=True)
class CacheFacts:
    """What the feature caches that an encoder reads give for one view, all together."""

    tokens: tuple[int, int] = (0, 0)
    """Tokens (N, D)."""
    groups: tuple[int, ...] = ()
    """Numbers of consecutive tokens that are pooled together, summing to N."""
    padded: bool = False
    """Whether a view may have fewer tokens, followed by zeros."""


@dataclass(frozen=True)
class DataFacts:
    """What a program must know of the data set before it reads any of it; fields are empty or 0 while nothing is known.

    Example:
        >>> facts = DataFacts(records=1000, steps_per_epoch=31.25)
        >>> facts.records, facts.labels
        (1000, 0)
    """

    records: int = 0
    """Number of training records."""
    pairs: int = 0
    """Number of captions of the training split, of all languages: the rows of a table by `pair`."""
    labels: int = 0
    """Number of labels C."""
    concepts: int = 0
    """Number of concepts C."""
    steps_per_epoch: float = 0.0
    """Steps in one pass over the training split by `config.data.unit`; a fraction where the batch does not divide it.
    """
    tokens: tuple[int, int] = (0, 0)
    """Tokens (N, D) that all feature caches of the encoder in question (`of`) give for one view."""
    groups: tuple[int, ...] = ()
    """Numbers of consecutive tokens that are pooled together, summing to N."""
    padded: bool = False
    """Whether a view may have fewer tokens than N, followed by zeros."""
    caches: dict[str, CacheFacts] = field(default_factory=dict)
    """What the feature caches give to each encoder that reads some, by the encoder's name."""
    teacher: int = 0
    """Width of the stored embeddings of a frozen teacher."""
    teacher_media: tuple[str, ...] = ()
    """Media that the stored embeddings are of."""
    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    """Vocabulary of each field of words, by the field's name."""
    starts: tuple[str, ...] = ()
    """Languages that captions are begun in, each by an embedding of its own, where an objective tells them apart."""

    def of(self, encoder: str) -> "DataFacts":
        """Return the facts as they are for one encoder: with `tokens`, `groups` and `padded` of its own caches.

        Example:
            >>> facts = DataFacts(caches={"clips": CacheFacts((8, 1280), (8,), True)})
            >>> facts.of("clips").tokens, facts.of("other").tokens
            ((8, 1280), (0, 0))
        """
        own = self.caches.get(encoder)
        if own is None:
            return self
        return replace(self, tokens=own.tokens, groups=own.groups, padded=own.padded)
