"""Evaluate a published checkpoint: held-out loss and a sample of its text, or benchmarks over all checkpoints."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

from distributed_training.settings.arguments import Parser, checkpoint_arguments, new_file, place, whole
from distributed_training.settings.entry import run_main

DESCRIPTION = """\
Load a published state of a run and measure it on the run's held-out text, as the run itself does; then let it write.
With --tasks it does benchmarks of lm-evaluation-harness instead (an optional extra: it says how to install it).
"""
EPILOG = """\
Tasks that tell small models (100 million parameters) apart, with the accuracy of chance alone:
  lambada_openai  the last word of a paragraph       chance 0
  blimp           which of two sentences is English  chance 1/2 (of 67 tasks)
  piqa            how everyday things are done       chance 1/2
  arc_easy sciq   questions of school and science    chance 1/4
  hellaswag       how a story goes on                chance 1/4; moves late

Any other of the harness works too, and your own: a .yaml file of the harness's form, its data files beside it. Results
go to benchmarks.json beside the checkpoints; the live page shows them, and so does the owner's next model card.
"""
EXAMPLES = """\
  python scripts/evaluate.py --run-dir runs/local --prompt 'def main('
  python scripts/evaluate.py ORG/NAME --revision TAG --pages hub:ORG/PAGES
  python scripts/evaluate.py newest --tasks arc_easy,piqa --all-tags --limit 200
  python scripts/evaluate.py ORG/NAME --tasks mine.yaml --all-tags --device cuda
"""


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES, epilog=EPILOG)
    checkpoint_arguments(made)
    add = made.group("the held-out loss, and a text")
    add("--pages", type=place, metavar="PLACE", help="folder or hub:ORG/NAME of the pages (default: RUN_DIR/pages)")
    add("--prompt", default="", metavar="TEXT", help="what the sample begins with (default: nothing)")
    add("--tokens", type=whole(0, 100_000, "tokens"), default=100, metavar="N", help="its length")
    add("--seed", type=whole(0, 2**63 - 1, "a seed"), default=0, metavar="N", help="of the sample")
    add = made.group("benchmarks")
    add("--tasks", metavar="NAME,...", help="benchmarks to do instead, by name or .yaml file")
    add("--all-tags", action="store_true", help="on every checkpoint of the run that is there")
    add("--limit", type=whole(1, 10**9, "samples"), metavar="N", help="the first N samples of each task (default: all)")
    help_ = "of the benchmarks (default: benchmarks.json beside the checkpoints; for a repository, here)"
    add("--results", type=new_file, metavar="FILE", help=help_)
    add = made.group("what it computes with")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return made


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser().parse_args(arguments)
    if options.tasks is None and (options.all_tags or options.limit or options.results):
        parser().error("--all-tags, --limit and --results are for --tasks")
    if options.tasks is None and options.pages is None and options.run_dir is None and options.place != "newest":
        parser().error("give --pages, or --run-dir of the run, for the held-out text")
    return options


def evaluate(options: argparse.Namespace) -> None:
    # Late: they load torch, and a wrong flag should not wait for that.
    from distributed_training.operator.evaluate import heldout_loss
    from distributed_training.operator.published import cache, find, trusted_manifest
    from distributed_training.operator.sample import States, write
    from distributed_training.sources import open_pages
    from distributed_training.training.device import chosen_device
    from distributed_training.training.generate import Sampling

    device = chosen_device(options.device, mps=True)
    store, ref = find(options)
    state = States(store, trusted_manifest(options), device).load(ref)
    pages = options.run_dir / "pages" if options.pages is None else options.pages
    source = open_pages(pages, options.run_dir or cache(options))
    started = time.monotonic()
    loss = heldout_loss(state, source, device)
    print(f"checkpoint of round {ref.round}, as it began: {ref.location}")
    print(f"held-out loss    {loss:.6f} nats per token ({time.monotonic() - started:.1f} s on {device})")
    print(f"perplexity       {math.exp(min(loss, 700.0)):.4f}")
    if options.tokens:
        print(f"--- a sample (seed {options.seed})")
        written = write(state, options.prompt, Sampling(seed=options.seed), options.tokens)
        print(f"{options.prompt}{written.text}")


def benchmark(options: argparse.Namespace) -> None:
    for library in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):  # each reads it when it is imported
        os.environ.setdefault(library, "1")
    from distributed_training.checkpoints.benchmarks import FILE, add_results
    from distributed_training.operator.benchmarks import Benchmarks
    from distributed_training.operator.published import FOLDER, cache, find, history, trusted_manifest
    from distributed_training.operator.sample import States
    from distributed_training.training.device import chosen_device

    device = chosen_device(options.device, mps=True)
    store, ref = find(options)
    print("reading the data of the tasks", flush=True)
    benchmarks = Benchmarks(options.tasks.split(","), cache(options), options.limit)
    states = States(store, trusted_manifest(options), device)
    state = states.load(ref)
    store = history(options, store, state.manifest)
    beside = Path(ref.location).parent if options.run_dir is None and Path(ref.location).is_dir() else Path.cwd()
    file = options.results or (beside if options.run_dir is None else options.run_dir / FOLDER) / FILE
    for index in store.rounds() if options.all_tags else [ref.round]:
        found = ref if index == ref.round else store.find(index, None)
        if found is None:
            continue
        started, results = time.monotonic(), benchmarks.run(states.load(found))
        add_results(file, results)
        for r in results:
            error = "" if r.stderr is None else f" +- {r.stderr:.4f}"
            print(
                f"round {r.round:<6} {r.task:<20} {r.metric:<12} {r.value:.4f}{error}  ({r.samples} samples)",
                flush=True,
            )
        print(f"             in {time.monotonic() - started:.1f} s on {device}")
    print(f"results: {file}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.tasks is None:
        evaluate(options)
    else:
        benchmark(options)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
