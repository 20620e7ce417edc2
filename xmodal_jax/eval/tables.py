"""Format the result of an evaluation as tables: aligned text for the terminal, and the same rows for the report."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flax.traverse_util import flatten_dict

from xmodal_jax import origin
from xmodal_jax.data.config import PAIR
from xmodal_jax.data.text import cut_words
from xmodal_jax.eval.languages import ranked, told_apart

Tables = dict[str, Any]

CEILING = "best possible (captions repeat)"
RIGHT = {
    "same": "Right is any picture whose captions hold the same text, in both directions.",
    "own": "Right is a picture's own captions alone, and a caption's own picture.",
}
COLLAPSED = 0.8  # of "alike" in code_tables.py; trained codes are below 0.3
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


@dataclass(frozen=True)
class Row:
    """One way to rank: the pictures, the ranking's name, and its `retrieval.summary` (with "seconds" if measured)."""

    view: str
    name: str
    summary: Tables


@dataclass(frozen=True)
class Grid:
    """A table of texts: column heads and rows of the same length."""

    head: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        """Align the columns: the texts of the first two to the left, numbers to the right."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        cells = [
            [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
            for line in lines
        ]
        head, *rows = ["  ".join(line).rstrip() for line in cells]
        return "\n".join([head, "-" * len(head), *rows])


def sections(result: Tables) -> Iterator[tuple[str, Tables]]:
    """Yield (name, tables) of each view, and of their mean if there are several."""
    yield from result["views"].items()
    if len(result["views"]) > 1:
        yield "mean of the views", result["mean"]


def retrieval_rows(result: Tables) -> list[Row]:
    """List all rows of retrieval that `eval.evaluate.evaluate` measured, view by view."""
    rows = []
    for view, tables in sections(result):
        rows += rows_of(view, tables, scorer_in(result))
    if "ensemble" in result:
        rows.append(Row("views averaged", "embeddings", result["ensemble"]))
    return rows


def scorer_in(result: Tables) -> str:
    """Return the name of the pair score of a result; of one that does not tell, "ITM"."""
    return result.get("scorer", "ITM")


def rows_of(view: str, tables: Tables, scorer: str) -> Iterator[Row]:
    """Yield the rows of retrieval of one view; `scorer` names the pair score."""
    yield Row(view, "embeddings", tables["itc"])
    for k, summary in sorted(tables.get("rerank", {}).items(), key=lambda entry: int(entry[0])):
        yield Row(view, f"{scorer} re-ranks the best {k}" if int(k) else "no re-ranking", summary)
    if "ceiling" in tables:
        yield Row(view, CEILING, tables["ceiling"])
    if "codes" in tables:
        yield Row(view, f"{tables['codes']['bits']:.0f}-bit codes (Hamming)", tables["codes"])


def fold_rows(result: Tables) -> list[Row]:
    """List the rows of means over folds, view by view."""
    found = [
        (f"{view}, {result['folds'][0]} folds", tables["folds"])
        for view, tables in sections(result)
        if "folds" in tables
    ]
    return [row for name, tables in found for row in rows_of(name, tables, scorer_in(result))]


def directions(result: Tables) -> dict[str, str]:
    """Name the two directions of a result: "i2t" and "t2i" of pictures and captions, else such as "depth>text"."""
    one, two = result.get("pair", PAIR)
    return {side: side for side in DIRECTIONS} if (one, two) == PAIR else {"i2t": f"{one}>{two}", "t2i": f"{two}>{one}"}


def recall_names(result: Tables) -> list[str]:
    """List the measures "R@k" of a result, in its order."""
    return [name for name in result["mean"]["itc"]["i2t"] if name.startswith("R@")]


def retrieval_grid(result: Tables) -> Grid:
    """Tabulate recall in percent in both directions, mR, rSum, and the seconds of re-ranking."""
    names = recall_names(result)
    head = [
        "pictures",
        "ranked by",
        *(f"{side} {name}" for side in directions(result).values() for name in names),
        "mR",
        "rSum",
        "seconds",
    ]
    return Grid(head, [retrieval_cells(row, names) for row in [*retrieval_rows(result), *fold_rows(result)]])


def retrieval_cells(row: Row, names: list[str]) -> list[str]:
    """Format one row of `retrieval_grid`."""
    seconds = f"{row.summary['seconds']:.2f}" if "seconds" in row.summary else ""
    totals = [f"{row.summary['mR']:.1f}", f"{row.summary['rSum']:.1f}"]
    return [row.view, row.name, *recall_cells(row.summary, names), *totals, seconds]


def recall_cells(summary: Tables, names: list[str]) -> list[str]:
    """Format recall in both directions; "" if a gallery is smaller than k, as one view's or a fold's may be."""
    return [f"{summary[side][name]:.1f}" if name in summary[side] else "" for side in DIRECTIONS for name in names]


def language_grid(result: Tables) -> Grid | None:
    """Tabulate the embeddings' recall of each language, the best first, and the means of every ranking over languages.

    Of several views it is their mean. None where the captions are of one language.
    """
    if "by_language" not in result:
        return None
    groups, names, own = result["by_language"], recall_names(result), result["mean"]["languages"]
    rows = []
    for code, _ in ranked(result):
        counts = [f"{own[code][name]:.0f}" for name in ("records", "lacking")]
        trained = "seen" if code in groups["seen"] else "unseen"
        rows.append([code, trained, *language_cells(own[code]["itc"], names), *counts])
    for name, trained, count in means_over(groups):
        for row in rows_of(f"mean of {count}", groups[name], scorer_in(result)):
            how = "" if row.name == "embeddings" else f", {row.name}"
            rows.append([row.view + how, trained, *language_cells(row.summary, names), "", ""])
    recalls = [f"{side} {name}" for side in directions(result).values() for name in names]
    return Grid([f"{told_apart(result['spoken'])} in", "in training", *recalls, "AR", "records", "lacking"], rows)


def language_cells(summary: Tables, names: list[str]) -> list[str]:
    """Format recall in both directions and AR, the mean of these."""
    return [*recall_cells(summary, names), f"{summary['mR']:.1f}"]


def means_over(groups: Tables) -> list[tuple[str, str, int]]:
    """List (key, words, languages) of the means of `languages.by_language`; of languages all seen or unseen, one."""
    seen, unseen = len(groups["seen"]), len(groups["unseen"])
    apart = [("mean_seen", "seen", seen), ("mean_unseen", "unseen", unseen)] if seen and unseen else []
    return [("mean", "all" if apart else "seen" if seen else "unseen", seen + unseen), *apart]


def label_grid(result: Tables) -> Grid | None:
    """Tabulate MAP of the codes by shared labels, each value beside that of random codes; None without labels."""
    found = [(view, tables["labels"]) for view, tables in sections(result) if "labels" in tables]
    if not found:
        return None
    names = list(found[0][1]["i2t"])
    rows = []
    for view, tables in sections(result):
        for bits, own in reversed(by_length(tables)) if "labels" in tables else ():
            note = "" if own is tables else f", {bits} bits"
            for side, words in DIRECTIONS.items():
                rows.append([view, words + note, *(f"{own['labels'][side][name]:.3f}" for name in names)])
    return Grid(["pictures", "direction", *names], rows)


def by_length(tables: Tables) -> list[tuple[int, Tables]]:
    """List (bits, tables) of the codes of one view, the shortest first; the last are the view's own tables."""
    short = sorted((int(bits), own) for bits, own in tables.get("nested", {}).items())
    return [*short, (round(tables.get("codes", {}).get("bits", 0)), tables)]


def codes_grid(result: Tables) -> Grid | None:
    """Tabulate bytes of an item against recall: embeddings, codes of every length, chance. None without codes."""
    names, rows = recall_names(result), []
    for view, tables in sections(result):
        if "bytes" not in tables.get("codes", {}):
            continue
        codes = tables["codes"]
        kinds = [("float32 embedding", f"{codes['float_bytes']:.0f}", tables["itc"])]
        if "int8" in tables:
            kinds.append(("int8 embedding", f"{codes['float_bytes'] / 4:.0f}", tables["int8"]))
        if "relaxed" in tables:
            size = f"{4 * codes['bits']:.0f}"
            kinds.append((f"{codes['bits']:.0f} numbers, before their signs are taken", size, tables["relaxed"]))
        lengths = reversed(by_length(tables))
        kinds += [(f"{bits}-bit code", f"{own['codes']['bytes']:.0f}", own["codes"]) for bits, own in lengths]
        kinds.append(("nothing (a random order)", "0", codes["chance"]))
        for words, size, table in kinds:
            rows.append([view, words, size, *recall_cells(table, names)])
    head = ["pictures", "stored as", "bytes", *(f"{side} {name}" for side in DIRECTIONS for name in names)]
    return Grid(head, rows) if rows else None


def notes(result: Tables) -> list[str]:
    """Describe how the numbers were made, one sentence each."""
    first = result["mean"]["itc"]
    one, two = result.get("pair", PAIR)
    if (one, two) == PAIR:
        right = RIGHT[result.get("relevance", "same")]
        over = f"i2t: image to text over {result['captions']} captions; "
        over += f"t2i: text to image over {result['records']} pictures."
    else:
        right = "Right is what belongs to the same record" + (", or has the same text." if "cut" in result else ".")
        over = f"{one}>{two}: over {result['captions']} of {two}, which belong to {result['records']} records."
    said = [f"Ties: {first['ties']}. {right}", over]
    if "languages" in result and ("cut" in result or (one, two) == PAIR):
        said.append(f"Captions in {captions_in(result)}; data set '{result['data']}'.")
    said += language_notes(result)
    if any(captioned(own) for own in result.get("evals", {}).values()):
        said.append(
            "Captions are scored in each language over the records with true ones; those lacking it are left out."
        )
    if lost := cut_words(result["cut"], result["cut"]["encoder"]) if "cut" in result else "":
        said.append(lost)
    said += origin.notes(result)
    if result["mean"].get("rerank"):
        said.append(f"Re-ranking: {combination(result)}.")
        said += ["Seconds: scoring the pairs of both directions.", *cut_shortlists(result), *worse_reranked(result)]
    if result.get("folds", [0])[0]:
        said.append(folds_note(*result["folds"]))
    if any("labels" in tables for _, tables in sections(result)):
        said.append(
            "MAP: the codes' mean average precision, relevant = shares a label; random = codes drawn at random."
        )
        if result.get("gallery"):
            said.append(f"MAP and P@N rank the splits {', '.join(result['gallery'])}; recall ranks the split itself.")
        said.append("P@N: share of relevant items among the first N, expected over ties; random = a random order.")
    said += [
        collapsed(bits, own["codes"]["alike"])
        for bits, own in by_length(result["mean"])
        if own.get("codes", {}).get("alike", 0.0) > COLLAPSED
    ]
    if codes_grid(result) is not None:
        said.append("Codes: bytes of one item; Hamming distances tie often, so the rule for ties matters.")
    return said


def captions_in(result: Tables) -> str:
    """Name the languages of the captions, with the fields of a pair that read different ones."""
    spoken = {
        field: ", ".join(code for code, count in counts.items() if count)
        for field, counts in result.get("spoken", {}).items()
    }
    if len(set(spoken.values())) > 1:
        return " and ".join(f"{codes} ({field})" for field, codes in spoken.items())
    return next(iter(spoken.values()), ", ".join(result["languages"]))


def language_notes(result: Tables) -> list[str]:
    """Describe the tables by language, and name languages that no record has; nothing where there is one language."""
    shown = [own for own in (result, *result.get("pairs", {}).values()) if "by_language" in own]
    if not shown:
        return []
    said = "By language: each is ranked by itself, over the records that have it; those lacking it are left out. "
    said += "Seen: the run was trained on captions in it. AR: the mean of the recalls."
    counts = [counts for own in shown for counts in own["spoken"].values()]
    none = dict.fromkeys(code for own in counts for code, count in own.items() if not count)
    return [said, *([f"No record of the split has captions in {', '.join(none)}."] if none else [])]


def collapsed(bits: int, alike: float) -> str:
    """Write the warning for codes that tell nothing apart."""
    return (
        f"The codes of {bits} bits are nearly all one code on a side ({alike:.2f} of 1): training collapsed; "
        "give objectives.hash_quality.balance or hash.balance more weight."
    )


def combination(result: Tables) -> str:
    """Describe the rule that combined cosines and pair scores, of ITM beside that of the papers."""
    scorer, replaces = scorer_in(result), result["rerank_score"] == "replace"
    if scorer != "ITM":
        alone = f"the score of {scorer} alone orders the shortlist (replace)"
        return alone if replaces else f"cosine + {result['weight']:.4g} x the score of {scorer} (add)"
    if replaces:
        return "the ITM log-odds l1 - l0 alone order the shortlist (replace; ALBEF orders by l1, the logit of a match)"
    weighted = f"cosine + {result['weight']:.4g} x ITM log-odds l1 - l0"
    return f"{weighted} (add; BLIP adds l1, the logit of a match, with weight 1)"


def cut_shortlists(result: Tables) -> list[str]:
    """Return a sentence if shortlists were to be longer than the gallery."""
    asked, longest = result.get("rerank", []), max(map(int, result["mean"]["rerank"]))
    above = [str(k) for k in asked if k > longest]
    return [f"Re-ranking the best {', '.join(above)} was asked for; the gallery ends at {longest}."] if above else []


def worse_reranked(result: Tables) -> list[str]:
    """Return a sentence if no shortlist that was re-ranked is better than the embeddings alone."""
    alone, best = result["mean"]["itc"]["rSum"], max(own["rSum"] for own in result["mean"]["rerank"].values())
    if best >= alone:
        return []
    return [f"Re-ranking makes this set worse (rSum {alone:.1f} -> {best:.1f} at best): search it without re-ranking."]


def folds_note(count: int, pictures: int) -> str:
    """Describe the mean over folds."""
    return (
        f"{count} folds: the mean over {count} groups of {pictures:,} pictures with their captions, "
        "in the order of the split, each ranked by itself (COCO's 1K test: 5 of 1,000)."
    )


def further_grids(result: Tables) -> list[tuple[str, Grid]]:
    """List (name, its numbers) of each entry of `config.evals`."""
    return [(name, scores_grid(own)) for name, own in result.get("evals", {}).items()]


COUNTS = ("records", "lacking")  # of a language's own table


def scores_grid(own: Tables) -> Grid:
    """Tabulate the numbers of one evaluation: a line for each, or for each of `captioned` languages and their mean."""
    told = captioned(own)
    if not told:
        return Grid(["measure", "value"], [[path, f"{value:.3f}"] for path, value in flat(own).items()])
    names = [name for name in own if name != "languages"]
    rows = [
        [code, *(f"{row[name]:.3f}" for name in names), *(f"{row[name]:.0f}" for name in COUNTS)]
        for code, row in told.items()
    ]
    mean = [f"mean of {len(told)}", *(f"{own[name]:.3f}" for name in names), *("" for _ in COUNTS)]
    return Grid(["captions in", *names, *COUNTS], [*rows, mean] if len(rows) > 1 else rows)


def captioned(own: Tables) -> Tables:
    """Return the tables by language of `captioning.caption_split`, which count records; {} of another evaluation."""
    told = own.get("languages")
    if not isinstance(told, dict):
        return {}
    return told if all(isinstance(row, dict) and set(COUNTS) <= set(row) for row in told.values()) else {}


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of nested dicts by path: {"itc/i2t/R@1": 12.3}."""
    return flatten_dict(tree, sep="/")


def pair_text(name: str, result: Tables) -> str:
    """Format the table of one more pair of fields for a terminal."""
    title = f"{name}: {result['records']} records, {result['captions']} of {result['pair'][1]}"
    grid = language_grid(result)
    return f"{title}\n{retrieval_grid(result)}" + (f"\n\n{grid}" if grid else "")


def as_text(result: Tables) -> str:
    """Format the tables of one evaluation for a terminal."""
    labels = label_grid(result)
    title = f"split '{result['split']}': {result['records']} records, {result['captions']} captions"
    step = f", step {result['step']}" if "step" in result else ""
    grids = [str(grid) for grid in (language_grid(result), codes_grid(result), labels) if grid]
    more = [pair_text(name, own) for name, own in result.get("pairs", {}).items()]
    more += [f"{name}\n{grid}" for name, grid in further_grids(result)]
    parts = [title + step, str(retrieval_grid(result)), *grids, *more, "\n".join(notes(result))]
    return "\n\n".join(parts)
