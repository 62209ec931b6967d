"""Write a run manifest: the one document two nodes must agree on. Checks it, and prints its sha256.

    python scripts/create_run.py --recipe local --model my_gpt2.json --pages runs/my-run/pages --out manifest.json
    python scripts/create_run.py --check manifest.json --tempo 360

A run is launched by committing the sha256 with the owner's hotkey (neurons/owner.py does it). Every constant of the
recipe can be replaced: --set timing.length=150, or whole sections in a TOML or JSON file given with --options.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from distributed_training.commands import command, python
from distributed_training.errors import ConfigError
from distributed_training.files import write_whole
from distributed_training.paths import existing_folder, usable_folder
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.recipes.reading import read_document, read_model, read_recipe, recipe_names
from distributed_training.settings.arguments import Parser, any_path, file, file_or_folder, place, whole
from distributed_training.settings.entry import run_main
from distributed_training.settings.flags import merge
from distributed_training.settings.places import HubRepo

# What loads torch is imported where it is used: a wrong flag should not wait for that.


def parser() -> argparse.ArgumentParser:
    made = Parser(description=__doc__)
    add = made.add_argument
    add("--check", type=file, metavar="FILE", help="only validate this manifest")
    add("--recipe", choices=recipe_names(), default="gpt2-124m", help="model and constants to start from")
    add("--model", type=file_or_folder, metavar="FILE", help="config.json as published; default: the recipe's")
    add(
        "--pages",
        type=place,
        metavar="PLACE",
        help="directory with pages.bin (scripts/build_pages.py makes it), or hub:ORG/NAME@COMMIT",
    )
    add("--text", type=file_or_folder, metavar="DIR", help="build the pages from this folder of text files, or file")
    add("--tokenizer", metavar="NAME|FILE", help="gpt2, bytes or a tokenizer.json; default by the model")
    add("--eos", metavar="TOKEN", help="special token of the tokenizer.json that ends a document")
    add(
        "--seed",
        type=whole(0, 2**63 - 1, "a seed"),
        default=0,
        metavar="N",
        help="seed of the initial weights; default 0",
    )
    add("--options", type=file, metavar="FILE", help="TOML or JSON with sections to replace")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. outer.momentum=0.8")
    add(
        "--tempo",
        type=whole(1, 2**32 - 1, "blocks"),
        metavar="BLOCKS",
        help="blocks of the subnet's epoch, for the quota",
    )
    add("--out", type=any_path, metavar="FILE", help="where to write; an existing file is not replaced")
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


def build(args: argparse.Namespace) -> tuple[RunManifest, Path | None]:
    """The manifest, and the tokenizer.json of the run if it has one."""
    place = pages_place(args)
    layers = [] if args.options is None else [read_document(args.options, "--options")]
    overrides = merge(*layers, *(assignment(text) for text in args.set))
    model = read_recipe(args.recipe).model if args.model is None else read_model(args.model)
    if isinstance(place, Path) and args.text is None:
        try:
            existing_folder(place)
        except ConfigError as error:
            raise ConfigError(f"--pages: {error} (scripts/build_pages.py makes one)") from None
    from distributed_training.data.local import build_pages
    from distributed_training.recipes.creation import Choices, create_manifest, find_tokenizer
    from distributed_training.sources import open_pages

    tokenizer, file = find_tokenizer(args.tokenizer, args.eos, place if isinstance(place, Path) else None, model)
    choices = Choices(args.recipe, model, tokenizer, args.seed, overrides, tempo=args.tempo)

    def pages():
        if args.text is not None and isinstance(place, Path):
            say(f"pages: {args.text} is written as pages to {place}")
            build_pages(place, args.text, num_pages=None, say=say)
        return open_pages(place, None)

    return create_manifest(choices, pages, say), file


def say(line: str) -> None:
    print(line, flush=True)


def pages_place(args: argparse.Namespace) -> Path | HubRepo:
    """Where the pages are, or are to be built. Raises ConfigError."""
    if args.text is None:
        if args.pages is None:
            raise ConfigError("--pages PLACE is needed, the page set of the run, or --text DIR to build one")
        return args.pages
    if args.pages is None and args.out is None:
        raise ConfigError("--text builds pages in a directory: --pages DIR, or --out FILE to have them beside it")
    place = args.pages or args.out.parent / "pages"
    if not isinstance(place, Path):
        raise ConfigError("--text builds the pages in a directory: --pages DIR")
    return place


def write(manifest: RunManifest, path: Path, tokenizer: Path | None) -> None:
    """The manifest, and a tokenizer.json beside it if the run has one. Raises ConfigError rather than replace a file:
    a new manifest is a new run."""
    from distributed_training.data.tokens import TOKENIZER_FILE

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as made:
            made.write(manifest.canonical())
        if tokenizer is not None:
            beside = path.with_name(TOKENIZER_FILE)
            write_whole(beside, tokenizer.read_bytes())
            print(f"{beside}: every node needs it in its run directory")
    except FileExistsError:
        raise ConfigError(f"--out {path} exists; a new manifest is a new run, give it a new name") from None
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}") from None


def next_command(args: argparse.Namespace, netuid: int) -> str:
    """What launches the run; a node looks for manifest and pages in its run directory."""
    folder = args.out.parent
    flags = [("--netuid", netuid), ("--run-dir", folder)]
    if args.out.name != "manifest.json":
        flags.append(("--manifest", args.out))
    place = pages_place(args)
    if place != folder / "pages":
        flags.append(("--pages", place))
    return command(python(), "neurons/owner.py", *flags, "--wallet.name", "W", "--wallet.hotkey", "H")


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.out is not None and args.check is None and args.out.exists():  # said before the model is built
        raise ConfigError(f"--out {args.out} exists; a new manifest is a new run, give it a new name")
    if args.out is not None:
        usable_folder(args.out.parent)
    manifest, tokenizer = (load_manifest(args.check), None) if args.check is not None else build(args)
    if args.check is not None:
        from distributed_training.recipes.build import check_timing

        check_timing(manifest, args.tempo or read_recipe(args.recipe).tempo)
    if args.out is not None and args.check is None:
        write(manifest, args.out, tokenizer)
    print(f"{manifest.name}: sha256 {manifest.sha256}")
    print(f"  round 0 starts at block {manifest.timing.first_block}; a round is {manifest.timing.length} blocks")
    print(f"  initial state root {manifest.model.initial_root}")
    if args.out is not None and args.check is None:
        print(f"wrote {args.out}")
        print(f"next  {next_command(args, manifest.netuid)}")
    return 0


if __name__ == "__main__":
    # What goes wrong is told in one line, which a log of the places of pages would only say twice.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sys.exit(run_main(lambda: main(sys.argv[1:])))
