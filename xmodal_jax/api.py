"""The front door from Python: `import xmodal_jax as xmodal`; the command line calls the same functions.

run = xmodal.load("runs/quickstart")
images, texts = run.encode_images(["a.jpg", "b.jpg"]), run.encode_texts(["a red fruit"])
run.similarity(images, texts)
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xmodal_jax import config_file
from xmodal_jax.assemble import Assembly
from xmodal_jax.atomic import write_file
from xmodal_jax.config_build import unknown_key
from xmodal_jax.data.card import Card
from xmodal_jax.data.readers import has_views, reader_classes
from xmodal_jax.encode.embed import Embedded, Embedder, PairScorer, join_rows
from xmodal_jax.encode.inputs import BLOCK, encode_blocks, reader_of, single
from xmodal_jax.errors import UserError
from xmodal_jax.origin import Origin, result_file
from xmodal_jax.settings import Config
from xmodal_jax.terminal import logging_to
from xmodal_jax.types import Params
from xmodal_jax.workdir import open_run

log = logging.getLogger(__name__)

Say = Callable[[str], None]
PATH = str | os.PathLike
TEXTS = "['a red square']"


def _silent(_: str) -> None:
    """Say nothing."""


def config(name: str, variant: str = "", changes: Mapping[str, Any] | None = None, **fields: Any) -> ConfigDict:
    """Return a config that comes with the package, or one of your own file, to be changed and trained.

    Args:
      name: of a config that comes with the package ("quickstart"), or the path of a .py file.
      variant: one of those that the file names ("tiny").
      changes: values by dotted path, such as {"optimizer.lr": 1e-4}.
      **fields: values of the outermost fields, such as batch_size=32.

    Raises:
      UserError: no such config, variant or field.

    Examples:
      >>> found = config("quickstart", "tiny", {"optimizer.lr": 1e-4}, batch_size=32)
      >>> found.batch_size, found.optimizer.lr
      (32, 0.0001)
    """
    found = config_file.load(f"{name}:{variant}" if variant else name)
    for path, value in {**(changes or {}), **fields}.items():
        config_file.assign(found, path, value)
    return found


def prepare(
    source: str, out: PATH, max_size: int = 0, allow_bad: bool = False, force: bool = False, **options: Any
) -> Any:
    """Write a data set from a source ("jsonl", "flickr8k", "file.py:function", ...) and return its card.

    The card printed tells records and captions of each split, and how many were skipped for which reason; the same are
    its fields (`data.card.Card`). `options` are the parameters of the source, those of
    `xmodal data prepare SOURCE --help` with "_" for "-".
    """
    from xmodal_jax.data.prepare import prepare as write
    from xmodal_jax.data.sources import make_source

    drop = options.pop("drop_copies", False)
    _refuse_options(source, options)
    return write(
        make_source(source, options), out, max_size=max_size, allow_bad=allow_bad, force=force, drop_copies=drop
    )


def _refuse_options(source: str, options: dict[str, Any]) -> None:
    """Raise UserError for options that a source does not take, or lacks."""
    from xmodal_jax.data.sources import source_options

    known = {option.name: option for option in source_options(source)}
    for name, value in options.items():
        if name not in known:
            raise unknown_key(name, f"the source '{source}'", list(known))
        if isinstance(value, (float, str)) and known[name].annotation in (int, int | None):
            raise UserError(f"{name} is {value!r}; write a whole number")
    for name, option in known.items():
        if option.default is option.empty and name not in options:
            raise UserError(f"the source '{source}' needs {name}; write {name}=...")


def train(
    config: ConfigDict | Config | str, workdir: PATH, evaluate: bool = True, quiet: bool = False, **options: Any
) -> "TrainedRun":
    """Train a config in a work directory, or go on with it; evaluate it and return the run.

    Args:
      config: from `config(...)`, a frozen one, or a name such as "quickstart:tiny".
      workdir: a folder of its own; a run that is there goes on where it stopped.
      evaluate: write the tables of the evaluation split, if there is one, to WORKDIR/eval-SPLIT.json at the end.
      quiet: show no progress on stderr; messages go to the logger "xmodal_jax" alone. Else a program without log
        handlers of its own sees them on stderr too.
      **options: of `training.loop.run_training`, such as `profile`.
    """
    from xmodal_jax.training.loop import run_training

    shown = contextlib.nullcontext() if quiet else logging_to(sys.stderr)
    shown_on: dict[str, Any] = {"progress": None if quiet else sys.stderr} | options
    with shown:
        run_training(_frozen(config), pathlib.Path(workdir), **shown_on)
        found = load(workdir)
        data = found.config.data
        if evaluate and data.eval_split in Card.load(data.path).splits:  # a set may have nothing held out
            found.evaluate(say=log.info)
    return found


def _frozen(config: ConfigDict | Config | str) -> Config:
    """Check a config that is not frozen yet, or load one by its name."""
    if isinstance(config, Config):
        return config
    if not isinstance(config, (ConfigDict, str)):
        raise UserError(f"the config is {type(config).__name__}; write xmodal.config('quickstart'), or its name")
    return config_file.freeze(config_file.load(config) if isinstance(config, str) else config)


def load(workdir: PATH, overrides: dict[str, dict[str, Any]] | None = None) -> "TrainedRun":
    """Open a run for inference: its weights alone, on all local devices.

    `overrides` changes sections that do not touch the weights: {"eval": {"rerank": (32,)}, "data": {"path": ...}}.
    Raises UserError for a folder without a run.
    """
    return TrainedRun(pathlib.Path(workdir), *open_run(pathlib.Path(workdir), overrides))


class Tables(dict):
    """The numbers of an evaluation; printed, they are the tables of `xmodal eval`."""

    def __str__(self) -> str:
        from xmodal_jax.eval.floor import floor_lines, floor_rows
        from xmodal_jax.eval.tables import as_text

        return "\n".join([as_text(self), *floor_lines(self, floor_rows(self["data"], self["split"]))])


@dataclass(frozen=True)
class TrainedRun:
    """A run whose weights are in memory: encodes, scores, captions, evaluates and indexes."""

    workdir: pathlib.Path
    assembly: Assembly
    params: Params
    step: int

    @property
    def config(self) -> Config:
        """The run's frozen config."""
        return self.assembly.config

    @property
    def origin(self) -> Origin:
        """The work directory, and the data set that the run was trained on."""
        assert self.assembly.origin is not None  # of an opened run it is there
        return self.assembly.origin

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The encoders on the run's weights."""
        return Embedder(self.assembly.model, self.params)

    def __repr__(self) -> str:
        fields = ", ".join(self.config.data.fields)
        return f"<run '{self.config.name}' in {self.workdir}, step {self.step}, fields {fields}>"

    def encode(self, field: str, inputs: Sequence[Any], progress: bool | None = None, language: str = "") -> np.ndarray:
        """Encode inputs of a field as unit rows, float32 [n,E].

        Args:
          field: of the batch, such as "image" or "text".
          inputs: strings of a field of words; paths, Pillow pictures or uint8 arrays of one of pictures; else paths.
          progress: show a bar; None: where stderr is a terminal and there is more than one block.
          language: of strings, for an encoder that tells languages apart; "" and others: the mean of all it has.

        Raises:
          UserError: no such field, or an input that cannot be read.
        """
        return self._encoded(field, inputs, progress, language=language).embed

    def encode_images(self, images: Sequence[Any], progress: bool | None = None) -> np.ndarray:
        """Encode pictures (paths, Pillow pictures or uint8 arrays) as unit rows, float32 [n,E]."""
        return self.encode(self.picture_field, images, progress)

    def encode_texts(self, texts: Sequence[str], language: str = "", progress: bool | None = None) -> np.ndarray:
        """Encode texts as unit rows, float32 [n,E].

        `language`, such as "ja", is refused where the run was neither trained nor evaluated on it. Texts of a run with
        another encoder for English (`config.data.fields.NAME.languages`) go to the encoder of their language.
        """
        field = self.text_field_in(language) if language else self.text_field
        return self.encode(field, texts, progress, language)

    def text_field_in(self, language: str) -> str:
        """Return the first field of words, evaluated ones first, that reads a language. Raises UserError for none."""
        from xmodal_jax.retrieve.query import field_in

        return field_in(self.config, self._fields_of("words", self._is_worded), language)

    def codes(self, field: str, inputs: Sequence[Any], progress: bool | None = None) -> np.ndarray:
        """Return packed hash codes uint8 [n,K/8], first bit highest. Raises UserError for a run without hash heads."""
        from xmodal_jax.search.codes import pack

        found = self._encoded(field, inputs, progress).codes
        if found is None:
            raise UserError("this run has no hash codes; train it with a hashing objective in its config")
        return pack(found)

    @staticmethod
    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the cosines float32 [n,m] of unit rows [n,E] and [m,E]; raise UserError for what is no such rows.

        Examples:
          >>> TrainedRun.similarity(np.eye(2), np.array([[0.6, 0.8]]))
          array([[0.6],
                 [0.8]], dtype=float32)
        """
        rows = [np.asarray(side) for side in (a, b)]
        if any(side.ndim != 2 or side.dtype.kind not in "fiu" for side in rows) or rows[0].shape[1] != rows[1].shape[1]:
            found = " and ".join(f"{side.dtype} {list(side.shape)}" for side in rows)
            raise UserError(
                f"similarity takes two arrays of unit rows of one width, and these are {found}; call encode_images and "
                "encode_texts first"
            )
        return rows[0].astype(np.float32) @ rows[1].astype(np.float32).T

    def score(self, left: Sequence[Any], right: Sequence[Any], fields: tuple[str, str] | None = None) -> np.ndarray:
        """Score all pairs of two lists of inputs by the run's scorer, float32 [n,m] (of ITM the log-odds of a match).

        `fields`: of both lists (default: pictures, then words). Raises UserError where no scorer was trained for them.
        """
        from xmodal_jax.retrieve.pipeline import scored_order

        fields = fields or (self.picture_field, self.text_field)
        scorer: Any = self.config.scorer
        order = scored_order(self.assembly, *fields) if scorer.part in self.params else None
        if order is None:
            raise UserError(f"the run was not trained to score pairs of {fields[0]} and {fields[1]}")
        sides = {name: self._encoded(name, own, False, True) for name, own in zip(fields, (left, right), strict=True)}
        scorer = PairScorer(self.assembly.model, self.params, *(sides[name] for name in order))
        one, two = (rows.ravel() for rows in np.indices([len(sides[name].embed) for name in order], dtype=np.int32))
        found = _in_blocks(scorer, one, two).reshape(-1, len(sides[order[1]].embed))
        return found if order == fields else found.T

    def caption(self, images: Sequence[Any], beam: int = 3, language: str = "") -> list[str]:
        """Write a caption for each picture, in a `language` such as "de" or, of several, in the first of the run's.

        Raises UserError for a run that was trained without the objective `lm`, and for a language that it does not
        write.
        """
        from xmodal_jax.eval.captioning import caption_files

        return list(caption_files(self.assembly, self.params, _listed(images), beam, language))

    def evaluate(self, split: str = "", allow_trained: bool = False, say: Say = _silent, keep: bool = True) -> Tables:
        """Return all tables of a split, and keep them as JSON in the work directory.

        Args:
          split: default: the run's evaluation split.
          allow_trained: also records that the run was trained on.
          say: called with what is under way.
          keep: write WORKDIR/eval-SPLIT.json and, of several languages, WORKDIR/languages-SPLIT.png.
        """
        from xmodal_jax.eval.evaluate import Evaluator, evaluate
        from xmodal_jax.eval.evaluations import further

        found = evaluate(self.assembly, self.params, split, say=say, allow_trained=allow_trained) | {"step": self.step}
        more = further(Evaluator(self.assembly, self.params), split, False, say)
        result = Tables(found | ({"evals": more} if more else {}))
        if keep:
            self.write_result("eval", result)
            self.draw_languages(result, say)
        return result

    def classify(
        self,
        split: str = "",
        templates: Any = None,
        classes: str = "all",
        allow_trained: bool = False,
        say: Say = _silent,
        keep: bool = True,
    ) -> dict[str, Any]:
        """Return the zero-shot accuracy over the labels of the data set, and keep it as JSON in the work directory.

        `templates`: texts with {} for the name of a class; `classes`: of the data set ("all"), or those of the "split".
        """
        from xmodal_jax.eval.zeroshot import TEMPLATES, classify

        chosen = TEMPLATES if templates is None else templates
        result = classify(self.assembly, self.params, split, chosen, classes, say, allow_trained) | {"step": self.step}
        if keep:
            self.write_result("classify", result)
        return result

    def measure_floor(self, split: str = "", say: Say = _silent) -> None:
        """Measure linear CCA between hand features on the run's data set, for `evaluate` and the report to show.

        Written to DATA/floors.jsonl, for a split and the run's languages; half a minute for two thousand pictures.
        """
        from xmodal_jax.eval.floor import write_floor

        data = self.config.eval_data
        write_floor(data.path, split or data.eval_split, data.languages, say, data.split)

    def write_result(self, kind: str, result: Mapping[str, Any]) -> pathlib.Path:
        """Write a result of `evaluate` ("eval") or `classify` ("classify") to the work directory; return the file."""
        path = self._file_of(kind, result)
        write_file(path, json.dumps(result, indent=1))
        return path

    def draw_languages(self, result: dict[str, Any], say: Say = _silent) -> pathlib.Path | None:
        """Draw recall by language, of a result of `evaluate`, to WORKDIR/languages-SPLIT.png; return the file.

        None where the captions are of one language, or where matplotlib is not installed, which `say` hears.
        """
        from xmodal_jax.report.charts import by_languages, languages_picture

        if not by_languages(result):
            return None
        path = self._file_of("languages", result).with_suffix(".png")
        try:
            write_file(path, languages_picture(result))
        except UserError as error:
            say(f"'{path}' is not drawn: {error}")
            return None
        return path

    def _file_of(self, kind: str, result: Mapping[str, Any]) -> pathlib.Path:
        """Return the file of a result in the work directory."""
        languages = result.get("languages", ())
        return result_file(self.origin, kind, result["split"], result["fingerprint"], languages)

    def index(self, out: PATH, data: PATH = "", split: str | Sequence[str] = "", **options: Any) -> Any:
        """Index the inputs of a field of a split, or of several, and open the index.

        Args:
          out: folder of the index.
          data: a data set other than the run's.
          split: default: the run's evaluation split; "train,test" or a list for several, "all" for all.
          **options: of `retrieve.build.IndexOptions`, such as `field` and `overwrite`.
        """
        from xmodal_jax.retrieve.build import IndexOptions, build_index

        how = IndexOptions(**options)
        path, _ = build_index(self.assembly, self.params, str(self.workdir), str(out), str(data), split, how)
        return open_index(path)

    @property
    def picture_field(self) -> str:
        """The first field of pictures, those that are evaluated before others. Raises UserError for a run without."""
        return self._fields_of("pictures", lambda name: has_views(self.config.data.fields, name))[0]

    @property
    def text_field(self) -> str:
        """The first field of words, those that are evaluated before others. Raises UserError for a run without."""
        return self._fields_of("words", self._is_worded)[0]

    def _is_worded(self, name: str) -> bool:
        return reader_classes({name: self.config.data.fields[name]})[name].worded

    def _fields_of(self, what: str, suits: Callable[[str], bool]) -> list[str]:
        """Return the fields that suit, those that are evaluated before others; raise UserError if there are none."""
        fields = self.config.data.fields
        evaluated = [name for pair in self.config.eval.pairs for name in pair]
        found = [name for name in dict.fromkeys([*evaluated, *fields]) if suits(name)]
        if not found:
            raise UserError(f"the run has no field of {what}; it has {', '.join(fields)}")
        return found

    def _encoded(
        self, field: str, inputs: Sequence[Any], progress: bool | None, tokens: bool = False, language: str = ""
    ) -> Embedded:
        """Encode inputs of a field, with hash values where the run has them."""
        worded = field in self.config.data.fields and reader_of(self.assembly, field)[0].worded
        parts = encode_blocks(self.assembly, self.embedder, field, _listed(inputs, worded), tokens, language)
        return join_rows(_shown(parts, -(-len(inputs) // BLOCK), field, progress))


def _listed(inputs: Any, words: bool = False) -> Sequence[Any]:
    """Return inputs that are a list; raise UserError for a single one, and for none."""
    if one := single(inputs):
        such = "pictures, such as [array]" if one.startswith("array") else "inputs, such as ['a.jpg']"
        raise UserError(f"the inputs are one {one}; write a list of {'inputs, such as ' + TEXTS if words else such}")
    if not len(inputs):
        raise UserError("there is nothing to encode: the list of inputs is empty")
    return inputs


def _shown(parts: Iterable[Embedded], blocks: int, field: str, progress: bool | None) -> Iterable[Embedded]:
    """Show a bar while parts are made."""
    if progress is False or progress is None and blocks == 1:
        return parts
    from tqdm.auto import tqdm

    return tqdm(parts, f"encode {field}", blocks, unit="block", disable=None if progress is None else False)


def _in_blocks(scorer: PairScorer, one: np.ndarray, two: np.ndarray, size: int = 256) -> np.ndarray:
    """Score pairs of rows [p], `size` at a time in one compiled shape; pairs of equal length of text are together."""
    order = np.argsort(scorer.lengths[two], kind="stable")
    found = np.empty(len(order), np.float32)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        block = np.resize(rows, size)
        found[rows] = np.asarray(scorer(one[block], two[block]), np.float32)[: len(rows)]
    return found


def open_index(path: PATH, **options: Any) -> Any:
    """Open an index for `search` and `search_many`; `options` as in `retrieve.query.SearchTarget`."""
    from xmodal_jax.retrieve.query import Searcher, SearchTarget

    return Searcher(SearchTarget(path, **options))


def plan(config: ConfigDict | Config | str, topology: str = "local", chip: str = "", explain: bool = False) -> str:
    """Compile the train step of a config for devices that need not exist; return memory, time and verdict as text.

    Args:
      topology: "local", or a TPU slice such as "v5e:16x16" (needs the extra `plan`).
      chip: judge the local devices as this chip.
      explain: say which sharding rule took which parameter instead; nothing is compiled.
    """
    from xmodal_jax.planning.command import plan_text

    return plan_text(_frozen(config), topology, chip, explain)


def plot_curves(workdir: PATH, path: PATH) -> pathlib.Path:
    """Draw the losses, learning rate and evaluations of a run over its steps as a picture; return its path."""
    from xmodal_jax.training.curves import plot_curves

    return plot_curves(pathlib.Path(workdir), pathlib.Path(path))


def plot_pair_losses(workdir: PATH, path: PATH, entry: str = "") -> pathlib.Path:
    """Draw the losses of training pairs that an entry of kind "refurbish" keeps, over the evaluations; return the path.

    entry: its name in config.objectives; "": the first in the log.
    """
    from xmodal_jax.training.pair_curves import plot_pair_losses

    return plot_pair_losses(pathlib.Path(workdir), pathlib.Path(path), entry)


def use_compile_cache(folder: PATH = "") -> None:
    """Keep compiled programs in a folder, so that the next process starts in seconds; the command line does so.

    `folder` defaults to JAX_COMPILATION_CACHE_DIR, or xmodal_jax/jax in the user's cache folder.
    """
    variable = "JAX_COMPILATION_CACHE_DIR"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if folder or variable not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder) or os.path.join(home, "xmodal_jax", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
