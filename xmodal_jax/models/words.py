"""The base of encoders that read words: a tokenizer, and the ids that may be predicted."""

from dataclasses import dataclass, replace
from typing import ClassVar

from xmodal_jax.config_build import limited
from xmodal_jax.data.config import DataConfig
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.layers import real_tokens
from xmodal_jax.types import Array, DataFacts


@dataclass(frozen=True)
class WordConfig(EncoderConfig):
    """An encoder of token ids int32 [B,L], 0 for padding."""

    length: int = limited(32, least=3)
    """Tokens of a text, [CLS] and [SEP] included; a longer text loses its end."""
    tokenizer: str = "data"
    """Source of the tokenizer: "data" (built from the captions), "minilm", or a path to a tokenizer.json."""
    output_vocab: str = limited("train", among=("train", "all"))
    """Ids that MLM and LM may predict: "train" (those seen in training captions) or "all"."""
    vocab_size: int = limited(0, least=0)
    """Number of ids; 0: filled in from the tokenizer."""

    reads: ClassVar[str] = "words"

    @property
    def extent(self) -> int:
        """Tokens of a text."""
        return self.length

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """Return shape [L] and dtype of a text's ids."""
        return (self.length,), "int32"

    def filled(self, name: str, data: DataConfig, facts: DataFacts) -> "WordConfig":
        """Return the config with the size of the tokenizer's vocabulary."""
        sizes = [facts.vocabularies[field].vocab_size for field in data.fields_of(name)]
        if self.vocab_size not in (0, sizes[0]):
            raise UserError(
                f"config.encoders.{name}.vocab_size is {self.vocab_size}, but the tokenizer '{self.tokenizer}' has "
                f"{sizes[0]} ids; write {sizes[0]} or leave it 0"
            )
        return replace(self, vocab_size=sizes[0])

    def mask(self, x: Array) -> Array | None:
        """Return the mask bool [B,L] of real tokens among ids [B,L]."""
        return real_tokens(x)
