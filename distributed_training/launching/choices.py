"""From the flags of `scripts/create_run.py` to fields of a manifest, and to what is asked of a round."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_training.errors import ConfigError
from distributed_training.launching.allowed import allowed
from distributed_training.launching.flags import DEFAULT
from distributed_training.paths import is_missing, typed
from distributed_training.recipes.reading import Preset, preset_names, read_document, read_preset
from distributed_training.recipes.timing import Asked
from distributed_training.settings.config import WALLETS
from distributed_training.settings.flags import find, merge
from distributed_training.settings.places import HubRepo

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts

TRAINING_SHARE = 0.4  # of what a device reaches in products of matrices
_OF_FORMER = ("model", "start", "tokenizer", "eos", "show_preset")


def preset_of(args: argparse.Namespace) -> Preset:
    """Raises ConfigError."""
    named = args.preset or DEFAULT
    path = typed(named)
    return read_preset(named if named in preset_names() or is_missing(path) else path)


def chosen(args: argparse.Namespace, preset: Preset) -> dict[str, Any]:
    """Fields of the manifest that were given. Raises ConfigError."""
    layers = [] if args.options is None else [read_document(args.options, "--options")]
    given = merge(*layers, *args.set)
    pages = args.public_pages or (str(args.pages) if isinstance(args.pages, HubRepo) else None)
    public = {"checkpoints": None if args.checkpoints is None else str(args.checkpoints), "pages": pages}
    if args.hotkey is not None:
        from distributed_training.chain.keys import load_public_key

        public["run_key"] = load_public_key(args.wallets or typed(WALLETS), args.wallet, args.hotkey).hex()
    flags = {"name": args.name, "netuid": args.netuid, "public": {k: v for k, v in public.items() if v is not None}}
    flags["access"] = allowed(args.allow) if args.allow else None
    given = merge({k: v for k, v in flags.items() if v is not None}, given)
    if given.get("netuid", preset.sections["netuid"]) in (0, None):
        raise ConfigError("--netuid N is needed, the number of the run's subnet (0 is the root, where nobody mines)")
    return given


def check_former(args: argparse.Namespace) -> None:
    """Before anything is read: what a run that goes on with another one takes from that. Raises ConfigError."""
    wrong = next((name for name in _OF_FORMER if getattr(args, name) is not None), None)
    if wrong is not None:
        raise ConfigError(f"--continue takes model, tokenizer and numbers of the former run: leave out --{wrong}")
    if args.start_in is None and find(merge({}, *args.set), "timing.first_block") is None and args.options is None:
        raise ConfigError("--continue needs to know when round 0 starts: --in 2h, or --set timing.first_block=N")


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


def asked_of_round(args: argparse.Namespace, preset: Preset, facts: SubnetFacts | None) -> Asked:
    """What was asked of the rule for a round's length, and what the chain says. Raises ConfigError."""
    if args.tflops is not None and args.step_seconds is not None:
        raise ConfigError("--tflops and --step-seconds both say how fast the expected device is; give one of them")
    told: dict[str, Any] = {}
    if args.link is not None:
        told |= {"down_mbit": args.link[0], "up_mbit": args.link[1]}
    if args.miners is not None:
        told |= {"miners": args.miners[0], "reducers": args.miners[1]}
        if args.miners[1] > args.miners[0]:
            raise ConfigError(f"--miners {args.miners[0]}/{args.miners[1]}: no more can be dialled than there are")
    if args.tflops is not None:
        told["tflops"] = _here() if args.tflops == "here" else args.tflops
        told["fastest_tflops"] = max(told["tflops"], preset.expect.fastest_tflops)
    return Asked(
        steps=args.steps,
        round_s=None if args.round_minutes is None else 60 * args.round_minutes,
        step_s=args.step_seconds,
        expect=preset.expect.model_copy(update=told) if told else None,
        block_s=None if facts is None else facts.block_s,
        tempo=args.tempo if facts is None else facts.tempo,
        quota_bytes=None if facts is None else facts.commitment_bytes,
    )


def _here() -> float:
    """TFLOP/s that training may reach on this machine."""
    from distributed_training.training.device import chosen_device
    from distributed_training.training.speed import flop_per_s

    return TRAINING_SHARE * flop_per_s(chosen_device("auto")) / 1e12


def pages_place(args: argparse.Namespace, former: Path | None = None) -> Path | HubRepo:
    """Where the pages are, or are to be built; former: those of the run that is gone on with. Raises ConfigError."""
    if args.text is None:
        place = args.pages or former
        if place is None:
            raise ConfigError("--pages PLACE is needed, the page set of the run, or --text DIR to build one")
        return place
    if args.pages is None and args.out is None:
        raise ConfigError("--text builds pages in a directory: --pages DIR, or --out FILE to have them beside it")
    place = args.pages or args.out.parent / "pages"
    if not isinstance(place, Path):
        raise ConfigError("--text builds the pages in a directory: --pages DIR")
    return place
