"""Run `xmodal plan`: in this process for the local devices, in a child process for a topology that is not here.

Once libtpu is installed on a machine without a TPU, plain jax tries to start it. The child's environment restricts it
to compiling and leaves the caller's jax as it was.
"""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys

from xmodal_jax.config import Config
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.chips import Topology, local_chip, parse_topology

INSTALL = "pip install 'xmodal_jax[plan]'"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the arguments of `xmodal plan`."""
    ask = commands.add_parser("plan", help="compile the step for devices that need not exist; memory, time, verdict")
    ask.add_argument("--config", required=True, help="configs/NAME.py[:variant]")
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
    if topology.local or os.environ.get("TPU_ACCELERATOR_TYPE") == topology.accelerator_type:
        here(config, topology, args.explain, args.out, args.hlo)
        return
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology '{args.topology}' needs the TPU compiler, which is not installed; write {INSTALL}")
    ask_child(args, overrides, topology)


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
    from xmodal_jax.assemble import assemble_without_data
    from xmodal_jax.plan.explain import explain
    from xmodal_jax.plan.program import compile_step, topology_devices
    from xmodal_jax.plan.sheet import sheet
    from xmodal_jax.train.loop import make_run

    devices = topology_devices(topology)
    run = make_run(assemble_without_data(config), devices)
    if only_explain:
        lines = list(explain(run.abstract, run.mesh))
    else:

        def keep(text: str) -> None:
            pathlib.Path(hlo).write_text(text, "utf-8")

        facts = compile_step(run, topology, say, keep if hlo else None)
        chip = topology.chip or local_chip(devices[0].device_kind, devices[0].memory_stats())
        lines = list(sheet(run, facts, topology, chip))
    print("\n".join(lines))
    if out:
        pathlib.Path(out).write_text("\n".join(lines) + "\n", "utf-8")
        print(f"wrote {out}")
