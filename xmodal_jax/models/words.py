"""What encoders that read words share: a tokenizer and the ids that may be predicted."""

from dataclasses import dataclass
from typing import ClassVar

from xmodal_jax.config_build import limited
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.types import Array


@dataclass(frozen=True)
class WordConfig(EncoderConfig):
    """An encoder of token ids int32 [B,L], 0 for padding.

    `tokenizer`: "data" (built from the captions), "minilm", or a tokenizer.json. `output_vocab`: what MLM and LM may predict,
    "train" (ids seen in training captions) or "all". `vocab_size` is filled in from the tokenizer.
    """

    tokenizer: str = "data"
    output_vocab: str = limited("train", among=("train", "all"))
    vocab_size: int = limited(0, least=0)

    reads: ClassVar[str] = "words"

    def mask(self, x: Array) -> Array | None:
        """Which tokens of ids [B,L] are real, [B,L]."""
        return x != 0
