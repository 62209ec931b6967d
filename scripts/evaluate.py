"""Evaluate a published checkpoint: held-out loss, perplexity, and a sample of generated text."""

from __future__ import annotations

import argparse
import sys
import time

from distributed_training.settings.arguments import Parser, checkpoint_arguments, place, whole
from distributed_training.settings.entry import run_main

DESCRIPTION = """\
Load a published state of a run and measure it on the run's held-out text, as the run itself does; then let it write.
"""
EPILOG = """\
examples:
  python scripts/evaluate.py --run-dir runs/local --prompt 'def main('
  python scripts/evaluate.py ORG/NAME --revision TAG --pages hub:ORG/PAGES
"""


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, epilog=EPILOG)
    checkpoint_arguments(made)
    made.add_argument(
        "--pages", type=place, metavar="PLACE", help="folder or hub:ORG/NAME of the pages (default: RUN_DIR/pages)"
    )
    made.add_argument("--prompt", default="", metavar="TEXT", help="what the sample begins with (default: nothing)")
    made.add_argument("--tokens", type=whole(0, 100_000, "tokens"), default=100, metavar="N", help="its length")
    made.add_argument("--seed", type=whole(0, 2**63 - 1, "a seed"), default=0, metavar="N", help="of the sample")
    made.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or mps (default: cpu)")
    return made


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser().parse_args(arguments)
    if options.pages is None and options.run_dir is None:
        parser().error("give --pages, or --run-dir of the run, for the held-out text")
    return options


def evaluate(options: argparse.Namespace) -> None:
    # Late: they load torch, and a wrong flag should not wait for that.
    from distributed_training.data.tokens import load_tokenizer
    from distributed_training.operator.evaluate import available, heldout_loss, perplexity, sample
    from distributed_training.operator.published import cache, find, trusted_manifest
    from distributed_training.operator.verify import verify_files
    from distributed_training.protocol.wire import decode_carry
    from distributed_training.roles.joining.published import TOKENIZER_FILE, expected_layout
    from distributed_training.sources import open_pages

    device = available(options.device)
    store, ref = find(options)
    _, opened = verify_files(store, ref, trusted_manifest(options))
    described, manifest = opened.described, opened.manifest
    layout = expected_layout(described, ref.location, manifest)
    params = layout.read(opened.folder, described.applied, decode_carry(described.carry)).params
    tokenizer = load_tokenizer(manifest.data.tokenizer, opened.folder / TOKENIZER_FILE, manifest.data.eos_id)
    pages = options.run_dir / "pages" if options.pages is None else options.pages
    source = open_pages(pages, options.run_dir or cache(options))
    started = time.monotonic()
    loss = heldout_loss(params, manifest, source, tokenizer, device)
    print(f"checkpoint of round {ref.round}: {ref.location}")
    print(f"held-out loss    {loss:.6f} nats per token ({time.monotonic() - started:.1f} s on {device})")
    print(f"perplexity       {perplexity(loss):.4f}")
    if options.tokens:
        print(f"--- a sample (seed {options.seed})")
        print(sample(params, manifest, tokenizer, options.prompt, options.tokens, options.seed))


def main(arguments: list[str] | None = None) -> int:
    evaluate(parse(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
