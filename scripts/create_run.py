"""Write a run manifest: the one document two nodes must agree on. Checks it, and prints what the run asks of a miner.

A run is launched by committing the manifest's sha256 with the owner's hotkey (neurons/owner.py does it). A preset gives
model and constants; every constant can be replaced: --set timing.length=150, or whole sections in a TOML or JSON file
given with --options. A round is as short as links, devices and chain allow. A chain that is named decides by its tempo,
quota, uids and immunity what can be, and says whether the subnet pays at all.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed_training.errors import ConfigError
from distributed_training.files import write_whole
from distributed_training.launching import flags
from distributed_training.launching.chain import ask_chain
from distributed_training.launching.choices import (
    asked_of_round,
    check_former,
    chosen,
    pages_place,
    preset_of,
    timed,
)
from distributed_training.paths import usable_folder
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.recipes.reading import Preset, read_model, shown
from distributed_training.recipes.timing import utilisation
from distributed_training.settings.arguments import Parser
from distributed_training.settings.entry import run_main
from distributed_training.settings.flags import find, merge
from distributed_training.settings.places import HubRepo, folder_of

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts
    from distributed_training.launching.former import Former
    from distributed_training.recipes.build import First
    from distributed_training.recipes.creation import Created

# What loads torch or bittensor is imported where it is used: a wrong flag should not wait for that.


def parser() -> Parser:
    return flags.parser(__doc__ or "")


class Made(NamedTuple):
    created: Created
    tokenizer: Path | None  # its tokenizer.json, which every node needs
    first: First | None  # what it begins with, where that is nothing that a seed gives
    pages: Path | HubRepo


def build(args: argparse.Namespace, preset: Preset, former: Former | None, given: dict[str, Any],
          facts: SubnetFacts | None) -> Made:  # fmt: skip
    """Raises ConfigError."""
    place = pages_place(args, None if former is None else former.pages)
    if isinstance(place, Path) and args.text is None:
        try:
            folder_of(place)
        except ConfigError as error:
            raise ConfigError(f"--pages: {error} (scripts/build_pages.py makes one)") from None
    asked = asked_of_round(args, preset, facts)
    named, tokenizer_name, eos, first = args.model, args.tokenizer, args.eos, None
    if args.start is not None:
        from distributed_training.recipes.start import fetch_start, pretrained, tokenizer_of

        start = fetch_start(args.start)
        named, first = args.model or start, pretrained(start)
        if tokenizer_name is None:
            tokenizer_name, known = tokenizer_of(start)
            eos = eos if eos is not None else known
    if former is not None:
        tokenizer_name, eos = former.tokenizer
        nominal = args.steps or find(given, "inner.nominal_steps") or former.manifest.inner.nominal_steps
        kept = {} if asked.anything else former.bandwidth
        given, first = merge(kept, given, {"inner": {"nominal_steps": nominal}}), former.first(nominal)
    model = preset.model if named is None else read_model(named)
    from distributed_training.data.local import build_pages
    from distributed_training.recipes.creation import Choices, create_manifest, find_tokenizer
    from distributed_training.sources import open_pages

    tokenizer, file = find_tokenizer(tokenizer_name, eos, place if isinstance(place, Path) else None, model)

    def pages():
        if args.text is not None and isinstance(place, Path):
            say(f"pages: {args.text} is written as pages to {place}")
            build_pages(place, args.text, num_pages=None, say=say)
        return open_pages(place, None)

    choices = Choices(
        preset, model, tokenizer, args.seed, given, steps=args.steps, asked=asked, facts=facts, start=first
    )
    return Made(create_manifest(choices, pages, say), file, first, place)


def say(line: str) -> None:
    print(line, flush=True)


def write(manifest: RunManifest, out: Path, made: Made) -> None:
    """The run directory's files, the manifest last. Raises ConfigError rather than replace one: a new manifest is a new
    run."""
    from distributed_training.data.tokens import TOKENIZER_FILE

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if made.tokenizer is not None:
            beside = out.with_name(TOKENIZER_FILE)
            write_whole(beside, made.tokenizer.read_bytes())
            say(f"{beside}: nodes need it in their run directory; peers and the run's places give it")
        if made.first is not None:
            from distributed_training.recipes.start import write_start

            folder = write_start(manifest, made.first, out.parent)
            say(f"{folder}: round 0; the owner's node gives it to all others")
        with out.open("xb") as opened:
            opened.write(manifest.canonical())
    except FileExistsError:
        raise ConfigError(f"--out {out} exists; a new manifest is a new run, give it a new name") from None
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None


def tell(manifest: RunManifest, block_s: float, more: Sequence[str]) -> None:
    from distributed_training.averaging.memory import memory_lines
    from distributed_training.averaging.needs import needs, needs_lines
    from distributed_training.training.bounds import MOST_PARAMETERS
    from distributed_training.training.model import parameter_shapes

    t, a = manifest.timing, manifest.access
    say(f"{manifest.name}: sha256 {manifest.sha256}")
    when = f"round 0 starts at block {t.first_block}; a round is {t.length} blocks"
    root = f"initial state root {manifest.model.initial_root}"
    shapes = parameter_shapes(manifest.model.config, MOST_PARAMETERS)
    asks = needs(manifest, sum(math.prod(shape) for _, shape in shapes), block_s)
    lines = [when, root, *needs_lines(manifest, asks), *memory_lines(manifest, shapes), utilisation(t)]
    if a.hotkeys or a.coldkeys:
        lines.append(
            f"only {len(a.hotkeys)} hotkeys and those of {len(a.coldkeys)} coldkeys may mine; strangers can register "
            f"all the same, so there are pages for {manifest.max_uids} uids"
        )
    for line in (*lines, *more):
        say(f"  {line}")


def check(args: argparse.Namespace) -> int:
    """A manifest that is there."""
    manifest, preset = load_manifest(args.check), preset_of(args)
    answer = ask_chain(args, manifest.netuid, manifest.public.run_key)
    from distributed_training.recipes.build import check_timing
    from distributed_training.recipes.subnet_fit import check_subnet

    if answer is None:
        check_timing(manifest, args.tempo or preset.tempo)
    else:
        check_subnet(manifest, answer.facts)
    block_s = preset.block_s if answer is None else answer.facts.block_s
    tell(manifest, block_s, [] if answer is None else answer.lines(manifest))
    return 0


def create(args: argparse.Namespace) -> int:
    if args.out is not None:
        if args.out.exists():  # said before the model is built
            raise ConfigError(f"--out {args.out} exists; a new manifest is a new run, give it a new name")
        usable_folder(args.out.parent)
    preset, former = preset_of(args), None
    if args.former is not None:
        check_former(args)
        from distributed_training.launching.former import find_former

        former = find_former(args.former)
        preset = former.preset(preset)
    given = chosen(args, preset)
    run_key = find(given, "public.run_key") or preset.sections["public"]["run_key"]
    answer = ask_chain(args, given.get("netuid") or preset.sections["netuid"], run_key)
    facts = None if answer is None else answer.facts
    made = build(args, preset, former, timed(args, given, facts), facts)
    manifest = made.created.manifest
    if args.out is not None:
        write(manifest, args.out, made)
    allowed = f"the pages allow {made.created.steps:,} steps a round to each of {manifest.max_uids} uids"
    more = [allowed, *([] if answer is None else answer.lines(manifest))]
    tell(manifest, preset.block_s if facts is None else facts.block_s, more)
    if args.out is not None:
        say(f"wrote {args.out}\nnext  {flags.owner_command(args, manifest.netuid, made.pages)}")
    return 0


def show(preset: str, out: Path | None) -> int:
    if out is None:
        print(preset, end="")
        return 0
    if out.exists():
        raise ConfigError(f"--out {out} exists; give the copy of the preset a new name")
    write_whole(out, preset.encode())
    say(f"wrote {out}: change it, then --preset {out}")
    return 0


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.show_preset is not None:
        return show(shown(args.show_preset), args.out)
    return create(args) if args.check is None else check(args)


if __name__ == "__main__":
    # What goes wrong is told in one line, which a log of the places of pages would only say twice.
    logging.getLogger("distributed_training").setLevel(logging.ERROR)
    sys.exit(run_main(lambda: main(sys.argv[1:])))
