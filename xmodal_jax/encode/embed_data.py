"""A run, or the start of a config, as a frozen teacher: its embeddings of a whole data set (`xmodal data embed`)."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.card import Card
from xmodal_jax.data.embeddings import Encoders, write_embeddings
from xmodal_jax.data.split import Split
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.errors import refuse_unless
from xmodal_jax.search.index import fingerprint
from xmodal_jax.types import Params


def encoders(assembly: Assembly, params: Params, name: str) -> Encoders:
    """Both towers and heads with their tokenizer as plain functions."""
    embedder, data = Embedder(assembly.model, params), assembly.config.data

    def text(captions: Sequence[str]) -> np.ndarray:
        ids = assembly.tokenizer.encode(captions, data.length)
        return embedder.rows("text", ids, keep_tokens=False).embed

    reads = " ".join(data.features) if data.features else f"{data.image_size} px"
    image = lambda rows: embedder.rows("image", rows, keep_tokens=False).embed
    return Encoders(
        name, fingerprint(params), f"{reads}, {data.length} tokens", assembly.config.joint.embed, image, text
    )


def embed_data(assembly: Assembly, params: Params, teacher: str, data_dir: str | os.PathLike, name: str,
               batch: int = 64, dtype: str = "float32") -> Card:  # fmt: skip
    """Write the embeddings of the data set at `data_dir` under `name`: all its views, the config's languages.

    `teacher` says in words whose they are. Raises UserError, besides what `write_embeddings` does, for a data set
    without the languages or the feature caches that the towers read.
    """
    data = dataclasses.replace(assembly.config.data, path=str(data_dir), views=(), embeddings="")
    refuse_other_caches(assembly, Card.load(data_dir))
    made = encoders(assembly, params, teacher)
    return write_embeddings(data_dir, name, made, lambda split: Split(data_dir, split, data), batch, dtype)


def refuse_other_caches(assembly: Assembly, card: Card) -> None:
    """Refuse feature caches of another tower or picture size than those the image head was made for."""
    for name, cache in zip(assembly.config.data.features, assembly.caches):
        entry = card.feature(name)
        refuse_unless(
            (entry["tower"], entry["size"]) == (cache["tower"], cache["size"]),
            f"features '{name}' of data set '{card.name}' are of {entry['tower']} at {entry['size']} px, and the teacher "
            f"reads {cache['tower']} at {cache['size']} px; write them with `xmodal data features` under another name "
            "and name that one in config.data.features",
        )
