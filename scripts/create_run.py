"""Write a run manifest: the one document two nodes must agree on. Checks it, and prints what the run asks of a miner.

A run is launched by committing the manifest's sha256 with the owner's hotkey (neurons/owner.py does it). Every constant
of the recipe can be replaced: --set timing.length=150, or whole sections in a TOML or JSON file given with --options. A
chain that is named decides by its tempo, quota, uids and immunity what can be, and says whether the subnet pays at all.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed_training.addresses import FILE
from distributed_training.commands import command, python
from distributed_training.errors import ConfigError
from distributed_training.files import write_whole
from distributed_training.paths import typed, usable_folder
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.recipes.reading import read_document, read_model, read_recipe, recipe_names
from distributed_training.settings import arguments
from distributed_training.settings.arguments import (
    Parser,
    any_path,
    assignment,
    file,
    file_name,
    file_or_folder,
    place,
    whole,
)
from distributed_training.settings.config import WALLETS
from distributed_training.settings.entry import run_main
from distributed_training.settings.flags import find, merge
from distributed_training.settings.places import HubRepo, folder_of

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts
    from distributed_training.recipes.creation import Created

EXAMPLES = """\
  python scripts/create_run.py --model my_config.json --text ~/books \\
      --netuid 38 --in 2h --subtensor.network test \\
      --wallet.name W --wallet.hotkey OWNER --out runs/mine/manifest.json
  python scripts/create_run.py --check runs/mine/manifest.json \\
      --subtensor.network test
"""
# What loads torch or bittensor is imported where it is used: a wrong flag should not wait for that.


def parser() -> Parser:
    made = Parser(__doc__ or "", examples=EXAMPLES)
    add = made.group("model and data")
    add("--model", type=file_or_folder, metavar="FILE", help="config.json as published; default: the recipe's")
    add("--text", type=file_or_folder, metavar="DIR", help="build the pages from this folder of text files, or file")
    add("--pages", type=place, metavar="PLACE", help="folder that scripts/build_pages.py made, or hub:ORG/NAME@COMMIT")
    add("--tokenizer", metavar="NAME|FILE", help="gpt2, bytes or a tokenizer.json; default by the model")
    add("--eos", metavar="TOKEN", help="special token of the tokenizer.json that ends a document")
    start = "begin with the numbers of this model, hub:ORG/NAME[@REVISION] or a folder: config.json and safetensors"
    add("--start", type=place, metavar="REPO_OR_DIR", help=start)
    add = made.group("subnet and time")
    add("--netuid", type=whole(1, 65535, "a subnet"), metavar="N", help="number of the subnet; needed")
    when = "when round 0 starts, from now by the chain's own blocks: 30m, 2h, 1d"
    add("--in", dest="start_in", type=arguments.duration, metavar="TIME", help=when)
    add("--tempo", type=whole(1, 2**32 - 1, "blocks"), metavar="N", help="blocks of an epoch, where no chain is asked")
    arguments.chain_arguments(made, None)
    add = made.group("who speaks for it")
    add("--wallet.name", dest="wallet", type=file_name, default="default", metavar="NAME", help="the owner's wallet")
    speaks = "the owner's hotkey, which speaks for the run; only its public part is read"
    add("--wallet.hotkey", dest="hotkey", type=file_name, metavar="NAME", help=speaks)
    add("--wallet.path", dest="wallets", type=any_path, metavar="DIR", help=f"default {WALLETS}")
    add = made.group("where it is written and published")
    add("--out", type=any_path, metavar="FILE", help="where to write; an existing file is not replaced")
    add("--public.checkpoints", dest="checkpoints", type=place, metavar="PLACE", help="hub:ORG/NAME: checkpoints")
    add("--public.pages", dest="public_pages", metavar="PLACE", help="hub:ORG/NAME or https://...; default: --pages")
    add = made.group("constants")
    add("--recipe", choices=recipe_names(), default="gpt2-124m", help="model and constants to start from")
    add("--set", type=assignment, action="append", default=[], metavar="KEY=VALUE", help="e.g. outer.momentum=0.8")
    add("--options", type=file, metavar="FILE", help="TOML or JSON with sections to replace")
    add("--seed", type=whole(0, 2**63 - 1, "a seed"), default=0, metavar="N", help="of the initial weights; default 0")
    add("--name", metavar="NAME", help="of the run; default: the recipe's name, or after the model")
    add = made.group("a manifest that is there")
    add("--check", type=file, metavar="FILE", help="only validate this manifest")
    return made


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the manifest that were given. Raises ConfigError."""
    layers = [] if args.options is None else [read_document(args.options, "--options")]
    given = merge(*layers, *args.set)
    pages = args.public_pages or (str(args.pages) if isinstance(args.pages, HubRepo) else None)
    public = {"checkpoints": None if args.checkpoints is None else str(args.checkpoints), "pages": pages}
    if args.hotkey is not None:
        from distributed_training.chain.keys import load_public_key

        public["run_key"] = load_public_key(args.wallets or typed(WALLETS), args.wallet, args.hotkey).hex()
    flags = {"name": args.name, "netuid": args.netuid, "public": {k: v for k, v in public.items() if v is not None}}
    given = merge({k: v for k, v in flags.items() if v is not None}, given)
    if given.get("netuid", read_recipe(args.recipe).sections["netuid"]) in (0, None):
        raise ConfigError("--netuid N is needed, the number of the run's subnet (0 is the root, where nobody mines)")
    return given


class Asked(NamedTuple):
    """What the chain that was named says of the subnet, and of who speaks for the run."""

    facts: SubnetFacts
    speaker: str

    def lines(self, manifest: RunManifest) -> list[str]:
        from distributed_training.recipes.subnet_fit import subnet_notes

        return [*subnet_notes(manifest, self.facts), self.speaker]


def asked_chain(args: argparse.Namespace, netuid: int, run_key: str | None) -> Asked | None:
    if args.network is None and args.endpoint is None:
        return None
    from distributed_training.chain.keys import hotkey_address
    from distributed_training.chain.subnet import subnet_facts
    from distributed_training.operator.asking import asked

    address = hotkey_address(bytes.fromhex(run_key)) if run_key else ""

    async def ask() -> tuple[SubnetFacts, int | None]:
        async with asked(args.network or "local", args.endpoint, netuid) as chain:
            facts = await chain.ask(lambda client: subnet_facts(client, netuid))
            if not address:
                return facts, None
            return facts, await chain.ask(lambda client: client.neurons.uid(hotkey_ss58=address, netuid=netuid))

    facts, uid = asyncio.run(ask())
    if not address:
        return Asked(facts, "nobody speaks for this run: give the owner's --wallet.hotkey, or nobody finds checkpoints")
    owner = "the" if address == facts.owner_hotkey else "NOT the"
    place = f"uid {uid}" if uid is not None else f"NOT registered on subnet {netuid}, so it can announce nothing yet"
    return Asked(facts, f"the run key {address} is {owner} hotkey of the subnet's owner, {place}")


def timed(args: argparse.Namespace, given: dict[str, Any], facts: SubnetFacts | None) -> dict[str, Any]:
    """With what follows from the chain and was not chosen. Raises ConfigError."""
    if args.start_in is not None and find(given, "timing.first_block") is not None:
        raise ConfigError("--in and timing.first_block both say when round 0 starts; give one of them")
    if args.start_in is not None and facts is None:
        raise ConfigError("--in counts from a chain's newest block: name one, --subtensor.network or .chain_endpoint")
    if facts is None:
        return given
    first = {} if args.start_in is None else {"first_block": facts.block + math.ceil(args.start_in / facts.block_s)}
    return merge({"max_uids": facts.max_uids, "timing": first}, given)


def build(args: argparse.Namespace, given: dict[str, Any], facts: SubnetFacts | None) -> tuple[Created, Path | None]:
    """The run, and its tokenizer.json if it has one."""
    place = pages_place(args)
    if isinstance(place, Path) and args.text is None:
        try:
            folder_of(place)
        except ConfigError as error:
            raise ConfigError(f"--pages: {error} (scripts/build_pages.py makes one)") from None
    start, tokenizer_name = None, args.tokenizer
    if args.start is not None:
        from distributed_training.recipes.start import fetch_start, tokenizer_of

        start = args.start = fetch_start(args.start)
        tokenizer_name = tokenizer_name or tokenizer_of(start)
    named = args.model or start
    model = read_recipe(args.recipe).model if named is None else read_model(named)
    from distributed_training.data.local import build_pages
    from distributed_training.recipes.creation import Choices, create_manifest, find_tokenizer
    from distributed_training.sources import open_pages

    tokenizer, file = find_tokenizer(tokenizer_name, args.eos, place if isinstance(place, Path) else None, model)
    choices = Choices(args.recipe, model, tokenizer, args.seed, given, tempo=args.tempo, facts=facts, start=start)

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


def write(manifest: RunManifest, args: argparse.Namespace, tokenizer: Path | None) -> None:
    """The run directory's files, the manifest last. Raises ConfigError rather than replace one: a new manifest is a new
    run."""
    from distributed_training.data.tokens import TOKENIZER_FILE

    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            beside = args.out.with_name(TOKENIZER_FILE)
            write_whole(beside, tokenizer.read_bytes())
            say(f"{beside}: nodes need it in their run directory; peers and the run's places give it")
        if args.start is not None:
            from distributed_training.recipes.start import write_start

            folder = write_start(manifest, args.start, args.out.parent)
            say(f"{folder}: round 0; the owner's node gives it to all others")
        with args.out.open("xb") as made:
            made.write(manifest.canonical())
    except FileExistsError:
        raise ConfigError(f"--out {args.out} exists; a new manifest is a new run, give it a new name") from None
    except OSError as error:
        raise ConfigError(f"--out {args.out}: {error.strerror}") from None


def next_command(args: argparse.Namespace, netuid: int) -> str:
    """What launches the run; a node looks for manifest and pages in its run directory."""
    folder, place = args.out.parent, pages_place(args)
    manifest = None if args.out.name == "manifest.json" else args.out
    flags: list[tuple[str, object]] = [("--netuid", netuid), ("--run-dir", folder), ("--manifest", manifest)]
    flags += [("--pages", None if place == folder / "pages" else place), ("--checkpoints", args.checkpoints)]
    flags += [("--subtensor.network", args.network), ("--subtensor.chain_endpoint", args.endpoint)]
    flags += [("--wallet.name", args.wallet if args.hotkey else "W"), ("--wallet.hotkey", args.hotkey or "H")]
    address = ("--axon.ip", "127.0.0.2") if (args.endpoint or "").startswith(FILE) else ("--axon.external_ip", "IP")
    return command(python(), "neurons/owner.py", *flags, ("--wallet.path", args.wallets), address)


def tell(manifest: RunManifest, parameters: int, block_s: float, more: Sequence[str]) -> None:
    from distributed_training.averaging.needs import needs, needs_lines

    t = manifest.timing
    say(f"{manifest.name}: sha256 {manifest.sha256}")
    when = f"round 0 starts at block {t.first_block}; a round is {t.length} blocks"
    root = f"initial state root {manifest.model.initial_root}"
    for line in (when, root, *needs_lines(manifest, needs(manifest, parameters, block_s)), *more):
        say(f"  {line}")


def check(args: argparse.Namespace) -> int:
    """A manifest that is there."""
    manifest, recipe = load_manifest(args.check), read_recipe(args.recipe)
    asked = asked_chain(args, manifest.netuid, manifest.public.run_key)
    from distributed_training.recipes.build import check_timing, model_size
    from distributed_training.recipes.subnet_fit import check_subnet

    if asked is None:
        check_timing(manifest, args.tempo or recipe.tempo)
    else:
        check_subnet(manifest, asked.facts)
    block_s = recipe.block_s if asked is None else asked.facts.block_s
    tell(manifest, model_size(manifest.model.config), block_s, [] if asked is None else asked.lines(manifest))
    return 0


def create(args: argparse.Namespace) -> int:
    if args.out is not None:
        if args.out.exists():  # said before the model is built
            raise ConfigError(f"--out {args.out} exists; a new manifest is a new run, give it a new name")
        usable_folder(args.out.parent)
    given, recipe = chosen(args), read_recipe(args.recipe)
    asked = asked_chain(args, given.get("netuid") or recipe.sections["netuid"], find(given, "public.run_key"))
    facts = None if asked is None else asked.facts
    created, tokenizer = build(args, timed(args, given, facts), facts)
    manifest = created.manifest
    if args.out is not None:
        write(manifest, args, tokenizer)
    allowed = f"the pages allow {created.steps:,} steps a round to each of {manifest.max_uids} uids"
    more = [allowed, *([] if asked is None else asked.lines(manifest))]
    tell(manifest, created.parameters, recipe.block_s if facts is None else facts.block_s, more)
    if args.out is not None:
        say(f"wrote {args.out}\nnext  {next_command(args, manifest.netuid)}")
    return 0


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    return create(args) if args.check is None else check(args)


if __name__ == "__main__":
    # What goes wrong is told in one line, which a log of the places of pages would only say twice.
    logging.getLogger("distributed_training").setLevel(logging.ERROR)
    sys.exit(run_main(lambda: main(sys.argv[1:])))
