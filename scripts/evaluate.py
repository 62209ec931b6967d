"""Evaluate a published checkpoint: held-out loss, perplexity, and a sample of generated text."""

from __future__ import annotations

import argparse
import sys
import time

from distributed_training.data.tokens import load_tokenizer
from distributed_training.errors import ConfigError, DistributedTrainingError
from distributed_training.operator.evaluate import available, heldout_loss, perplexity, sample
from distributed_training.operator.published import add_arguments, find, trusted_manifest
from distributed_training.operator.verify import verify_files
from distributed_training.protocol.wire import decode_carry
from distributed_training.roles.joining.published import TOKENIZER_FILE, expected_layout
from distributed_training.settings.arguments import Parser, whole
from distributed_training.settings.config import run_main
from distributed_training.settings.places import parse_place
from distributed_training.sources import open_pages

DESCRIPTION = """\
Load a published state of a run and measure it on the run's held-out text, as the run itself does; then let it write.
"""
EPILOG = """\
examples:
  python scripts/evaluate.py runs/local/checkpoints --run-dir runs/local --prompt 'def main('
  python scripts/evaluate.py ORG/NAME --revision TAG --pages hub:ORG/PAGES
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    add_arguments(parser)
    parser.add_argument("--pages", metavar="PLACE", help="folder or hub:ORG/NAME of the pages (default: RUN_DIR/pages)")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the sample begins with (default: nothing)")
    parser.add_argument("--tokens", type=whole(0, 100_000, "tokens"), default=100, metavar="N", help="its length")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1, "a seed"), default=0, metavar="N", help="of the sample")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or mps (default: cpu)")
    options = parser.parse_args(arguments)
    if options.pages is None and options.run_dir is None:
        parser.error("give --pages, or --run-dir of the run, for the held-out text")
    return options


def evaluate(options: argparse.Namespace) -> None:
    device = available(options.device)
    store, ref = find(options)
    _, opened = verify_files(store, ref, trusted_manifest(options))
    described, manifest = opened.described, opened.manifest
    layout = expected_layout(described, ref.location, manifest)
    params = layout.read(opened.folder, described.applied, decode_carry(described.carry)).params
    tokenizer = load_tokenizer(manifest.data.tokenizer, opened.folder / TOKENIZER_FILE, manifest.data.eos_id)
    place = options.run_dir / "pages" if options.pages is None else _place(options.pages)
    source = open_pages(place, options.run_dir or options.cache.expanduser())
    started = time.monotonic()
    loss = heldout_loss(params, manifest, source, tokenizer, device)
    print(f"checkpoint of round {ref.round}: {ref.location}")
    print(f"held-out loss    {loss:.6f} nats per token ({time.monotonic() - started:.1f} s on {device})")
    print(f"perplexity       {perplexity(loss):.4f}")
    if options.tokens:
        print(f"--- a sample (seed {options.seed})")
        print(sample(params, manifest, tokenizer, options.prompt, options.tokens, options.seed))


def _place(text: str):
    try:
        return parse_place(text)
    except ValueError as error:
        raise ConfigError(f"--pages {text}: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        evaluate(options)
    except ConfigError:
        raise
    except DistributedTrainingError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
