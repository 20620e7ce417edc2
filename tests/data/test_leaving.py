"""A process whose loader hangs ends within seconds, whatever ended it: a real one, with threads that never return."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import signal, sys, threading, time
from xmodal_jax.data.loader import Loader, threads_left
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.train import train_dataset
from xmodal_jax.data.readers import InputSpec
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.processes import leaving_at_once

hung = threading.Event()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored

def hang(batch):
    hung.set()
    time.sleep(600)

def main():
    data = sys.argv[1]
    specs = {"image": InputSpec(8), "text": InputSpec(6, load_tokenizer("data", data))}
    dataset = train_dataset(data, "train", specs, DataConfig(), 0, 2, hang)
    with leaving_at_once("none", threads_left), Loader(dataset, threads=3, prefetch=6) as loader:
        loader.poll = hung_at_least
        next(loader)

def hung_at_least():
    hung.wait()
    print("hangs", flush=True)
    if sys.argv[2] == "error":
        raise UserError("the loop failed")
    loop = threading.Event()
    loop.wait()  # until the signal

main()
"""


@pytest.mark.parametrize("how", ["error", "interrupt"])
def test_a_process_with_hanging_threads_ends_within_five_seconds(tiny_set, how):
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tiny_set), how],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "hangs\n"
        began = time.monotonic()
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 5
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == (2 if how == "error" else 130), said
    assert ("xmodal: the loop failed" in said) == (how == "error") and "Traceback" not in said
