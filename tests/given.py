"""A Forward with given embeddings, for losses that are compared with a reference on plain arrays."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from tiny import tiny_config

from xmodal_jax.forward import Encoded
from xmodal_jax.models.layers import pick_rows
from xmodal_jax.types import NEVER


class Given:
    """Stands in for `Forward` where no encoder matters: embeddings [B,E], heads, temperature, memory, towers.

    `batch` is there for objectives that read the rows of the Forward itself; `config` tells fields and encoders.
    """

    def __init__(
        self,
        image,
        text,
        temperature=0.1,
        teacher=None,
        memory=None,
        step=0,
        heads=None,
        nested=(),
        towers=None,
        params=None,
        batch=None,
        config=None,
    ):
        self.embeds, self.teacher, self.memory, self.step = {"image": image, "text": text}, teacher, memory or {}, step
        self.nested, self.towers, self.batch = nested, towers or {}, batch or {}
        self.params = {"image": {}, "text": {}} | (params or {})
        self.model = SimpleNamespace(config=config or tiny_config())
        self.heat, self.heads = jnp.asarray(temperature, jnp.float32), heads or {}

    def encoder_of(self, field):
        """The encoder of a field, by the config."""
        return self.model.config.data.fields[field].encoder

    def encode(self, field, encoder=""):
        """The given embeddings of a field, as one token each; of texts the token is real."""
        tokens = self.embeds[field][:, None]
        mask = jnp.ones(tokens.shape[:2], bool) if field == "text" else None
        return Encoded(tokens, self.embeds[field], mask, name=field)

    def codes(self, side):
        """The given hash head's codes, at the lengths `nested` and whole."""
        whole = self.call("codes", side, self.encode(side).embed)
        return tuple(whole[:, :bits] for bits in (*self.nested, whole.shape[1]))

    def raw(self, field, encoder=""):
        """The given tower tokens [B,N,D']."""
        return self.towers[field]

    def fuse(self, memory, query, rows=None):
        """Pairs as one token: the embedding that is read and the one that asks side by side."""
        picked = memory.tokens if rows is None else pick_rows(memory.tokens, rows)
        tokens = jnp.concatenate([picked, query.tokens], axis=-1)
        return Encoded(tokens, None, query.mask)

    def call(self, method, *inputs, **options):
        """The given head, or the temperature."""
        if method == "temperature":
            return self.heat
        return self.heads[method](*inputs, **options)

    def temperature(self):
        """The given temperature."""
        return self.heat


def unit(draw, *shape):
    """Random float32 rows of length one."""
    x = draw.normal(size=shape).astype("float32")
    return x / ((x**2).sum(-1, keepdims=True) ** 0.5)


def ring_of(draw, batch, rows, filled, width):
    """A queue of unit rows, the first `filled` real; two have the id or the caption of a row of the batch."""
    ring = {name: unit(draw, rows, width) for name in ("image", "text")}
    ring |= {name: np.arange(rows, dtype=np.int32) + 900 for name in ("id", "text/key")}
    ring["id"][2], ring["text/key"][4] = batch["id"][3], batch["text/key"][5]
    ring["id"][filled:] = NEVER
    return ring
