"""What `scripts/create_run.py` is told."""

from __future__ import annotations

import argparse
import re

from distributed_training.addresses import FILE
from distributed_training.commands import command, python
from distributed_training.recipes.reading import preset_names
from distributed_training.settings import arguments
from distributed_training.settings.arguments import (
    Parser,
    any_path,
    assignment,
    file,
    file_name,
    file_or_folder,
    place,
    real,
    whole,
)
from distributed_training.settings.config import WALLETS

EXAMPLES = """\
  python scripts/create_run.py --model my_config.json --text ~/books \\
      --netuid 38 --in 2h --subtensor.network test \\
      --wallet.name W --wallet.hotkey OWNER --out runs/mine/manifest.json
  a preset as a file to change, and a run of it
    python scripts/create_run.py --show-preset gpt2-350m --out mine.toml
    python scripts/create_run.py --preset mine.toml --link 50/20 \\
        --text ~/books --netuid 38 --in 2h --subtensor.network test \\
        --wallet.name W --wallet.hotkey OWNER --out runs/mine/manifest.json
  python scripts/create_run.py --check runs/mine/manifest.json \\
      --subtensor.network test
"""
DEFAULT = "gpt2-124m"


def parser(description: str) -> Parser:
    made = Parser(description, examples=EXAMPLES)
    add = made.group("model and data")
    add("--model", type=file_or_folder, metavar="FILE", help="config.json as published; default: the preset's")
    add("--text", type=file_or_folder, metavar="DIR", help="build the pages from this folder of text files, or file")
    add("--pages", type=place, metavar="PLACE", help="folder that scripts/build_pages.py made, or hub:ORG/NAME@COMMIT")
    add("--tokenizer", metavar="NAME|FILE", help="gpt2, bytes or a tokenizer.json; default by the model")
    add("--eos", metavar="TOKEN", help="special token of the tokenizer.json that ends a document")
    add = made.group("what it begins with")
    start = "the numbers of this model, hub:ORG/NAME[@REVISION] or a folder: config.json and safetensors"
    add("--start", type=place, metavar="REPO_OR_DIR", help=start)
    goes_on = "go on with a run under new constants: its directory, manifest, or hub:ORG/NAME[@RUN.ROUND]"
    add("--continue", dest="former", metavar="RUN", help=goes_on)
    add = made.group("subnet and time")
    add("--netuid", type=whole(1, 65535, "a subnet"), metavar="N", help="number of the subnet; needed")
    when = "when round 0 starts, from now by the chain's own blocks: 30m, 2h, 1d"
    add("--in", dest="start_in", type=arguments.duration, metavar="TIME", help=when)
    add("--tempo", type=whole(1, 2**32 - 1, "blocks"), metavar="N", help="blocks of an epoch, where no chain is asked")
    arguments.chain_arguments(made, None)
    _round(made)
    add = made.group("who is in it")
    add("--wallet.name", dest="wallet", type=file_name, default="default", metavar="NAME", help="the owner's wallet")
    speaks = "the owner's hotkey, which speaks for the run; only its public part is read"
    add("--wallet.hotkey", dest="hotkey", type=file_name, metavar="NAME", help=speaks)
    add("--wallet.path", dest="wallets", type=any_path, metavar="DIR", help=f"default {WALLETS}")
    who = "only these may mine: a hotkey, coldkey:ADDRESS, or a file of them; more than once; default: everybody"
    add("--allow", action="append", metavar="ADDRESS|FILE", help=who)
    add = made.group("where it is written and published")
    add("--out", type=any_path, metavar="FILE", help="where to write; an existing file is not replaced")
    add("--public.checkpoints", dest="checkpoints", type=place, metavar="PLACE", help="hub:ORG/NAME: checkpoints")
    add("--public.pages", dest="public_pages", metavar="PLACE", help="hub:ORG/NAME or https://...; default: --pages")
    add = made.group("constants")
    names = ", ".join(preset_names())
    preset = f"model and constants to start from: {names}, or a file; default {DEFAULT}"
    add("--preset", metavar="NAME|FILE", help=preset)
    add(
        "--show-preset",
        choices=preset_names(),
        metavar="NAME",
        help="print it as a file for --preset, or write it to --out",
    )
    add("--set", type=assignment, action="append", default=[], metavar="KEY=VALUE", help="e.g. outer.momentum=0.8")
    add("--options", type=file, metavar="FILE", help="TOML or JSON with sections to replace")
    add("--seed", type=whole(0, 2**63 - 1, "a seed"), default=0, metavar="N", help="of the initial weights; default 0")
    add("--name", metavar="NAME", help="of the run; default: the preset's name, or after the model")
    add = made.group("a manifest that is there")
    add("--check", type=file, metavar="FILE", help="only validate this manifest")
    return made


def _round(made: Parser) -> None:
    add = made.group("how long a round is; default: as short as half of it is training")
    add("--steps", type=whole(1, 1 << 20, "inner steps"), metavar="N", help="that the expected device does in a round")
    add("--round-minutes", type=real(0.1, 1e5, "minutes"), metavar="M", help="of a round")
    add("--link", type=pair("Mbit/s", real(0.001, 1e6, "Mbit/s")), metavar="DOWN/UP", help="expected Mbit/s: 100/40")
    who = "expected miners, and how many of them can be dialled: 16/12"
    add("--miners", type=pair("miners", whole(1, 4096, "miners")), metavar="N/N", help=who)
    speed = "that the expected device reaches in training; here: 0.4 of what this one multiplies"
    add("--tflops", type=here_or(real(1e-6, 1e6, "TFLOP/s")), metavar="T|here", help=speed)
    step = "of an inner step of this run on the expected device, where it is known"
    add("--step-seconds", type=real(1e-6, 1e6, "seconds"), metavar="S", help=step)


def pair(what: str, each):
    """An argument's type: two of `each` with a slash between."""

    def convert(text: str):
        found = re.fullmatch(r"([^/]+)/([^/]+)", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"expected two numbers of {what} with a slash between, not {text!r}")
        return each(found[1]), each(found[2])

    return convert


def here_or(number):
    """An argument's type: `number`, or the word here."""
    return lambda text: text if text == "here" else number(text)


def owner_command(args: argparse.Namespace, netuid: int, pages: object) -> str:
    """What launches the run; a node looks for manifest and pages in its run directory."""
    folder = args.out.parent
    manifest = None if args.out.name == "manifest.json" else args.out
    flags: list[tuple[str, object]] = [("--netuid", netuid), ("--run-dir", folder), ("--manifest", manifest)]
    flags += [("--pages", None if pages == folder / "pages" else pages), ("--checkpoints", args.checkpoints)]
    flags += [("--subtensor.network", args.network), ("--subtensor.chain_endpoint", args.endpoint)]
    flags += [("--wallet.name", args.wallet if args.hotkey else "W"), ("--wallet.hotkey", args.hotkey or "H")]
    address = ("--axon.ip", "127.0.0.2") if (args.endpoint or "").startswith(FILE) else ("--axon.external_ip", "IP")
    return command(python(), "neurons/owner.py", *flags, ("--wallet.path", args.wallets), address)
