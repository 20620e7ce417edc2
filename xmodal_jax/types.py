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

A `Batch` is a dict of arrays, all with leading axis B: `image` uint8 [B,H,W,3] or float16 [B,N,D], `text` int32 [B,L]
(0 is padding), `id` int32 [B] (equal ids are the same thing), `text_key` int32 [B] (equal keys are the same caption),
`index` int32 [B] (row in the training split) and, where the data set has labels, `labels` float32 [B,C]. Where the
config asks for them: `image2` like `image`, a second view of the same thing (`data.second_view`); `distill_image` and
`distill_text` float32 [B,E], a frozen teacher's unit embeddings of this picture and this caption (`data.embeddings`);
`text_tokens` float16 [B,L,D], a frozen text tower's own tokens (`text.keep`).
"""

from typing import Any

import jax

Array = jax.Array
Batch = dict[str, jax.Array]
Params = dict[str, Any]
Metrics = dict[str, jax.Array]
