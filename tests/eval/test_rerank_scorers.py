"""Re-ranking by scorers over similarity vectors: `xmodal eval` and search order by the score that training saw."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import changed

from xmodal_jax.cli import main
from xmodal_jax.encode.embed import Embedder, PairScorer
from xmodal_jax.eval.evaluate import Evaluator, ensure_weight, evaluate
from xmodal_jax.eval.rerank import WEIGHTS
from xmodal_jax.objectives.base import Paired, Term, row_weight
from xmodal_jax.retrieve.build import build_index
from xmodal_jax.retrieve.pipeline import SearchPipeline
from xmodal_jax.retrieve.query import answer
from xmodal_jax.workdir import open_run


@dataclass(frozen=True)
class Ranked(Paired):
    """A hinge on the scores of all pairs."""

    @property
    def parts(self):
        """The scorer."""
        return frozenset({"scorer"})

    def __call__(self, fwd, batch, key):
        """Losses [B]."""
        one, two = (fwd.encode(field) for field in self.pair)
        scores = fwd.scores(one, two, 4)
        others = 1.0 - jnp.eye(len(scores))
        hinge = (jax.nn.relu(0.2 + scores - jnp.diagonal(scores)[:, None]) * others).sum(1)
        return Term(hinge, row_weight(batch, self.pair), {})


SCORERS = {"sgr": "{'kind': 'sgr', 'width': 16}", "graph": "{'kind': 'graph', 'width': 16, 'heads': 2, 'dropout': 0.1}"}


@pytest.fixture(scope="module", params=[pytest.param("sgr", marks=pytest.mark.slow), "graph"])
def run(request, train_tiny, tmp_path_factory):
    """(work directory, assembly, parameters) of a run of a few steps."""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    losses = f"objectives={{'itc': {{'queue': 8}}, 'ranked': {{'kind': '{__name__}:Ranked'}}}}"
    how = "eval.rerank_score=replace" if request.param == "sgr" else "eval.rerank_score=add"
    assert main(train_tiny(workdir, f"scorer={SCORERS[request.param]}", losses, how, "eval.every=2")) == 0
    return workdir, *open_run(workdir)[:2]


def all_scores(assembly, params):
    """Cosines and pair scores [n,m] of the test split, its captions and the owner of each."""
    found = Evaluator(assembly, params).open("test", "filled")
    left, right = (Embedder(assembly.model, params).side(side, 8, True) for side in (found.left, found.right))
    rows = np.indices((len(left.embed), len(right.embed)), dtype=np.int32)
    score = PairScorer(assembly.model, params, left, right)(*(own.ravel() for own in rows))
    return left.embed @ right.embed.T, np.asarray(score).reshape(rows.shape[1:]), found


@pytest.mark.parametrize("combine", ["add", "replace"])
def test_evaluation_ranks_by_the_score(run, combine):
    _, assembly, params = run
    cosine, score, found = all_scores(assembly, params)
    assert ((score > 0) & (score < 1)).all() and np.ptp(score) > 0
    whole = changed(assembly, eval={"rerank_score": combine, "rerank": (12,), "views": ("filled",)})
    result = evaluate(whole, params)
    assert result["weight"] == 1.0, "the scorer's own weight, not the temperature"
    ranks = cosine + score if combine == "add" else score
    own = ranks[found.right.owner, np.arange(len(found.right))]
    places = (ranks > own[None, :]).sum(0)
    table = result["mean"]["rerank"][12]["t2i"]
    for k in (1, 5):
        assert table[f"R@{k}"] == pytest.approx(100 * np.mean(places < k), abs=1e-3)


def test_the_weight_may_be_chosen_on_training_records(run):
    _, assembly, params = run
    embedder = Embedder(assembly.model, params)
    for given, known in ((-1.0, WEIGHTS), (0.3, (0.3,)), (0.0, (1.0,))):
        own = changed(assembly, eval={"weight": given})
        assert ensure_weight(Evaluator(own, params), embedder, lambda said: None) in known


def test_the_command_evaluates_and_search_re_ranks(run, tmp_path, capsys):
    workdir, assembly, params = run
    assert main(["eval", "--workdir", str(workdir)]) == 0
    said, name = capsys.readouterr().out, assembly.config.scorer.noun
    assert f"{name} re-ranks the best 4" in said and f"the score of {name}" in said and "ITM" not in said
    cosine, score, found = all_scores(assembly, params)
    index, rows = build_index(assembly, params, str(workdir), str(tmp_path / "index"))
    hits = answer(index, found.right.words[3], k=rows, stages=SearchPipeline(rerank=rows))
    assert {hit.kind for hit in hits} == {"match"} and len(hits) == 24
    ranks = score if assembly.config.eval.rerank_score == "replace" else cosine + score
    for hit in hits:
        if hit.item["view"] == "filled":
            row = list(found.keys).index(hit.item["key"])
            assert hit.score == pytest.approx(ranks[row, 3], abs=1e-3)
