"""The outline of the package: imports point down only, functions fit a screen, files stay short, tests keep up."""

import ast
import pathlib
import re
import statistics
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "xmodal_jax"
FLOORS = (  # rooms of the package, the lowest first; a room imports from lower ones and from itself
    ("types", "errors", "presets", "terminal"),
    ("atomic",),
    ("plugins",),
    ("data",),
    ("drawing", "settings"),
    ("config_build",),
    ("parallel",),
    ("models",),
    ("convert", "config_checks"),
    ("config_file", "config_docs", "forward", "origin"),
    ("objectives", "weights"),
    ("checks",),
    ("assemble",),
    ("search",),
    ("encode",),
    ("eval",),
    ("training",),
    ("workdir",),
    ("planning", "retrieve"),
    ("report",),
    ("api",),
    ("commands",),
    ("cli",),
)


def modules() -> dict[str, pathlib.Path]:
    """{dotted name below the package: file}; the package's own face is ""."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: pathlib.Path, known: dict[str, pathlib.Path]) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xmodal_jax":
            base = node.module.removeprefix("xmodal_jax").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in known else base
        elif isinstance(node, ast.Import):
            own = (alias.name for alias in node.names if alias.name.split(".")[0] == "xmodal_jax")
            yield from (name.removeprefix("xmodal_jax").lstrip(".") for name in own)


def functions() -> list[tuple[int, str]]:
    """(lines, file:function) of every function and method of the package, decorators left out."""
    found = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((node.end_lineno - node.lineno + 1, f"{name}:{node.name}"))
    return found


NO_VERBS = frozenset("a an the what which who whose whether when where why how".split())


def test_docstrings_of_public_functions_start_with_a_verb():
    """At least not with an article or a question; properties, which are things, may."""
    found = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            first, *_ = (ast.get_docstring(node) or "-").split()
            if first.lower() in NO_VERBS:
                found.append(f"{name}:{node.lineno} {node.name}")
    assert found == []


MEDIA = ("data/records.py",)  # the names of the media that every source has
COLUMNS = ("data/formats.py", "drawing.py")  # columns of users' own lists; types of files, such as image/png
MODALITY = re.compile(r"(image|text)\d*(/.*)?")


def named_modalities(path: pathlib.Path) -> list[int]:
    """The lines where a file has "image" or "text" as a value other than pair = ("image", "text")."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pairs = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and node.value
        and getattr(getattr(node, "target", None) or node.targets[0], "id", "") in ("pair", "PAIR")
    ]
    allowed = {id(part) for pair in pairs if ast.unparse(pair) == "('image', 'text')" for part in pair.elts}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and MODALITY.fullmatch(node.value)
        and id(node) not in allowed
    ]


def test_no_modality_is_named():
    """But in configs, sources, converters and the names of media: pictures and texts are rows of tables."""
    found = {path.relative_to(PACKAGE).as_posix(): named_modalities(path) for path in modules().values()}
    rooms = ("data/sources/", "convert/")
    assert {
        name: lines for name, lines in found.items() if lines and not name.startswith((*rooms, *MEDIA, *COLUMNS))
    } == {}
    assert all(found[name] for name in (*MEDIA, "drawing.py")), "what is allowed is there"


def test_every_import_points_down():
    known = modules()
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {name.split(".")[0] for name in known} - {""}
    assert rooms == set(floor)
    upward = [
        f"{name} -> {other}"
        for name, path in known.items()
        for other in imports(path, known)
        if name
        and other
        and (mine := name.split(".")[0]) != (theirs := other.split(".")[0])
        and floor[theirs] >= floor[mine]
    ]
    assert upward == []


def test_no_files_import_each_other_in_a_circle():
    known = modules()
    left = {name: set(imports(path, known)) & set(known) - {name, ""} for name, path in known.items() if name}
    while free := [name for name, needs in left.items() if not needs]:
        left = {name: needs - set(free) for name, needs in left.items() if name not in free}
    assert left == {}


def test_functions_fit_a_screen_and_files_stay_short():
    lengths = sorted(functions())
    lines = [length for length, _ in lengths]
    assert statistics.median(lines) < 12
    assert lines[int(0.95 * len(lines))] <= 30
    assert [name for length, name in lengths if length > 60] == []
    long = {name: count for name, path in modules().items() if (count := len(path.read_text().splitlines())) > 500}
    assert long == {}


def test_tests_keep_up_with_the_source():
    def count(folder):
        return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))

    assert count(ROOT / "tests") >= 0.8 * count(PACKAGE)
