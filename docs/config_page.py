"""The page of all config fields, read from the source: nothing is imported, so the page cannot differ from the code."""

import ast
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

NAMED = re.compile(r"(?<![\w`])((?:`\w+`, )*`\w+`): ")  # "`threads`, `prefetch`: ..." in a docstring
INNER = {"FieldConfig": "data.fields.NAME", "AugmentConfig": "data.augment"}  # sections inside `config.data`


@dataclass(frozen=True)
class Table:
    """A table of kinds: its heading, how a config writes an entry, where the kinds get their names, their base."""

    heading: str
    written: str
    file: str
    name: str
    base: str
    said: str


TABLES = (
    Table(
        "Encoders",
        "encoders.NAME",
        "models/__init__.py",
        "ENCODERS",
        "EncoderConfig",
        "Rows of `config.encoders`; `kind` is one of those below, or `FILE.py:CLASS`, "
        "[a class of your own](../howto/add-encoder.md). Sizes belong to the encoder that needs them.",
    ),
    Table(
        "Pair score",
        "scorer",
        "models/scorer.py",
        "SCORERS",
        "ScorerConfig",
        "`config.scorer`: the score of a pair beyond the cosine, one for training, evaluation and search.",
    ),
    Table(
        "Objectives",
        "objectives.NAME",
        "objectives/__init__.py",
        "OBJECTIVES",
        "Objective",
        "Entries of `config.objectives`; `kind` is the entry's own name where it is left out, or `FILE.py:CLASS`, "
        "[a class of your own](../howto/add-objective.md).",
    ),
    Table(
        "Evaluations",
        "evals.NAME",
        "eval/evaluations.py",
        "EVALUATIONS",
        "Evaluation",
        "Entries of `config.evals`; `kind` as for objectives, or [a class of your own](../howto/add-evaluation.md).",
    ),
)
HEAD = """# Config

Every field with its type, its default and its meaning, generated from the dataclasses. On the command line a field is
`--config.SECTION.FIELD=VALUE`, in a config file `config.section.field = value`; a field that does not exist is refused
with the nearest one that does. `xmodal config CONFIG` prints the same for one config, with its values.

Numbers of steps may be written in epochs (`"2 epochs"`); a schedule is a number, or points `((step, value), ...)`
joined by straight lines.
"""


@dataclass(frozen=True)
class Field:
    """One field of a dataclass: its type, default, limits and meaning, each as text."""

    name: str
    kind: str
    default: str
    limits: str
    meaning: str


@dataclass(frozen=True)
class Class:
    """A dataclass of the source: its bases, what its docstring says of the whole, and the fields it writes itself."""

    name: str
    bases: list[str]
    said: str
    own: dict[str, Field] = field(default_factory=dict)


def classes(package: pathlib.Path) -> dict[str, Class]:
    """Return all dataclasses of the package by name."""
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted(package.rglob("*.py"))]
    everywhere = {name: value for tree in trees for name, value in constants(tree).items()}
    nodes = [(node, everywhere | constants(tree)) for tree in trees for node in tree.body]
    found = [
        read_class(node, known)
        for node, known in nodes
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(x) for x in node.decorator_list)
    ]
    return {one.name: one for one in found}


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the values that a module gives to names."""
    lines = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in lines for target in node.targets if isinstance(target, ast.Name)}


def read_class(node: ast.ClassDef, known: dict[str, ast.expr]) -> Class:
    """Return a dataclass, with the meanings that its docstring gives to fields moved to the fields."""
    said, meanings = told(ast.get_docstring(node) or "")
    own = {one.name: one for one in fields(node, known)}
    for name, one in own.items():
        own[name] = replace(one, meaning=one.meaning or meanings.get(name, ""))
    return Class(node.name, [ast.unparse(base).rpartition(".")[2] for base in node.bases], said, own)


def told(doc: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into what it says of the whole and its "`field`: meaning" sentences by field."""
    parts, meanings = NAMED.split(doc), {}
    said = parts[0]
    for names, text in zip(parts[1::2], parts[2::2], strict=True):
        text, _, rest = text.partition("\n\n")
        meanings |= dict.fromkeys(re.findall(r"`(\w+)`", names), tidy(text))
        said += f"\n\n{rest}" if rest else ""
    return said.strip().removesuffix(";"), meanings


def tidy(text: str) -> str:
    """Return a meaning on one line that begins and ends like a sentence."""
    text = " ".join(text.split()).removesuffix(";")
    return text[:1].upper() + text[1:]


def fields(node: ast.ClassDef, known: dict[str, ast.expr]) -> Iterator[Field]:
    """Yield the fields that a class writes itself."""
    for line, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
            continue
        kind = ast.unparse(line.annotation)
        if "ClassVar" in kind:
            continue
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        default, limits = valued(line.value, known)
        yield Field(line.target.id, kind, default, limits, tidy(text) if isinstance(text, str) else "")


def valued(value: ast.expr, known: dict[str, ast.expr]) -> tuple[str, str]:
    """Return the default that an expression gives a field, and the field's limits."""
    if isinstance(value, ast.Name) and value.id in known:
        return valued(known[value.id], known)
    if not isinstance(value, ast.Call):
        return ast.unparse(value), ""
    name, given = ast.unparse(value.func), {word.arg: word.value for word in value.keywords}
    if name == "limited":
        return valued(value.args[0], known)[0], limits_of(given, known)
    if name == "positive":
        return valued(value.args[0], known)[0], "above 0"
    if "default_factory" in given:
        return ("{}" if ast.unparse(given["default_factory"]) == "dict" else "image and text"), ""
    return "", ""  # a section of its own


def limits_of(given: dict[str | None, ast.expr], known: dict[str, ast.expr]) -> str:
    """Return what `limited(...)` holds a field to."""
    if "among" in given:
        values = choices(given["among"], known)
        return f"one of {values}" if values else ""
    least, most = (ast.unparse(given[key]) if key in given else "" for key in ("least", "most"))
    return f"{least} to {most}" if most else f"{least} or more" if least else ""


def choices(among: ast.expr, known: dict[str, ast.expr]) -> str:
    """Return the values that a field may take, "" where they are computed."""
    if isinstance(among, ast.Call):  # tuple(STAGES)
        among = among.args[0]
    if isinstance(among, ast.Name):
        among = known[among.id]
    parts = among.keys if isinstance(among, ast.Dict) else among.elts if isinstance(among, ast.Tuple) else [among]
    plain = [part for part in parts if isinstance(part, ast.Constant)]
    return ", ".join(f"`{ast.unparse(part)}`" for part in plain) if len(plain) == len(parts) else ""


def kinds(package: pathlib.Path, file: str, name: str) -> dict[str, str]:
    """Return {name of a kind: class} of a table such as `ENCODERS`."""
    for node in ast.parse((package / file).read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            assert isinstance(node.value, ast.Dict)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {ast.literal_eval(key): ast.unparse(value) for key, value in pairs if key is not None}
    raise LookupError(f"{file} has no table {name}")


def family(known: dict[str, Class], name: str) -> list[Class]:
    """Return a class after the classes that it is derived from, those of other packages left out."""
    own = known[name]
    return [one for base in own.bases if base in known for one in family(known, base)] + [own]


def table(rows: dict[str, Field]) -> Iterator[str]:
    """Yield the Markdown table of some fields."""
    if not rows:
        return
    yield from ("", "| field | type | default | meaning |", "| --- | --- | --- | --- |")
    for one in rows.values():
        meaning = " ".join(filter(None, [one.meaning, f"({one.limits})" if one.limits else ""]))
        cells = (f"`{one.name}`", f"`{one.kind}`", f"`{one.default}`" if one.default else "", meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def described(known: dict[str, Class], name: str, base: str = "") -> Iterator[str]:
    """Yield what a class and its bases say, and the table of their fields, without those of the class `base`."""
    said, rows = [], {}
    shared = known[base].own if base and name != base else {}
    for one in family(known, name):
        if one.name == base and name != base:
            continue
        said.append(one.said)
        meant = {key: (rows.get(key) or shared.get(key) or row).meaning for key, row in one.own.items()}
        rows |= {key: replace(row, meaning=row.meaning or meant[key]) for key, row in one.own.items()}
    yield from ("", *"\n\n".join(filter(None, said[-1:] + said[:-1])).splitlines())
    yield from table({key: row for key, row in rows.items() if key != "kind" or not base})


def section_lines(known: dict[str, Class]) -> Iterator[str]:
    """Yield the sections of a config, in the order in which `Config` has them."""
    whole = known["Config"]
    plain = {name: one for name, one in whole.own.items() if one.kind not in known}
    yield from ("## `config`", *table(plain))
    for name, one in whole.own.items():
        if one.kind in known:
            yield from (f"## `config.{name}`", *described(known, one.kind))
        if one.kind == "DataConfig":
            for inner, place in INNER.items():
                yield from (f"### `config.{place}`", *described(known, inner))


def kind_lines(known: dict[str, Class], package: pathlib.Path, one: Table) -> Iterator[str]:
    """Yield the section of one table of kinds."""
    start = one.written.partition(".")[0]
    yield from (f"## {one.heading}", "", one.said, "")
    shared = {key: row for key, row in known[one.base].own.items() if key != "kind"}
    if shared:
        yield from ("All of them have:", *table(shared))
    for kind, name in kinds(package, one.file, one.name).items():
        yield from (f"### `{kind}` {{ #{start}-{kind} }}", "", *described(known, name, one.base))


def page(package: pathlib.Path) -> str:
    """Return the whole page."""
    known = classes(package)
    lines = [HEAD, *section_lines(known)]
    for one in TABLES:
        lines += kind_lines(known, package, one)
    return "\n".join(lines) + "\n"
