"""Run `xmodal plan`: in this process for the local devices, in a child process for a topology that is not here.

Once libtpu is installed on a machine without a TPU, plain jax tries to start it. The child's environment restricts it
to compiling and leaves the caller's jax as it was.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from xmodal_jax.errors import UserError
from xmodal_jax.parallel.chips import Topology, local_chip, parse_topology
from xmodal_jax.settings import Config, as_dict

INSTALL = "pip install -e '.[plan]'"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the arguments of `xmodal plan`."""
    ask = commands.add_parser("plan", help="compile the step for devices that need not exist; memory, time, verdict")
    ask.add_argument("--config", required=True, help="NAME[:variant] of a config of the package, or file.py[:variant]")
    ask.add_argument("--topology", default="local", help="local, v5e:16x16, v5p:8x8x8, v6e:16x16, v6e:16x16x2slices")
    ask.add_argument("--chip", default="", help="judge the local devices as this chip")
    ask.add_argument("--explain", action="store_true", help="which sharding rule took which leaf (nothing is compiled)")
    ask.add_argument("--out", default="", help="write the plan to this file too")
    ask.add_argument("--hlo", default="", help="write the compiled program's text to this file")
    ask.set_defaults(run=plan)


def plan(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print the plan of a config; see `add_parser` for the arguments."""
    from xmodal_jax import config_file as configs

    topology = parse_topology(args.topology, args.chip)
    refuse_unwritable("--out", args.out)
    refuse_unwritable("--hlo", args.hlo)
    config = configs.freeze(configs.load(args.config, overrides))
    if is_here(topology):
        here(config, topology, args.explain, args.out, args.hlo)
        return
    refuse_no_compiler(args.topology)
    ask_child(args, overrides, topology)


def is_here(topology: Topology) -> bool:
    """Return True where this process can plan for the topology itself."""
    return topology.local or os.environ.get("TPU_ACCELERATOR_TYPE") == topology.accelerator_type


def refuse_no_compiler(topology: str) -> None:
    """Raise UserError where the TPU compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology '{topology}' needs the TPU compiler, which is not installed; write {INSTALL}")


def refuse_unwritable(flag: str, path: str) -> None:
    """Refuse a path that cannot be written, before minutes go into its content."""
    if not path:
        return
    folder = pathlib.Path(path).parent
    if not folder.is_dir():
        raise UserError(f"{flag} '{path}': there is no folder '{folder}'; make it, or write another path")
    if pathlib.Path(path).is_dir():
        raise UserError(f"{flag} '{path}' is a folder; write a file in it")


def ask_child(args: argparse.Namespace, overrides: list[str], topology: Topology) -> None:
    """Plan in a child process, which prints. Raises SystemExit(2) if the child has told the user what is wrong."""
    # XLA_FLAGS are for this machine's devices: the TPU compiler ends the process over a flag it does not know
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = kept | child_environment(topology)
    code = subprocess.run(child_command(args, overrides), env=environment, check=False).returncode
    if code == 2:
        raise SystemExit(2)  # its sentence is on stderr already
    if code:
        raise UserError(f"the plan for '{topology.text}' ended with code {code}; its reason is above")


def child_command(args: argparse.Namespace, overrides: list[str]) -> list[str]:
    """Return the command line of the process that compiles for a topology."""
    given = [f"--{name}={getattr(args, name)}" for name in ("config", "topology", "out", "hlo") if getattr(args, name)]
    explain = ["--explain"] if args.explain else []
    return [
        sys.executable,
        "-m",
        "xmodal_jax.cli",
        "plan",
        *given,
        *explain,
        *(f"--config.{item}" for item in overrides),
    ]


def child_environment_of(topology: Topology) -> dict[str, str]:
    """Return the whole environment of the process that compiles for a topology."""
    # XLA_FLAGS are for this machine's devices: the TPU compiler ends the process over one that it does not know.
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | child_environment(topology)


def child_environment(topology: Topology) -> dict[str, str]:
    """Return the variables that the TPU compiler needs without a TPU, and those that keep jax from starting one."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": topology.accelerator_type,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken: several plans may be made at once
    }


def say(text: str) -> None:
    """Print progress to stderr, apart from the plan."""
    print(text, file=sys.stderr, flush=True)


def here(config: Config, topology: Topology, only_explain: bool = False, out: str = "", hlo: str = "") -> None:
    """Plan in this process and print."""

    def keep(text: str) -> None:
        pathlib.Path(hlo).write_text(text, "utf-8")

    text = planned(config, topology, only_explain, say, keep if hlo else None)
    print(text)
    if out:
        pathlib.Path(out).write_text(text + "\n", "utf-8")
        print(f"wrote {out}")


def planned(
    config: Config,
    topology: Topology,
    only_explain: bool = False,
    say: Callable[[str], None] = lambda _: None,
    keep_hlo: Callable[[str], None] | None = None,
) -> str:
    """Plan in this process and return the text; `keep_hlo` is called with the compiled program's."""
    from xmodal_jax.assemble import assemble_without_data
    from xmodal_jax.planning.explain import explain
    from xmodal_jax.planning.program import compile_step, topology_devices
    from xmodal_jax.planning.sheet import sheet
    from xmodal_jax.training.begin import with_facts_of_init
    from xmodal_jax.training.checkpoint import RUN_FILE
    from xmodal_jax.training.loop import make_run

    if (pathlib.Path(config.init) / RUN_FILE).is_file():  # a run that is not there yet may be planned with
        config = with_facts_of_init(config)
    devices = topology_devices(topology)
    run = make_run(assemble_without_data(config), devices)
    if only_explain:
        return "\n".join(explain(run.abstract, run.mesh))
    facts = compile_step(run, topology, say, keep_hlo)
    chip = topology.chip or local_chip(devices[0].device_kind, devices[0].memory_stats())
    return "\n".join(sheet(run, facts, topology, chip))


def plan_text(config: Config, topology: str = "local", chip: str = "", only_explain: bool = False) -> str:
    """Plan a config for a topology and return the text, in a child process where the topology is not here.

    Raises:
      UserError: an unknown topology or chip, no TPU compiler, or a plan that failed.
    """
    parsed = parse_topology(topology, chip)
    if is_here(parsed):
        return planned(config, parsed, only_explain)
    with tempfile.TemporaryDirectory() as folder:
        file, out = pathlib.Path(folder, "config.json"), pathlib.Path(folder, "plan.txt")
        file.write_text(json.dumps(as_dict(config)), "utf-8")
        given = {
            "config": str(file),
            "topology": topology,
            "chip": chip,
            "explain": only_explain,
            "out": str(out),
            "hlo": "",
        }
        refuse_no_compiler(topology)
        environment = child_environment_of(parsed)
        command = child_command(argparse.Namespace(**given), [])
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"the plan for '{topology}' failed: {done.stderr.strip().splitlines()[-1:]}")
        return out.read_text("utf-8").rstrip()
