"""Tests of the benchmarks import them by name, as the scripts import each other."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
