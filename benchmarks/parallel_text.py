"""Sentences against their translations: recall of English to eight languages and back, by a run or by its tower alone.

    apt-get download fillets-ng-data && dpkg -x fillets-ng-data_*.deb fillets
    python benchmarks/parallel_text.py --folder fillets --run runs/m_clip-features --out parallel.json
    python benchmarks/parallel_text.py --folder fillets --run runs/m_clip-frozen --tower --out e5.json

The sentences are the dialogues of the game Fish Fillets NG (GPL-2, not part of this repository): those that are there
in English and all of `LANGUAGES`. Each is one query, and right is its own translation, or one of the same words. With
`--tower` both sides are the mean of the tower's own tokens of the run's field of other languages; else the field of
English and that of the other language, each through its head.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import xmodal_jax as xmodal
from xmodal_jax.assemble import words_of
from xmodal_jax.errors import UserError, output_file, run_script
from xmodal_jax.settings import as_dict

ENGLISH = "en"
LANGUAGES = ("bg", "cs", "de", "fr", "it", "nl", "ru", "sv")
LINE = re.compile(r'dialogId\("([^"]+)", "[^"]*", "((?:[^"\\]|\\.)*)"\)|dialogStr\("((?:[^"\\]|\\.)*)"\)')
BLOCK = 64


def sentences(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Read the dialogues below a folder: {id: {language: sentence}}."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("dialogs_*.lua")):
        language = path.stem.removeprefix("dialogs_")
        for key, english, text in spoken(path.read_text("utf-8", errors="replace")):
            own = found.setdefault(f"{path.parent.name}/{key}", {})
            own.setdefault(ENGLISH, english)
            if language != ENGLISH and text:
                own.setdefault(language, text)
    return found


def spoken(content: str) -> Iterator[tuple[str, str, str]]:
    """Yield (id, English sentence, translation or "") of a file of dialogues."""
    key, english = "", ""
    for name, first, other in LINE.findall(content):
        if name:
            if key:
                yield key, english, ""
            key, english = name, plain(first)
        elif key:
            yield key, english, plain(other)
            key = ""
    if key:
        yield key, english, ""


def plain(text: str) -> str:
    """Return a string of Lua as text."""
    return re.sub(r"\\(.)", r"\1", text).strip()


def complete(found: dict[str, dict[str, str]], languages: Sequence[str]) -> dict[str, list[str]]:
    """Return the sentences that are there in English and all languages: {language: [sentence]}, in one order."""
    kept = [own for own in found.values() if all(own.get(code) for code in (ENGLISH, *languages))]
    return {code: [own[code] for own in kept] for code in (ENGLISH, *languages)}


def tower_rows(run: Any, field: str, texts: Sequence[str]) -> np.ndarray:
    """Return the unit means [n,D] of the tower's own tokens of texts."""
    encoder = run.config.data.fields[field].encoder
    spec, own = run.assembly.specs[encoder], run.config.encoders[encoder]

    @jax.jit
    def mean(params: Any, ids: Any) -> Any:
        tokens = run.assembly.model.apply({"params": params}, encoder, ids, method="raw")
        mask = own.mask(ids)[..., None].astype(tokens.dtype)
        return (tokens * mask).sum(1) / jnp.maximum(mask.sum(1), 1.0)

    rows = []
    for start in range(0, len(texts), BLOCK):
        block = list(texts[start : start + BLOCK])
        ids = spec.ids(block + block[-1:] * (BLOCK - len(block)))
        rows.append(np.asarray(mean(run.params, ids))[: len(block)])
    found = np.concatenate(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def opened(workdir: str, length: int) -> Any:
    """Open a run whose encoders of words read `length` tokens: it may have been trained on names, which are shorter."""
    run = xmodal.load(workdir)
    encoders = as_dict(run.config)["encoders"]
    for name in words_of(run.config):
        encoders[name]["length"] = length
    return xmodal.load(workdir, {"encoders": encoders})


def recall(one: np.ndarray, other: np.ndarray, texts: Sequence[str]) -> float:
    """Return R@1 in percent of queries [n,E] among their translations [n,E]; equal texts are equally right."""
    numbers = np.unique(list(texts), return_inverse=True)[1]
    return 100.0 * float(np.mean(numbers[(one @ other.T).argmax(1)] == numbers))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the package was unpacked")
    parser.add_argument("--run", required=True, help="work directory of a run with a field `english` and another")
    parser.add_argument("--tower", action="store_true", help="the tower alone, on both sides")
    parser.add_argument("--length", type=int, default=32, help="tokens of a sentence that are read (default: 32)")
    parser.add_argument("--out", type=output_file, required=True, help="JSON to write")
    args = parser.parse_args(arguments)
    texts = complete(sentences(args.folder), LANGUAGES)
    if not texts[ENGLISH]:
        raise UserError(f"'{args.folder}' has no dialogues in {', '.join(LANGUAGES)}; unpack fillets-ng-data there")
    xmodal.use_compile_cache()
    run = opened(args.run, args.length)
    field = next(name for name in run.config.data.fields if name not in ("image", "english"))
    rows = {ENGLISH: tower_rows(run, field, texts[ENGLISH]) if args.tower else run.encode("english", texts[ENGLISH])}
    result: dict[str, Any] = {"sentences": len(texts[ENGLISH]), "run": pathlib.Path(args.run).name, "tower": args.tower}
    for code in LANGUAGES:
        own = tower_rows(run, field, texts[code]) if args.tower else run.encode(field, texts[code], language=code)
        to, back = recall(rows[ENGLISH], own, texts[code]), recall(own, rows[ENGLISH], texts[ENGLISH])
        result[code] = {"from English": round(to, 1), "to English": round(back, 1)}
        print(code, result[code], flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    run_script(main)
