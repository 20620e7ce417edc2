"""An executed notebook as a page: its words, its code and what that printed and showed."""

import json
import pathlib
from collections.abc import Iterator


def page(path: pathlib.Path) -> str:
    """The Markdown of a notebook, with a link to the file."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    parts = ["".join(cell["source"]) if cell["cell_type"] == "markdown" else "\n".join(code(cell)) for cell in cells]
    link = f"[Download this notebook]({path.name})" + "{ .md-button download }"
    return "\n\n".join([parts[0], link, *parts[1:]]) + "\n"


def code(cell: dict) -> Iterator[str]:
    """The code of a cell and its outputs."""
    yield from ("```python", "".join(cell["source"]), "```")
    for output in cell["outputs"]:
        yield from ("", *shown(output))


def shown(output: dict) -> Iterator[str]:
    """One output: a picture, HTML or text."""
    data = output.get("data", {})
    if "image/png" in data:
        yield f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
    elif "text/html" in data:
        yield from ('<div class="output">', "".join(data["text/html"]), "</div>")
    else:
        text = "".join(data.get("text/plain", output.get("text", "")))
        yield from ('<div class="output" markdown>', "", "```text", text.rstrip(), "```", "", "</div>")
