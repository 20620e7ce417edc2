"""Names shared by the whole package.

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
| C | labels |
| T | frames |

A `Batch` is a dict of arrays, all with leading axis B. Each field of `config.data.fields` is there by its name, as its
encoder takes it: pixels uint8 [B,H,W,3], cached tokens float16 [B,N,D], words int32 [B,L] (0 is padding). What more is said
of a field is its name, a slash and what:

| name | what |
| --- | --- |
| `text/key` | int32 [B], the number of the caption: equal keys are the same text (`NEVER`: missing) |
| `audio/valid` | bool [B], which rows have it; only of fields that are not `required` |
| `text/tokens` | float16 [B,L,D], a frozen tower's own tokens (`cache_tokens` of the encoder) |
| `text/teacher` | float32 [B,E], a frozen teacher's unit embedding of just this input (`data.embeddings`) |
| `mlm/ids` | what an objective derives, under its own name |

Of a whole row: `id` int32 [B] (equal ids are the same thing), `index` int32 [B] (row in the training split) and, where the
data set has labels, `labels` float32 [B,C].
"""

from dataclasses import dataclass, field
from typing import Any

import jax

Array = jax.Array
Batch = dict[str, jax.Array]
Params = dict[str, Any]
Metrics = dict[str, jax.Array]
Schedule = float | tuple  # a number, or ((step, value), ...) joined by straight lines; a step may be "2 epochs"
Steps = int | str  # a number of steps, or "2 epochs"

NEVER = -1  # id of an empty row, caption key of a row without a caption


@dataclass(frozen=True)
class Vocabulary:
    """What a program needs to know of a tokenizer: how many ids, and the special ones."""

    vocab_size: int
    cls_id: int = 2
    mask_id: int = 4
    bos_id: int = 5


@dataclass(frozen=True)
class DataFacts:
    """What a config's program needs to know of the data set; zeros where there is none yet.

    `tokens`: (N, D) of the feature caches, `groups`: how many of them are pooled together. `teacher`: width of the stored embeddings,
    `teacher_media`: the media that they are of. `vocabularies`: of the fields of words.
    """

    records: int = 0
    labels: int = 0
    steps_per_epoch: float = 0.0
    tokens: tuple[int, int] = (0, 0)
    groups: tuple[int, ...] = ()
    teacher: int = 0
    teacher_media: tuple[str, ...] = ()
    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
