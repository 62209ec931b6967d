"""Write a run manifest: the one document two nodes must agree on. Checks it, and prints its sha256.

    python scripts/create_run.py --recipe local --model my_gpt2.json --pages runs/my-run/pages --out manifest.json
    python scripts/create_run.py --check manifest.json --tempo 360

A run is launched by committing the sha256 with the owner's hotkey (neurons/owner.py does it). Every constant of the
recipe can be replaced: --set timing.length=150, or whole sections in a TOML or JSON file given with --options.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed_training.data import tokens
from distributed_training.data.local import build_pages
from distributed_training.errors import ConfigError, LocalFault
from distributed_training.files import write_whole
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.recipes.build import (
    check_timing,
    make_manifest,
    read_document,
    read_model,
    read_recipe,
    recipe_names,
)
from distributed_training.settings.arguments import Parser, place
from distributed_training.settings.config import run_main
from distributed_training.settings.flags import merge
from distributed_training.sources import open_pages


def parser() -> argparse.ArgumentParser:
    made = Parser(description=__doc__)
    made.add_argument("--check", type=Path, metavar="FILE", help="only validate this manifest")
    made.add_argument("--recipe", choices=recipe_names(), default="gpt2-124m", help="model and constants to start from")
    made.add_argument("--model", type=Path, metavar="FILE", help="transformers config; default: the recipe's")
    made.add_argument(
        "--pages",
        type=place,
        metavar="PLACE",
        help="directory with pages.bin (scripts/build_pages.py makes it), or hub:ORG/NAME@COMMIT",
    )
    made.add_argument("--text", type=Path, metavar="DIR", help="build the pages from this directory of text files")
    made.add_argument("--tokenizer", metavar="NAME|FILE", help="gpt2, bytes or a tokenizer.json; default by the model")
    made.add_argument("--eos", metavar="TOKEN", help="special token of the tokenizer.json that ends a document")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the initial weights; default 0")
    made.add_argument("--options", type=Path, metavar="FILE", help="TOML or JSON with sections to replace")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. outer.momentum=0.8")
    made.add_argument("--tempo", type=int, metavar="BLOCKS", help="blocks of the subnet's epoch, for the quota")
    made.add_argument("--out", type=Path, metavar="FILE", help="where to write; an existing file is not replaced")
    return made


def assignment(text: str) -> dict[str, Any]:
    """`a.b=1` -> {"a": {"b": 1}}; the value is JSON, or text if it is not. Raises ConfigError."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {text}: expected KEY=VALUE, for example timing.length=150")
    try:
        parsed: Any = json.loads(value)
    except ValueError:
        parsed = value
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def build(args: argparse.Namespace) -> RunManifest:
    if args.pages is None:
        raise ConfigError("--pages PLACE is needed: the page set of the run")
    if args.text is not None:
        if not isinstance(args.pages, Path):
            raise ConfigError("--text builds the pages in a directory: --pages DIR")
        build_pages(args.pages, args.text, num_pages=None)
    layers = [] if args.options is None else [read_document(args.options, "--options")]
    overrides = merge(*layers, *(assignment(text) for text in args.set))
    model = read_recipe(args.recipe).model if args.model is None else read_model(args.model)
    tokenizer = None if args.tokenizer is None else tokens.choose(args.tokenizer, args.eos)
    if tokenizer is not None and (loss := tokens.loss_of_text(tokenizer)) is not None:
        print(f"note: {loss}")
    pages = open_pages(args.pages, None)
    return make_manifest(args.recipe, model, pages, init_seed=args.seed, tokenizer=tokenizer, overrides=overrides)


def write(manifest: RunManifest, path: Path, tokenizer: str | None) -> None:
    """The manifest, and a tokenizer.json beside it if the run has one. Raises ConfigError rather than replace a file:
    a new manifest is a new run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(manifest.canonical())
        if manifest.data.tokenizer == "file" and tokenizer is not None:
            beside = path.with_name(tokens.TOKENIZER_FILE)
            write_whole(beside, tokens.tokenizer_path(tokenizer).read_bytes())
            print(f"{beside}: every node needs it in its run directory")
    except FileExistsError:
        raise ConfigError(f"--out {path} exists; a new manifest is a new run, give it a new name") from None
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}") from None


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.out is not None and args.check is None and args.out.exists():  # said before the model is built
        raise ConfigError(f"--out {args.out} exists; a new manifest is a new run, give it a new name")
    try:
        manifest = load_manifest(args.check) if args.check is not None else build(args)
    except LocalFault as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    check_timing(manifest, args.tempo or read_recipe(args.recipe).tempo)
    if args.out is not None and args.check is None:
        write(manifest, args.out, args.tokenizer)
    print(f"{manifest.name}: sha256 {manifest.sha256}")
    print(f"  round 0 starts at block {manifest.timing.first_block}; a round is {manifest.timing.length} blocks")
    print(f"  initial state root {manifest.model.initial_root}")
    if args.out is not None and args.check is None:
        print(f"wrote {args.out}")
        print(f"next  python neurons/owner.py --netuid {manifest.netuid} --run-dir {args.out.parent} ...")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
