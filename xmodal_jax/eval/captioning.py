"""Write captions for picture files, or for a whole split with their scores against the true ones."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xmodal_jax.assemble import Assembly
from xmodal_jax.data.evaluation import EvalSplit, eval_split
from xmodal_jax.data.taxonomy import Taxonomy
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.encode.inputs import encode_blocks
from xmodal_jax.errors import UserError
from xmodal_jax.eval.caption import caption_scores
from xmodal_jax.eval.generate import write_captions
from xmodal_jax.eval.zeroshot import naming_accuracy, record_labels
from xmodal_jax.origin import refuse_trained
from xmodal_jax.settings import Config
from xmodal_jax.types import Params

BLOCK = 32  # pictures encoded and captioned together


def refuse_uncaptioned(params: Params, beam: int) -> None:
    """Refuse a run without a decoder or an impossible beam, before any picture is read."""
    if "decoder" not in params:
        raise UserError("this run has no captioning decoder; train it with the objective 'lm' in its config")
    if beam < 1:
        raise UserError(f"beam is {beam}; write 1 (greedy) or more")


def decoded_pair(config: Config) -> tuple[str, str]:
    """Return the fields that the decoder reads and writes: the first of each encoder of `config.fusion.pair`."""
    read, written = (config.data.fields_of(encoder)[0] for encoder in config.fusion.pair)
    return read, written


def caption_files(assembly: Assembly, params: Params, pictures: Sequence[Any], beam: int = 3) -> Iterator[str]:
    """Yield one caption for each picture: a path, a Pillow picture or an array.

    Raises UserError for a run without a decoder and for a picture that cannot be read, by name.
    """
    refuse_uncaptioned(params, beam)
    field = decoded_pair(assembly.config)[0]
    for part in encode_blocks(assembly, Embedder(assembly.model, params), field, pictures, tokens=True):
        assert part.tokens is not None  # they were asked for
        yield from write_captions(assembly, params, part.tokens, beam)


def caption_split(
    assembly: Assembly,
    params: Params,
    split: str = "",
    limit: int = 0,
    beam: int = 3,
    allow_trained: bool = False,
    poll: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Caption the first `limit` (0: all) pictures of a split, in its first view.

    Returns:
      Rows {"key", "caption", "references": the true captions}, and {"BLEU-4" (0 to 1), "CIDEr" (COCO tool's scale)}; if
        the data set has a taxonomy also the shares of captions that name a label and a right one (`naming_accuracy`).

    Raises:
      UserError: a run without a decoder, a negative limit, a split that is not there, records that the run was trained
        on, unless `allow_trained`.
    """
    refuse_uncaptioned(params, beam)
    if limit < 0:
        raise UserError(f"limit is {limit}; write how many pictures to caption, or 0 for all")
    data = assembly.config.eval_data
    refuse_trained(assembly.origin, data.path, split or data.eval_split, allow_trained)
    found = eval_split(data.path, split or data.eval_split, assembly.specs, data, pair=decoded_pair(assembly.config))
    count = min(limit or len(found.keys), len(found.keys))
    captions = caption_records(Embedder(assembly.model, params, poll), assembly, found, count, beam)
    truths = [found.words_of(i) for i in range(count)]
    rows = [{"key": found.keys[i], "caption": caption, "references": truths[i]} for i, caption in enumerate(captions)]
    scores, tree = caption_scores(captions, truths), Taxonomy.load(data.path)
    if tree and tree.leaf != "folder":  # captions name animals, not folders
        own = record_labels(data, split or data.eval_split, found.rows[:count])
        scores |= naming_accuracy(captions, own, tree)
    return rows, scores


def caption_records(embedder: Embedder, assembly: Assembly, found: EvalSplit, count: int, beam: int) -> list[str]:
    """Caption the first `count` pictures of an opened split; tokens live for one block only."""
    captions: list[str] = []
    for block in found.left.blocks(min(BLOCK, count)):
        embedder.poll()
        tokens = embedder.rows(found.left.encoder, block[found.left.field]).tokens
        assert tokens is not None, "rows keep their tokens unless told otherwise"
        real = tokens[block["id"] >= 0]
        captions += write_captions(assembly, embedder.params, real[: count - len(captions)], beam)
        if len(captions) == count:
            break
    return captions
