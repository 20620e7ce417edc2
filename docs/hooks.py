"""What the site is made of besides docs/pages: pages generated from the source, and files of other folders.

mkdocs calls the functions `on_*` (https://www.mkdocs.org/user-guide/plugins/#events).
"""

import ast
import pathlib
import re
import textwrap

import cli_page
import config_page
import notebook_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results/"
MOVED = {  # pages of the site that lie elsewhere in the repository
    "launch/README.md": "howto/launch.md",
    "CHANGELOG.md": "changelog.md",
}
NAMED = re.compile(r"```python\n# (xmodal_jax/\S+\.py): (\S+)\n```")  # a block that only names a function of the source
LINK = re.compile(r"(\]\()((?:\.\./)+)([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the results and the pages of other folders."""
    made = {
        "reference/config.md": config_page.page(ROOT / "xmodal_jax"),
        "reference/cli.md": cli_page.page(),
        "tutorials/quickstart.md": notebook_page.page(ROOT / "docs" / "pages" / "tutorials" / "quickstart.ipynb"),
    }
    for source, target in MOVED.items():
        made[target] = (ROOT / source).read_text("utf-8")
    for target, text in made.items():
        files.append(File.generated(config, target, content=text))
    for path in sorted((ROOT / RESULTS).iterdir()):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository, as GitHub follows them, into links of the site."""
    depth = page.file.src_uri.count("/")

    def moved(match: re.Match) -> str:
        start, ups, path, end = match.groups()
        if ups.count("../") != depth + 2:  # inside docs/pages
            return match.group()
        target = "results/" + path.removeprefix(RESULTS) if path.startswith(RESULTS) else MOVED.get(path, path)
        return f"{start}{'../' * depth}{target}{end}"

    return LINK.sub(moved, NAMED.sub(quoted, markdown))


def quoted(match: re.Match) -> str:
    """Return the block with the code of the function or class that it names, as it stands in the source."""
    path, name = match.groups()
    text = (ROOT / path).read_text("utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in ast.iter_child_nodes(node) if getattr(child, "name", "") == part)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    code = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    return f'```python title="{path}"\n{textwrap.dedent(code)}\n```'
