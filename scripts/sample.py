"""Let a published model write: the newest checkpoint beside the one of ten rounds ago."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from distributed_training.settings.arguments import Parser, checkpoint_arguments, real, whole
from distributed_training.settings.entry import run_main

if TYPE_CHECKING:
    from distributed_training.operator.sample import State

MAX_SAID = 200_000  # characters that a chat keeps: more than any context
DESCRIPTION = """\
Text from a run's newest checkpoint, then from the one of ten rounds ago, or the oldest there is: what ten rounds of
training changed. REPO_OR_DIR may also be `newest`, the run in ./runs that was made last, or the folder of a run.
It works at the lowest priority and on one thread, so that it may be used beside nodes that train.
"""
EPILOG = """\
With --chat what you type is continued, then what you type next, with all that was said before as far as the model's
context goes: a model that was trained on plain text continues, it does not answer. Ctrl-C stops a text, Ctrl-D ends.
"""
EXAMPLES = """\
  python scripts/sample.py newest 'def main('
  python scripts/sample.py newest 'Once upon a time' --temperature 0
  python scripts/sample.py ORG/NAME 'Once upon a time' --revision TAG
  python scripts/sample.py runs/local/checkpoints/round-000004 'import '
  python scripts/sample.py newest --chat
"""


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES, epilog=EPILOG)
    checkpoint_arguments(made)
    made.add_argument(
        "prompt", nargs="?", default="", metavar="PROMPT", help="what the text begins with (default: nothing)"
    )
    add = made.group("the text")
    add("--chat", action="store_true", help="read prompts from the terminal, one after the other")
    add("--tokens", type=whole(1, 100_000, "tokens"), default=200, metavar="N", help="at most so many (default: 200)")
    help_ = "how bold: 0 always takes the most likely token (default: 0.8)"
    add("--temperature", type=real(0, 10, "a temperature"), default=0.8, metavar="T", help=help_)
    help_ = "draw from the N most likely tokens; 0: from all (default: 40)"
    add("--top-k", type=whole(0, 1_000_000, "tokens"), default=40, metavar="N", help=help_)
    help_ = "and from no more than have probability P together (default: 1)"
    add("--top-p", type=real(1e-6, 1, "a probability"), default=1.0, metavar="P", help=help_)
    help_ = "the same seed gives the same text on the same machine (default: 0)"
    add("--seed", type=whole(0, 2**63 - 1, "a seed"), default=0, metavar="N", help=help_)
    add = made.group("what it computes with")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--threads", type=whole(1, 1024, "threads"), default=1, metavar="N", help="of the CPU (default: 1)")
    return made


def sample(options: argparse.Namespace) -> None:
    # Late: they load torch, and a wrong flag should not wait for that.
    import torch

    from distributed_training.operator.published import find, history, trusted_manifest
    from distributed_training.operator.sample import EARLIER, States, earlier, encoded
    from distributed_training.training.device import chosen_device

    torch.set_num_threads(options.threads)
    device = chosen_device(options.device, mps=True)
    store, ref = find(options)
    states = States(store, trusted_manifest(options), device)
    state = states.load(ref)
    encoded(state.tokenizer, options.prompt)
    print(f"{ref.location}, on {device}")
    if options.chat:
        _chat(state, options)
        return
    _show(state, "", options)
    store = history(options, store, state.manifest)
    index = earlier(store.rounds(), state.round)
    found = None if index is None else store.find(index, None)
    if found is None:
        print("no earlier checkpoint is there to compare it with")
        return
    ago = state.round - found.round
    _show(states.load(found), f", {ago} rounds before" + ("" if ago == EARLIER else " (the nearest there is)"), options)


def _show(state: State, what: str, options: argparse.Namespace) -> None:
    print(f"--- round {state.round}{what}")
    _say(options.prompt)
    _, note = _written(state, options.prompt, options)
    print(f"\n({note})")


def _written(
    state: State, prompt: str, options: argparse.Namespace, stop: Callable[[], bool] = lambda: False
) -> tuple[str, str]:
    """Prints the text as it comes. Returns it, and what there is to say of it."""
    from distributed_training.operator.sample import write
    from distributed_training.training.generate import Sampling

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    done = write(state, prompt, sampling, options.tokens, stop=stop, on_text=_say)
    why = {"asked": "; stopped", "end": "; the model ended the text"}.get(done.stopped, "")
    cut = f"; the first {done.num_cut} tokens before it were cut, the context is {state.context}"
    note = f"{done.num_tokens} tokens, {done.tokens_per_s:.0f} tokens/s{why}{cut if done.num_cut else ''}"
    return done.text, note


def _chat(state: State, options: argparse.Namespace) -> None:
    print(f"round {state.round}; Ctrl-C stops a text, Ctrl-D ends")
    said, stop = options.prompt, threading.Event()
    while True:
        try:
            said += input("> ")
        except EOFError:
            print()
            return
        stop.clear()
        former = signal.signal(signal.SIGINT, lambda *_: stop.set())
        try:
            text, note = _written(state, said, options, stop.is_set)
        finally:
            signal.signal(signal.SIGINT, former)
        print(f"\n({note})")
        said = f"{said}{text}\n"[-MAX_SAID:]


def _say(text: str) -> None:
    """What a model writes may be anything: to the terminal goes what can be seen."""
    print("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text), end="", flush=True)


def main(arguments: list[str] | None = None) -> int:
    sample(parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    os.nice(19)
    sys.exit(run_main(main))
