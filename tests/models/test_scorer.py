"""The pair score: one `config.scorer` for aligned rows and for all pairs, trained through either."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ALL, ROWS, tiny_batch, tiny_config, tiny_model, tiny_params

from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.models.pair_score import ScorerConfig


class BilinearScore(nn.Module):
    """one' W two on the embeddings, and a share of the tokens' mean product."""

    embed: int

    @nn.compact
    def __call__(self, one, two):
        """Scores [b] of aligned rows."""
        kernel = self.param("kernel", nn.initializers.normal(1.0), (self.embed, self.embed))
        return jnp.einsum("be,ef,bf->b", one.embed, kernel, two.embed) + (one.tokens.mean(1) * two.tokens.mean(1)).sum(
            1
        )


@dataclass(frozen=True)
class Bilinear(ScorerConfig):
    """A scorer of the test's own."""

    kind: str = ""

    def module(self, width, embed):
        """The network."""
        return BilinearScore(embed)


def forward_of(kind, used=ALL):
    """A Forward of a tiny model with this scorer, and its parameters."""
    model = tiny_model(tiny_config(scorer={"kind": kind}))
    return Forward(model, tiny_params(model, used=used), jax.tree.map(jnp.asarray, tiny_batch()), None)


OWN = f"{__name__}:Bilinear"


@pytest.mark.parametrize(("kind", "used"), [("fusion", ALL), (OWN, ALL | {"scorer"})])
@pytest.mark.parametrize("block", [1, 4, ROWS])
def test_all_pairs_are_the_aligned_scores_of_each(kind, used, block):
    fwd = forward_of(kind, used)
    image, text = fwd.encode("image"), fwd.encode("text")
    found = fwd.scores(image, text, block)
    assert found.shape == (ROWS, ROWS)
    for shift in (0, 3):
        other = (jnp.arange(ROWS) + shift) % ROWS
        aligned = fwd.score(image, text.rows(other))
        np.testing.assert_allclose(found[jnp.arange(ROWS), other], aligned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "used"), [("fusion", ALL), (OWN, ALL | {"scorer"})])
def test_blocks_have_the_gradient_of_the_whole(kind, used):
    fwd = forward_of(kind, used)

    def total(params, block):
        own = Forward(fwd.model, params, fwd.batch, None)
        scores = own.scores(own.encode("image"), own.encode("text"), block)
        return jax.nn.relu(0.2 + scores - jnp.diagonal(scores)[:, None]).mean()

    whole, pieces = (jax.grad(total)(fwd.params, block) for block in (ROWS, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), pieces, whole)
    trained = "scorer" if kind == OWN else "match"
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(whole[trained]))


def test_blocks_that_do_not_divide_are_refused():
    fwd = forward_of("fusion")
    with pytest.raises(ValueError, match=f"blocks of 3 rows do not divide a batch of {ROWS} rows"):
        fwd.scores(fwd.encode("image"), fwd.encode("text"), 3)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "fusoin",
            "config.scorer.kind is 'fusoin'; write one of fusion, sgr, graph .did you mean 'fusion'.., or FILE",
        ),
        ("xmodal_jax.models.vit:ViTConfig", "derive the class from xmodal_jax.models.pair_score.ScorerConfig"),
    ],
)
def test_what_is_no_scorer_is_refused(kind, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_config(scorer={"kind": kind})


def test_a_model_without_an_objective_on_it_has_no_scorer():
    assert "scorer" not in tiny_params(tiny_model(tiny_config(scorer={"kind": OWN})))
