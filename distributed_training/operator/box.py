"""The page's box: what two states of a run write after a prompt. For a process of its own, which serves one request at
a time; nothing heavy is imported before the first one, and never by whoever starts that process."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distributed_training.errors import expected
from distributed_training.settings.entry import explained

if TYPE_CHECKING:
    from distributed_training.operator.sample import States

LIMIT_S = 20.0  # of both texts together; a state is loaded before


class Request(BaseModel):
    """What the page may ask for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str = Field(max_length=2000)
    max_tokens: int = Field(default=100, ge=1, le=200)
    temperature: float = Field(default=0.8, ge=0, le=5, allow_inf_nan=False)
    top_k: int = Field(default=40, ge=0, le=1000)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)


def gentle() -> None:
    """To be called once in the process, before anything else: nodes that train here come first. It does not outlive
    the one that started it."""
    Thread(target=_end_with_parent, name="parent", daemon=True).start()
    import torch

    os.nice(19)
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def answer(folder: str, body: object) -> dict[str, Any]:
    """folder: with the checkpoints. body: JSON from a stranger. Returns newest and before (None: there is no earlier
    state), or error, one line."""
    try:
        return _answer(Path(folder), Request.model_validate(body))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the request"
        return {"error": f"{where[:80]}: {expected(problem)}"}
    except Exception as error:  # nobody stands behind this process to whom it could be told
        return {"error": explained(error)[0].removeprefix("error: ").replace(folder, "checkpoints")[:300]}


def _answer(folder: Path, request: Request) -> dict[str, Any]:
    from distributed_training.checkpoints.local import LocalCheckpoints
    from distributed_training.errors import ConfigError
    from distributed_training.operator.sample import earlier, write
    from distributed_training.training.generate import Sampling

    store, states = LocalCheckpoints(folder), _states(folder)
    newest = store.newest()
    if newest is None:
        raise ConfigError("no checkpoint is there yet; the owner publishes the first one with round 0")
    index = earlier(store.rounds(), newest.round)
    before = None if index is None else store.find(index, None)
    sampling = Sampling(request.temperature, request.top_k, request.top_p, request.seed)
    found: dict[str, Any] = {"newest": None, "before": None}
    for name, ref in (("before", before), ("newest", newest)):  # so that the newest stays loaded longest
        if ref is not None:
            written = write(states.load(ref), request.prompt, sampling, request.max_tokens, limit_s=LIMIT_S / 2)
            found[name] = {"round": ref.round, "tokens_per_s": written.tokens_per_s, **asdict(written)}
    return found


@cache
def _states(folder: Path) -> States:
    from distributed_training.checkpoints.local import LocalCheckpoints
    from distributed_training.operator.sample import States

    return States(LocalCheckpoints(folder), None, "cpu")
