"""Captioning decoder: the text tower's and fusion's layers with causal self-attention of its own.

BLIP (Li et al. 2022) shares every decoder weight with the text encoder except self-attention. Here the text tower's
layers come first and the fusion layers, which read the image, on top; the decoder owns only the self-attention of both
stacks and swaps them in. Where captions are in several languages, an embedding of the language is added to that of the
start token, as XLM (Conneau and Lample 2019) adds it to every token.
"""

import flax.linen as nn
import jax

from xmodal_jax.models.bert import Bert
from xmodal_jax.models.fusion import Fusion, causal_mask
from xmodal_jax.models.layers import attention_params, real_tokens, scan_blocks, stack_params
from xmodal_jax.types import Array


class Decoder(nn.Module):
    """A captioning decoder: ids [b,L] and memory tokens [B,N,D'] -> hidden states [b,L,D] for the next token.

    `languages` counts those that captions are begun in, each by an embedding of its own; 0: it tells none apart.
    """

    width: int
    text_layers: int
    fusion_layers: int
    languages: int = 0

    def setup(self) -> None:
        """Create the decoder's own parameters: the self-attention of both stacks, and the embeddings of languages."""
        width = self.width
        self.text_attention = self.param(
            "text_attention", stack_params, self.text_layers, lambda key: attention_params(key, width)
        )
        self.fusion_attention = self.param(
            "fusion_attention", stack_params, self.fusion_layers, lambda key: attention_params(key, width)
        )
        if self.languages:
            self.start = self.param("start", lambda key: 0.02 * jax.random.normal(key, (self.languages, width)))

    def __call__(
        self,
        text: Bert,
        fusion: Fusion,
        memory: Array,
        ids: Array,
        rows: Array | None = None,
        key: Array | None = None,
        memory_mask: Array | None = None,
        language: Array | None = None,
    ) -> Array:
        """Run the shared layers causally over ids [b,L], start token first; memory_mask [B,N] marks real tokens.

        `language` int [b] is the place of each row's language among the decoder's; None leaves the start as it is.
        """
        keys = jax.random.split(key, 3) if key is not None else (None, None, None)
        mask = causal_mask(real_tokens(ids))
        start = None if language is None else self.start[language]
        x = text.embed_tokens(ids, keys[0], start)
        x = scan_blocks(text.style, {**text.stack, "attention": self.text_attention}, x, mask, key=keys[1])
        stack = {**fusion.stack, "attention": self.fusion_attention}
        return scan_blocks(
            fusion.style, stack, x, mask, fusion.reader(memory.astype(x.dtype), rows, memory_mask), keys[2]
        )
