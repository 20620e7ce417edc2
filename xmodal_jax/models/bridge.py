"""The residual attention network between the student's tokens and its teacher's (ReCap, Tao et al. 2024).

The paper's abstract gives its purpose (consistent keys while the momentum encoder moves) but not its structure, so the
config offers two readings: "cross", attention of the teacher's tokens over both token sequences, and "gate", the trunk
and mask branch of the classic residual attention network (Wang et al. 2017).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import (
    attend,
    attention_params,
    dense,
    dense_params,
    layer_norm,
    norm_params,
    project_heads,
)
from xmodal_jax.types import Array, Params

KINDS = ("cross", "gate")


class Bridge(nn.Module):
    """An addition to tokens: delta [B,N,D] from the student's and the teacher's tokens of the same input.

        cross: a = gamma * MHA(Q = LN(teacher), K = V = LN([student; teacher]))
               delta = a + gamma' * MLP(LN(teacher + a))
        gate:  delta = gamma * sigmoid(MLP(LN(teacher))) * teacher

    gamma and gamma' are learned scalars that start at zero, so that training starts as plain momentum contrast.
    """

    kind: str
    width: int
    heads: int
    hidden: int

    def _mlp(self, x: Array) -> Array:
        """Apply two dense layers to LN(x), [B,N,D] -> [B,N,D]."""
        up = self.param("up", dense_params, self.width, self.hidden)
        down = self.param("down", dense_params, self.hidden, self.width)
        norm: Params = self.param("norm", lambda _: norm_params(self.width))
        return dense(down, jax.nn.gelu(dense(up, layer_norm(norm, x))))

    def _gamma(self, name: str) -> Array:
        """Return the learned scalar `name`, which starts at zero."""
        return self.param(name, lambda _: jnp.zeros((), jnp.float32))

    @nn.compact
    def __call__(self, student: Array, teacher: Array, mask: Array | None = None) -> Array:
        """Compute delta [B,N,D] from student and teacher tokens [B,N,D] and the mask [B,N] of real tokens."""
        dtype = teacher.dtype
        if self.kind == "gate":
            return self._gamma("gamma").astype(dtype) * jax.nn.sigmoid(self._mlp(teacher)) * teacher
        params: Params = self.param("attention", attention_params, self.width)

        def norm(tokens: Array) -> Array:
            return layer_norm(params["norm"], tokens)

        both = jnp.concatenate([norm(student.astype(dtype)), norm(teacher)], axis=1)
        look = None if mask is None else jnp.concatenate([mask, mask], axis=1)[:, None, None, :]
        keys, values = (project_heads(params[name], both, self.heads) for name in ("key", "value"))
        read = self._gamma("gamma").astype(dtype) * attend(params, norm(teacher), keys, values, look, self.heads)
        return read + self._gamma("gamma_mlp").astype(dtype) * self._mlp(teacher + read)
