"""The README's two commands on fresh systems: Debian suites with different Pythons, each in a folder of its own."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fresh_root import FreshSystem, check_tools, host_mirror, last_line, remove
from distributed_training.errors import ConfigError
from distributed_training.settings.arguments import new_folder

DESCRIPTION = """\
Make the smallest Debian of each suite in a folder (debootstrap) with nothing but git, certificates and python3-venv,
clone the committed tree into it, and run the README's commands there as an ordinary user. One row per suite:

  python      what scripts/setup.sh chose
  install_s   seconds of the set-up: `bash scripts/demo.sh --help`
  demo_ok     whether the demo of --demo held all checks (exit code 0)
  tests_ok    whether `bash scripts/test.sh` was green

Needs root, debootstrap, a Debian mirror and the package index that pip is set to; 10 GB of disk and half an hour for
each suite. Nothing of this machine is changed: mounts and processes live in namespaces that end with the program.
"""
SUITES = ("bookworm", "trixie", "forky")
PACKAGES = ("git", "ca-certificates", "python3-venv")
REPOSITORY = Path(__file__).resolve().parents[1]
INSTALL_S, DEMO_S, TESTS_S = 3600.0, 1800.0, 5400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--suite", choices=SUITES, nargs="+", default=list(SUITES), help="default: all three")
    add("--mirror", metavar="URL", help="of Debian's packages; default: the one of this machine's apt")
    add("--keep", type=new_folder, metavar="DIR", help="where the systems and logs are made and stay; default: removed")
    add("--demo", metavar="OPTIONS", default=DEMO, help=f"of the demo; default {DEMO!r}, about three minutes")
    add("--tests", metavar="OPTIONS", default="", help="of scripts/test.sh; default none: all tests")


DEMO = "--rounds 4 --miners 3 --validators 1"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Rows by suite; a command that failed is a failure with its last line. Raises ConfigError."""
    check_tools()
    mirror = args.mirror or host_mirror()
    rows, failures = [], []
    for suite in args.suite:
        with _folder(args.keep, suite) as folder:
            row, failed = _suite(suite, mirror, folder, args)
        rows.append(row)
        failures += failed
    return {"name": "fresh", "rows": rows, "failures": failures}


def _suite(suite: str, mirror: str, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    system = FreshSystem(folder / "root", suite, mirror)
    print(f"{suite}: a system of {mirror} in {folder}", flush=True)
    system.build(PACKAGES, folder / "debootstrap.log")
    place = system.clone(REPOSITORY, "distributed-training")
    failures: list[str] = []

    def step(name: str, command: str, timeout_s: float) -> tuple[bool, float]:
        began = time.perf_counter()
        log = folder / f"{name}.log"
        print(f"{suite}: {command}", flush=True)
        code = system.run(command, place, log, timeout_s)
        if code != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            print(tail, flush=True)
            failures.append(f"{suite}: {command} ended with {code}: {last_line(log)}")
        return code == 0, time.perf_counter() - began

    row: dict[str, Any] = {"suite": suite, "python": None, "install_s": None, "demo_ok": None, "tests_ok": None}
    installed, seconds = step("install", "bash scripts/demo.sh --help", INSTALL_S)
    if installed:
        row["install_s"] = round(seconds, 1)
        step("python", ".venv/bin/python -c 'import platform; print(platform.python_version())'", 60.0)
        row["python"] = last_line(folder / "python.log")
        row["demo_ok"], _ = step("demo", f"bash scripts/demo.sh --plain {args.demo}", DEMO_S)
        row["tests_ok"], _ = step("tests", f"bash scripts/test.sh {args.tests}".strip(), TESTS_S)
    return row, failures


@contextmanager
def _folder(keep: Path | None, suite: str) -> Iterator[Path]:
    if keep is not None:
        folder = keep / suite
        if folder.exists():
            raise ConfigError(f"{folder} is there already; a fresh system needs a new folder")
        folder.mkdir(parents=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="dt-fresh-"))
    try:
        folder.chmod(0o755)  # the ordinary user inside passes through it
        yield folder
    finally:
        remove(folder)
