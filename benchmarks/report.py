"""What every benchmark ends with: where it ran, and one JSON line, in a file too where one was asked for."""

import hashlib
import json
import os
import pathlib
import platform
import time
from typing import Any

import jax

from xmodal_jax.data.card import Card


def machine() -> dict[str, Any]:
    """Describe where and when it ran; cores are those that the process may use."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": processor(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def data_facts(card: Card) -> dict[str, Any]:
    """Describe what tells two preparations of one data set apart.

    Records of each split, how many labels, and a digest of their names.
    """
    names = "\n".join(card.label_names).encode()
    records = {name: split["records"] for name, split in sorted(card.splits.items())}
    return {"records": records, "labels": len(card.label_names), "label_names": hashlib.sha256(names).hexdigest()[:16]}


def processor() -> str:
    """Return the processor's name where the system tells it."""
    told = pathlib.Path("/proc/cpuinfo")
    lines = told.read_text("utf-8").splitlines() if told.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def publish(row: dict[str, Any], out: pathlib.Path | None) -> None:
    """Print `row` as one JSON line and write it to the file `out`."""
    print(json.dumps(row))
    keep(row, out)


def keep(row: dict[str, Any], out: pathlib.Path | None) -> None:
    """Write `row` to the file `out`, where one was asked for."""
    if out:
        out.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
