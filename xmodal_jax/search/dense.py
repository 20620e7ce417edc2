"""Search exactly by cosine (or plain inner product) over embeddings, on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xmodal_jax.search import topk
from xmodal_jax.search.numpy_engine import refuse_not_finite, refuse_unsearchable, unit_rows


def inner_product(query: jax.Array, rows: jax.Array) -> jax.Array:
    """Multiply query [b,E] with rows [n,E] in full float32 -> [b,n] (accelerators would round to bfloat16)."""
    return jnp.matmul(query, rows.T, precision=jax.lax.Precision.HIGHEST)


def resident(gallery: np.ndarray, mesh: Mesh | None = None) -> topk.Resident:
    """Put embeddings [n,E] on the device, or on each device of a mesh, once, as float32."""
    return topk.resident(np.asarray(gallery, np.float32), mesh)


def resident_topk(query: np.ndarray, gallery: topk.Resident, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the top k by inner product with a gallery already on the device (from `resident`)."""
    return topk.blocked_topk(inner_product, np.asarray(query, np.float32), gallery, k)


def dense_topk(
    query: np.ndarray, gallery: np.ndarray, k: int, cosine: bool = True, mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` most similar rows for each query.

    Args:
      query: [q,E].
      gallery: [n,E].
      k: at most n.
      cosine: divide rows by their length first; without it, scores are inner products.
      mesh: split each block of queries over it; the gallery is on each of its devices.

    Returns:
      Scores float32 [q,k] (descending) and rows int32 [q,k]; equal scores by ascending row.

    Raises:
      UserError: an empty gallery, different widths, k outside 1..n, or a row that is not finite.
    """
    query, gallery = np.asarray(query), np.asarray(gallery)
    refuse_unsearchable(query, gallery.shape, k)
    if cosine:
        query, gallery = unit_rows(query), unit_rows(gallery)
    else:
        refuse_not_finite(query)
        refuse_not_finite(gallery)
    return resident_topk(query, resident(gallery, mesh), k)
