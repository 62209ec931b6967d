"""Every causal LM family and published config files: does a run train them as plain transformers does?"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.model_forks import Forks
from benchmarks.model_page import rewrite
from distributed_training.errors import ConfigError
from distributed_training.settings.arguments import file, new_file, whole

DESCRIPTION = """\
Config files read as --model reads them, pinned in a manifest, built, trained for four steps, replayed in a process with
another hash seed, with a micro-batch of one, through an outer step, exported, and loaded by plain transformers.

  --families   a tiny config of every model type that AutoModelForCausalLM knows
  --published  the files in benchmarks/published, with the fields that published ones have; logits compared with those
               of plain transformers on the same file

Both without a choice. Rows {model, result, what}. right: everything holds, with what was said at creation; warned: and
something is doubtful; refused: one line; wrong; traceback. With --json: why plain transformers cannot train it (plain),
how logits compare (equal).
"""
PUBLISHED = Path(__file__).with_name("published")
RESULTS = ("right", "warned", "refused", "wrong", "traceback")
TOKEN_IDS = 512
GOAL_RUN, GOAL_WARNED = 165, 30
HASH_SEEDS = (1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--families", action="store_true", help="model types of the installed transformers")
    parser.add_argument("--published", action="store_true", help="published files")
    parser.add_argument("--only", metavar="NAMES", help="comma-separated names of families or files")
    parser.add_argument("--file", type=file, metavar="FILE", help="one config file instead")
    parser.add_argument("--page", type=new_file, metavar="FILE", help="write the measured part of docs/models.md there")
    cores = max(1, (os.cpu_count() or 2) // 2)
    parser.add_argument(
        "--jobs", type=whole(1, 64, "jobs"), default=cores, metavar="N", help="at once; default: cores/2"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    everything = not (args.families or args.published or args.file)
    chosen: dict[str, dict[str, Any]] = {}
    if args.file is not None:
        chosen[args.file.name] = read(args.file)
    if args.families or everything:
        chosen |= family_files()
    if args.published or everything:
        chosen |= published_files()
    if args.only is not None:
        names = args.only.split(",")
        if unknown := sorted(set(names) - set(chosen)):
            raise ConfigError(f"--only {unknown[0]}: expected some of {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in names}
    rows = measured(chosen, args.jobs)
    whole_table = args.only is None and args.file is None
    failures = bad_rows(rows) + (missed_goals(rows) if whole_table else [])
    versions = {name: version(name) for name in ("transformers", "torch")}
    if args.page is not None:
        rewrite(args.page, rows, versions)
    return {
        "name": "models",
        "rows": [{name: row[name] for name in ("model", "result", "what")} for row in rows],
        "all": rows,
        "sums": sums(rows),
        "versions": versions,
        "failures": failures,
    }


def family_files() -> dict[str, dict[str, Any]]:
    from benchmarks.model_families import families, family_config  # takes seconds

    return {name: family_config(name) for name in families()}


def published_files() -> dict[str, dict[str, Any]]:
    """With fewer token ids: their tables are the most of such small models."""
    from benchmarks.model_families import with_vocabulary  # takes seconds

    return {file.name: with_vocabulary(read(file), TOKEN_IDS) for file in sorted(PUBLISHED.glob("*.json"))}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def measured(configs: Mapping[str, dict[str, Any]], jobs: int) -> list[dict[str, Any]]:
    """One row each, in order."""
    pairs: SimpleQueue[tuple[Forks, Forks]] = SimpleQueue()
    with TemporaryDirectory() as root, ThreadPoolExecutor(jobs) as pool:
        started = [Forks(seed) for _ in range(jobs) for seed in HASH_SEEDS]
        try:
            for pair in zip(started[::2], started[1::2], strict=True):
                pairs.put(pair)

            def one(name: str) -> dict[str, Any]:
                pair = pairs.get()
                try:
                    row = {"model": name, **case(pair, Path(root) / name, configs[name])}
                    print(f"{name}: {row['result']} {row['what']}", flush=True)
                    return row
                finally:
                    pairs.put(pair)

            return list(pool.map(one, configs))
        finally:
            for forks in started:
                forks.__exit__()


def case(pair: tuple[Forks, Forks], folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Tried by one process, replayed by the other."""
    work = folder / "work"
    work.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    found = pair[0].ask("try", str(folder / "config.json"), str(work))
    if "died" in found:
        found = {"result": "traceback", "what": found["died"], "plain": None, "digest": "", "equal": None}
    if found["result"] in ("right", "warned"):
        again = pair[1].ask("replay", str(work))
        if again.get("digest") != found["digest"]:
            found |= {"result": "wrong", "what": f"a replay gives other bits ({again.get('died', 'another digest')})"}
    shutil.rmtree(folder)
    return found


def sums(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many of each result, apart for what plain transformers trains and what it does not; printed too."""
    counted: dict[str, dict[str, int]] = {}
    for title, trains in (("plain transformers trains", True), ("plain transformers does not train", False)):
        results = Counter(row["result"] for row in rows if (row["plain"] is None) == trains)
        counted[title] = {name: results[name] for name in RESULTS}
        print(f"{title}: {results.total()} ({', '.join(f'{name} {results[name]}' for name in RESULTS)})")
    return counted


def bad_rows(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"{r['model']}: {r['result']}: {r['what']}" for r in rows if r["result"] in ("wrong", "traceback")]


def missed_goals(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of families that plain transformers trains. Of published files, what is refused is judged by who reads it."""
    results = Counter(row["result"] for row in rows if row["plain"] is None and not is_published(row["model"]))
    ran = results["right"] + results["warned"]
    missed = [f"{ran} families run, at least {GOAL_RUN} expected"] if results and ran < GOAL_RUN else []
    noted = [f"{results['warned']} run with a note, at most {GOAL_WARNED} expected"]
    return missed + (noted if results["warned"] > GOAL_WARNED else [])


def is_published(name: str) -> bool:
    return name.endswith(".json")
