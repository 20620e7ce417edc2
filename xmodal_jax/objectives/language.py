"""Language objectives: masked tokens predicted with the image (MLM), and captions written from it (LM).

MLM: Devlin et al. 2019 with ALBEF's soft targets from the momentum teacher (Li et al. 2021, equation 7). LM: BLIP's
captioning loss (Li et al. 2022), label smoothing 0.1.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, stop
from xmodal_jax.models.crossmodal import start_part
from xmodal_jax.models.layers import every_row, real_tokens
from xmodal_jax.objectives.base import Paired, Steps, Term, ramped, row_weight
from xmodal_jax.settings import Config
from xmodal_jax.types import Array, Batch, DataFacts

MASK, BOS, VOCAB = 103, 1, 30522  # bert-base-uncased; the run's tokenizer sets the fields below


def mask_tokens(key: Array, ids: Array, rate: float, vocab_size: int, mask_id: int) -> tuple[Array, Array, Array]:
    """Choose tokens to predict: ids [B,L] -> masked ids [B,L], positions int [B,M], chosen bool [B,M].

    In each row `rate` of the tokens (at least one) except [CLS] and padding are chosen; of those 80 % become [MASK], 10
    % a random id and 10 % stay. M is fixed by L, so the head runs on the chosen positions only.
    """
    length = ids.shape[1]
    slots = max(1, int(np.ceil(rate * (length - 1))))
    order_key, kind_key, random_key = jax.random.split(key, 3)
    eligible = real_tokens(ids) & (jnp.arange(length) > 0)[None, :]
    score = jnp.where(eligible, jax.random.uniform(order_key, ids.shape), -1.0)
    positions = jax.lax.top_k(score, slots)[1]
    count = jnp.maximum(1, jnp.round(rate * eligible.sum(1).astype(jnp.float32)).astype(jnp.int32))
    chosen = jnp.arange(slots)[None, :] < jnp.minimum(count, eligible.sum(1))[:, None]
    kind = jax.random.uniform(kind_key, positions.shape)
    old = jnp.take_along_axis(ids, positions, axis=1)
    random = jax.random.randint(random_key, positions.shape, 1, vocab_size, ids.dtype)
    new = jnp.where(kind < 0.8, jnp.asarray(mask_id, ids.dtype), jnp.where(kind < 0.9, random, old))
    rows = jnp.arange(ids.shape[0])[:, None]
    return ids.at[rows, positions].set(jnp.where(chosen, new, old)), positions, chosen


def output_index(ids: Array, output_ids: tuple[int, ...]) -> tuple[Array, Array]:
    """Map word ids to rows of the output vocabulary, with a mask of ids that are in it (all without `output_ids`)."""
    if not output_ids:
        return ids, jnp.ones(ids.shape, bool)
    table = jnp.asarray(output_ids, ids.dtype)
    row = jnp.clip(jnp.searchsorted(table, ids), 0, len(output_ids) - 1).astype(ids.dtype)
    return row, table[row] == ids


def cross_entropy(logits: Array, target: Array, smoothing: float = 0.0) -> Array:
    """Return the cross-entropy [...] of logits [...,V] at target [...], with label smoothing as in PyTorch."""
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    hard = log_normaliser - picked
    if smoothing == 0.0:
        return hard
    return (1.0 - smoothing) * hard + smoothing * (log_normaliser - logits.mean(-1))


def row_term(losses: Array, right: Array, mask: Array) -> Term:
    """Build a Term of token losses [B,M] whose weighted mean is the mean over all tokens of the batch under `mask`."""
    count = mask.sum(1)
    accuracy = (right * mask).sum() / jnp.maximum(mask.sum(), 1.0)
    return Term((losses * mask).sum(1) / jnp.maximum(count, 1.0), count, {"accuracy": accuracy})


@dataclass(frozen=True)
class Writing(Paired):
    """The base of objectives that predict words: the pair's first field is read, the second has the words."""

    every: int = limited(1, least=1)
    """n: take every n-th row only."""

    def own(self, what: str) -> str:
        """Return the name of a field that this objective derives."""
        return f"{self.name}/{what}"

    def words(self, batch: Batch) -> Array:
        """Return the ids [b,L] of every n-th row."""
        return every_row(batch[self.pair[1]], self.every)

    def presence(self, batch: Batch) -> Array:
        """Return float32 [b,1]: 1 for rows that have both fields."""
        return every_row(row_weight(batch, self.pair), self.every)[:, None]


@dataclass(frozen=True)
class MLM(Writing):
    """Prediction of masked words from the text around them and the other field.

    `alpha` of the target is the teacher's softmax.
    """

    rate: float = 0.15
    """Share of the tokens that are masked, between 0 and 1."""
    alpha: float = limited(0.4, least=0, most=1)
    """Share of the teacher's soft targets, from 0 to 1."""
    alpha_steps: Steps = limited(0, least=0)
    """Steps, or epochs such as "1 epoch" (ALBEF, the same as ITC's), in which alpha climbs from 0; 0: none."""
    mask_id: int = MASK
    """Id of [MASK]; filled in from the tokenizer."""
    vocab_size: int = VOCAB
    """Number of ids that random words are drawn from; filled in from the tokenizer."""

    @property
    def parts(self) -> frozenset[str]:
        """Fusion and the head over the vocabulary."""
        return frozenset({"fusion", "vocabulary"})

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        if not 0.0 < self.rate < 1.0:
            raise UserError(f"{where}.rate is {self.rate}; write a share such as 0.15")

    def fitted(self, facts: DataFacts) -> "MLM":
        """Return the objective with the ids of the tokenizer of its field's encoder."""
        words = facts.vocabularies.get(self.pair[1])
        return self if words is None else replace(self, mask_id=words.mask_id, vocab_size=words.vocab_size)

    def prepare(self, batch: Batch, key: Array) -> Batch:
        """Mask ids [b,L] (b = B / every rows) and record where, the same for student and teacher."""
        ids, positions, chosen = mask_tokens(key, self.words(batch), self.rate, self.vocab_size, self.mask_id)
        return {self.own("ids"): ids, self.own("positions"): positions, self.own("chosen"): chosen}

    def hidden(self, fwd: Forward, batch: Batch) -> Array:
        """Return hidden states [b,M,D] at the masked positions of the fused masked text."""
        memory, words = self.pair
        masked = fwd.encode(self.own("ids"), fwd.encoder_of(words))
        fused = fwd.fuse(fwd.encode(memory).every(self.every), masked)
        return jnp.take_along_axis(fused.tokens, batch[self.own("positions")][..., None], axis=1)

    def losses(self, fwd: Forward, hidden: Array, teacher: Array | None, target: Array) -> tuple[Array, Array]:
        """Return losses [B,M] and hits of the best word, from hidden states [B,M,D] of student and teacher."""
        logits = fwd.call("token_logits", hidden)
        losses = cross_entropy(logits, target)
        if teacher is not None:
            share = stop(jax.nn.softmax(fwd.teacher.call("token_logits", teacher)))
            soft = jax.nn.logsumexp(logits, axis=-1) - (share * logits).sum(-1)
            alpha = ramped(self.alpha, self.alpha_steps, fwd.step)
            losses = (1.0 - alpha) * losses + alpha * soft
        return losses, (logits.argmax(-1) == target).astype(jnp.float32)

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average over the masked tokens."""
        original = jnp.take_along_axis(self.words(batch), batch[self.own("positions")], axis=1)
        target, known = output_index(original, fwd.model.output_ids)
        arrays = (self.hidden(fwd, batch), *([self.hidden(fwd.teacher, batch)] if self.alpha else []), target)

        def each(_: None, hidden: Array, *rest: Array) -> tuple[Array, Array]:
            return self.losses(fwd, hidden, rest[0] if self.alpha else None, rest[-1])

        losses, right = fwd.rowwise(each, None, *arrays)
        mask = (batch[self.own("chosen")] & known).astype(jnp.float32) * self.presence(batch)
        return row_term(losses, right, mask)


@dataclass(frozen=True)
class LM(Writing):
    """Writing of the caption from the other field, left to right; the start token takes the place of [CLS].

    With `languages` it tells the decoder which language to write: the start's embedding is that of the caption's own.
    """

    smoothing: float = 0.1
    """Label smoothing, from 0 to below 1."""
    bridge: bool = False
    """True reads the picture through the residual attention, which this trains (ReCap)."""
    languages: bool = False
    """Whether the start has an embedding for each language of the captions, which are to be in two or more."""
    bos_id: int = BOS
    """Id of the start token; filled in from the tokenizer."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the pair, and the language of the captions where it is told."""
        return (*self.pair, *([f"{self.pair[1]}/language"] if self.languages else []))

    @property
    def parts(self) -> frozenset[str]:
        """The decoder, the parts it builds on, the bridge if it reads through it, and starts by language."""
        more = {"bridge", "bridged_decoder"} if self.bridge else set()
        return frozenset(
            {"fusion", "decoder", "vocabulary"} | more | ({start_part(self.pair[1])} if self.languages else set())
        )

    def check(self, where: str) -> None:
        """Refuse impossible values."""
        if not 0.0 <= self.smoothing < 1.0:
            raise UserError(f"{where}.smoothing is {self.smoothing}; write 0 to below 1")

    def check_fit(self, where: str, config: Config, facts: DataFacts) -> None:
        """Refuse `bridge` if the tokens it reads do not cross the bridge, and `languages` of captions in one."""
        encoder = config.data.fields[self.pair[0]].encoder
        if self.bridge and encoder not in config.bridge.sides:
            raise UserError(
                f"{where}.bridge is True, but config.bridge.sides is {config.bridge.sides}; add '{encoder}'"
            )
        spoken = config.data.languages_in(self.pair[1])
        if self.languages and len(set(spoken)) < 2:
            raise UserError(
                f"{where}.languages is True, and the captions of config.data.fields.{self.pair[1]} are in "
                f"{', '.join(spoken) or 'no language'} alone; write two or more in config.data.languages, or False"
            )

    def fitted(self, facts: DataFacts) -> "LM":
        """Return the objective with the start token of the tokenizer of its field's encoder."""
        words = facts.vocabularies.get(self.pair[1])
        return self if words is None else replace(self, bos_id=words.bos_id)

    def prepare(self, batch: Batch, key: Array) -> Batch:
        """Derive the decoder's input: the caption with the start token in place of its first, b = B / every rows.

        With `languages` the rows' languages too.
        """
        ids = self.words(batch)
        derived = {self.own("ids"): ids.at[:, 0].set(jnp.asarray(self.bos_id, ids.dtype))}
        if self.languages:
            derived[self.own("language")] = every_row(batch[f"{self.pair[1]}/language"], self.every)
        return derived

    def __call__(self, fwd: Forward, batch: Batch, key: Array) -> Term:
        """Average over the predicted tokens ([SEP] included, padding not)."""
        memory = self.pair[0]
        read = fwd.bridge(memory)[1] if self.bridge else fwd.encode(memory)
        language = self.own("language") if self.languages else ""
        hidden = fwd.decode(read.every(self.every), self.own("ids"), language)[:, :-1]
        following = self.words(batch)[:, 1:]
        target, known = output_index(following, fwd.model.output_ids)
        mask = (real_tokens(following) & known).astype(jnp.float32) * self.presence(batch)

        def each(_: None, hidden: Array, target: Array) -> tuple[Array, Array]:
            logits = fwd.call("token_logits", hidden)
            return cross_entropy(logits, target, self.smoothing), (logits.argmax(-1) == target).astype(jnp.float32)

        losses, right = fwd.rowwise(each, None, hidden, target)
        return row_term(losses, right, mask)
