"""Fuzz every decoder and every exchange between nodes: what was accepted, refused and allocated, and where it ended."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError
from distributed_training.settings.arguments import Parser, file, new_file, real, whole
from distributed_training.settings.entry import run_main

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "fuzz"), str(ROOT / "tests" / "unit")]

DESCRIPTION = """\
Fuzz the decoders and RPC handlers of a node (targets in tests/fuzz). Each target runs in a process of its own.

With atheris (pip install -e '.[fuzz]') inputs are guided by coverage; without it a plain seeded mutator edits valid
samples. Both start from the same samples, check the same properties and are repeatable by their seed.
"""
EXAMPLES = """\
  python scripts/fuzz.py all --runs 20000 --seed 7
  python scripts/fuzz.py work carry --runs 1000000 --ends
  python scripts/fuzz.py --replay tests/fuzz/corpus/work/FILE.bin
"""
EPILOG = """\
An input that breaks a property is saved in tests/fuzz/corpus/TARGET and the exit code is 1. Every test run replays
that folder: commit the file together with the fix.
"""
RUNS = whole(1, 1 << 40, "inputs")
ENGINES = ("auto", "atheris", "plain")
HEAD = ("target", "inputs", "accepted", "refused", "ends", "peak_bytes", "rss_mb", "seconds", "per_second")


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES, epilog=EPILOG)
    add = made.add_argument
    add("targets", nargs="*", default=["all"], metavar="TARGET", help="names, or `all` (default)")
    add("--runs", type=RUNS, default=20_000, metavar="N", help="inputs per target (default: 20000)")
    add("--seed", type=whole(0, 2**31 - 1, "a seed"), default=1, metavar="S", help="of the mutations (default: 1)")
    add("--seconds", type=real(0.1, 1e6, "seconds"), default=3600.0, metavar="T", help="at most, per target")
    add("--engine", choices=ENGINES, default="auto", help="default: atheris if it is installed")
    add("--ends", action="store_true", help="print where the inputs of each target ended")
    add("--json", type=new_file, metavar="FILE", help="write the rows as JSON, too")
    add("--replay", type=file, nargs="+", metavar="FILE", help="run saved inputs and nothing else")
    add("--child", type=Path, help=argparse.SUPPRESS)
    return made


def targets() -> dict[str, Any]:
    from fuzz_asked import ASKED
    from fuzz_chunks import CHUNKS
    from fuzz_decoders import DECODERS
    from fuzz_files import FILES
    from fuzz_pages import PAGES
    from fuzz_rpc import RPCS
    from fuzz_structures import STRUCTURES

    return {target.name: target for target in (*ASKED, *CHUNKS, *DECODERS, *FILES, *PAGES, *RPCS, *STRUCTURES)}


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.replay:
        return replay(options.replay)
    engine = chosen_engine(options.engine)
    if options.child is not None:
        logging.getLogger("distributed_training").setLevel(logging.CRITICAL)  # refusals are what happens here
        return child(targets()[options.targets[0]], engine, options)
    known = targets()
    names = list(known) if "all" in options.targets else options.targets
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"no target {', '.join(unknown)}; expected some of {', '.join(known)}")
    rows = [run_child(name, engine, options) for name in names]
    if options.json is not None:
        options.json.write_text(json.dumps({"engine": engine, "seed": options.seed, "rows": rows}, indent=1) + "\n")
    return 1 if any(row["finding"] for row in rows) else 0


def chosen_engine(asked: str) -> str:
    found = importlib.util.find_spec("atheris") is not None
    if asked == "auto" and not found:
        print("atheris is not installed: plain seeded mutator (pip install -e '.[fuzz]' for guided fuzzing)")
    if asked == "atheris" and not found:
        raise ConfigError("--engine atheris: atheris is not installed (pip install -e '.[fuzz]')")
    return "atheris" if found and asked != "plain" else "plain"


# --- parent --------------------------------------------------------------------------------------


def run_child(name: str, engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """One target in its own process, and its row."""
    with tempfile.TemporaryDirectory(prefix="dt-fuzz-") as folder:
        report, said = Path(folder) / "row.json", Path(folder) / "said.txt"
        command = [sys.executable, __file__, name, "--child", str(report), "--engine", engine]
        command += ["--runs", str(options.runs), "--seed", str(options.seed), "--seconds", str(options.seconds)]
        with said.open("wb") as output:
            code = subprocess.run(command, stdout=output, stderr=output, timeout=options.seconds + 300).returncode
        if not report.exists():
            last = said.read_text(errors="replace")[-3000:]
            row: dict[str, Any] = dict.fromkeys(HEAD)
            row |= {"target": name, "ends": {}, "finding": f"the process ended with code {code}:\n{last}"}
        else:
            row = json.loads(report.read_text())
    show(row, first=not show.__dict__.setdefault("begun", False), ends=options.ends)
    show.__dict__["begun"] = True
    return row


def show(row: dict[str, Any], *, first: bool, ends: bool) -> None:
    if first:
        print("".join(f"{word:>14}" for word in HEAD), flush=True)
    shown = row | {"ends": len(row["ends"])}
    print("".join(f"{shown[word] if shown[word] is not None else '-':>14}" for word in HEAD), flush=True)
    if ends:
        for end, count in row["ends"].items():
            print(f"    {count:>10}  {end}")
    if row["finding"]:
        print(
            f"FINDING in {row['target']}: {row['finding']}\n  replay: python scripts/fuzz.py --replay FILE", flush=True
        )


# --- child ---------------------------------------------------------------------------------------


def child(target: Any, engine: str, options: argparse.Namespace) -> int:
    from fuzz_engine import Finding, Run, random_inputs

    run, finding = Run(target), None
    if engine == "atheris":
        guided(target.name, options)
    try:
        random_inputs(target, options.runs, options.seed, run, options.seconds)
    except Finding as error:
        finding = str(error)
    write_row(run, finding, options.child)
    return 1 if finding else 0


def write_row(run: Any, finding: str | None, path: Path) -> None:
    from fuzz_engine import max_rss_bytes

    result = run.result
    refused = result.inputs - result.accepted
    row = {
        "target": result.target, "inputs": result.inputs, "accepted": result.accepted, "refused": refused,
        "ends": dict(Counter(result.ends).most_common(40)), "peak_bytes": result.peak_bytes,
        "seconds": round(result.seconds, 1), "per_second": round(result.inputs / max(result.seconds, 1e-9)),
        "rss_mb": max_rss_bytes() >> 20, "finding": finding,
    }  # fmt: skip
    path.write_text(json.dumps(row))


def guided(name: str, options: argparse.Namespace) -> None:
    """libFuzzer through atheris; ends the process itself, because `Fuzz` never returns."""
    atheris: Any = importlib.import_module("atheris")
    for module in [m for m in sys.modules if m.split(".")[0] in ("distributed_training", "samples") or "fuzz_" in m]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["distributed_training"]):
        target = targets()[name]
    from fuzz_engine import Finding, Run
    from fuzz_mutate import mutate

    run, began = Run(target), time.monotonic()

    def one(data: bytes) -> None:
        try:
            run.feed(data)
            if run.result.inputs < options.runs and time.monotonic() - began < options.seconds:
                return
            finding = None
        except Finding as error:
            finding = str(error)
        write_row(run, finding, options.child)
        os._exit(1 if finding else 0)

    def edit(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return mutate(data, target.seeds, rng)[:max_size] if rng.random() < 0.8 else atheris.Mutate(data, max_size)

    folder = options.child.parent / "seeds"
    folder.mkdir()
    for number, data in enumerate(target.seeds):
        (folder / str(number)).write_bytes(data)
    flags = ["-max_len=16384", "-len_control=0", "-timeout=60", "-rss_limit_mb=4096", "-malloc_limit_mb=512"]
    atheris.Setup([sys.argv[0], *flags, f"-seed={options.seed}", str(folder)], one, custom_mutator=edit)
    atheris.Fuzz()


def replay(paths: list[Path]) -> int:
    """Each input once, with its memory measured; a property that breaks shows its traceback."""
    from fuzz_engine import measured, outcome, warm_up

    known = targets()
    for path in paths:
        name = path.resolve().parent.name
        if not path.is_file() or name not in known:
            raise ConfigError(f"--replay {path}: expected a file in a folder named after its target")
        target, data = known[name], path.read_bytes()
        warm_up(target)
        with measured(target, data) as peak:
            end = outcome(target, data)
        print(f"{path}: {len(data)} bytes, at most {peak[0]} allocated: {end}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
