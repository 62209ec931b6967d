"""One config file through everything that a run does with a model, beside plain transformers on the same file."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import model_product as product
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import load_manifest
from distributed_training.protocol.observed import Verdict

CLOSE = 1e-5  # relative: what another order of additions may change
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Case:
    """`result`: right, warned, refused, wrong or traceback. `what`: the notes, the refusal, what is wrong or where it
    ended. `plain`: why plain transformers cannot train the file; None: it can. `digest`: of the trained steps. `equal`:
    how the logits compare with those of plain transformers on the same file and weights; None: not compared."""

    result: str
    what: str
    plain: str | None
    digest: str = ""
    equal: str | None = None


def try_file(file: Path, work: Path) -> Case:
    """Everything but the replay. `file` lies alone in its folder as config.json; `work` is an empty folder."""
    plain = said_by(lambda: plain_step(file))
    try:
        return replace(_checked(file, work), plain=plain)
    except ConfigError as error:
        line = str(error)
        return Case("refused" if len(line.splitlines()) == 1 else "wrong", line, plain)
    except AssertionError as error:
        return Case("wrong", _line(error), plain)
    except Exception as error:  # whatever a model does is a row of the table
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Case("traceback", f"{_line(error)} ({Path(place.filename).name}:{place.lineno})", plain)


def replayed(work: Path) -> str:
    """Digest of the same steps by whoever has only the manifest."""
    manifest = load_manifest(work / _MANIFEST)
    model = product.model_of(manifest)
    return product.digest_of(product.trained(manifest, model, product.rooted(manifest, model)))


def said_by(attempt: Any) -> str | None:
    """The exception of a call as one line; None: there was none."""
    try:
        attempt()
    except Exception as error:
        return _line(error)
    return None


def plain_model(file: Path, attention: str | None = None) -> Any:
    """What transformers makes of the file by itself, in float32."""
    config = AutoConfig.from_pretrained(file.parent)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


def plain_step(file: Path) -> None:
    """One step of training, without anything of ours. Raises whatever it does."""
    model = plain_model(file).train()
    tokens = torch.from_numpy(next(product.batches()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        if not math.isfinite(float(loss.detach())):
            raise ValueError(f"loss {float(loss.detach())}")
        loss.backward()
        optimizer.step()


def _checked(file: Path, work: Path) -> Case:
    taken = product.take(file)
    manifest = taken.manifest
    (work / _MANIFEST).write_bytes(manifest.canonical())
    assert load_manifest(work / _MANIFEST) == manifest, "the manifest is another one when it is read again"
    model = product.model_of(manifest)
    state = product.rooted(manifest, model)
    equal = _compared(file, model)
    before = {name: value.clone() for name, value in _constants(model)}
    result = product.trained(manifest, model, state)
    digest = product.digest_of(result)
    changed = [name for name, value in _constants(model) if not torch.equal(value, before[name])]
    assert not changed, f"trained, though the model itself freezes it: {changed[0]}"
    assert np.isfinite(result.end).all(), "a parameter is not finite after four steps"
    single = product.trained(manifest, product.model_of(manifest), state, micro_batch=1)
    audit = product.audited(single.steps, result.steps, manifest)
    assert audit.verdict is Verdict.PASS, f"micro-batch 1: {audit.verdict.name} {audit.reason} {audit.error}"
    with _warnings() as of_the_file:
        AutoConfig.from_pretrained(file.parent)
    _export_compared(work, manifest, product.next_state(manifest, state, result), of_the_file)
    return Case("warned" if taken.doubts else "right", "; ".join(taken.notes), None, digest, equal)


def _constants(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a model holds beside what it wants trained."""
    wanted = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return ((name, v) for name, v in model.state_dict(keep_vars=True).items() if id(v) not in wanted)


def _compared(file: Path, model: Any) -> str:
    """Logits of our model and of plain transformers' on the same file, with the same weights."""
    theirs = plain_model(file, model.config._attn_implementation).eval()
    if type(theirs) is not type(model):  # of a model of several parts, the text part is taken
        theirs = AutoModelForCausalLM.from_config(theirs.config.get_text_config(), dtype=torch.float32).eval()
    theirs.load_state_dict(model.state_dict())
    tokens = torch.from_numpy(next(product.batches()))
    with torch.no_grad():
        one, other = (m(input_ids=tokens, use_cache=False).logits for m in (model.eval(), theirs))
    apart = float((one - other).abs().max() / other.abs().max())
    assert apart <= CLOSE, f"another function than the file's: logits differ by {apart:.1e}"
    return "bits" if torch.equal(one, other) else f"{apart:.0e}"


def _export_compared(work: Path, manifest: Any, state: Any, known: list[str]) -> None:
    """What is published loads into plain transformers without a word, but for those `known` that it says of the file
    that was given, every tensor and the loss equal, twice."""
    folder = work / "export"
    folder.mkdir()
    model = product.model_of(manifest)
    product.load(model, state)
    back = product.export(folder, manifest, model, state)
    for one, other in ((back.params, state.params), (back.momentum, state.momentum)):
        assert one.tobytes() == other.tobytes(), "another state is read from the export than was written"
    tokens = torch.from_numpy(next(product.batches()))
    with torch.no_grad():
        expected = product.losses(model.eval(), tokens)
    for _ in range(2):
        with _warnings() as said:
            both: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        loaded, told = both
        wrong = [line for line in said if line not in known] + [
            f"{key}: {sorted(map(str, names))[:3]}" for key, names in told.items() if names
        ]
        assert not wrong, f"the export loads with: {'; '.join(wrong)[:300]}"
        mine, theirs = model.state_dict(), loaded.state_dict()
        other = [name for name in mine.keys() | theirs.keys() if not _same(mine.get(name), theirs.get(name))]
        assert not other, f"the export has another {sorted(other)[0]}"
        with torch.no_grad():
            found = product.losses(loaded.eval(), tokens)
        apart = float(((found - expected).abs() / expected.abs()).max())
        assert apart <= CLOSE, f"the export's loss is off by {apart:.1e}"


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What transformers logs as a warning meanwhile, a line each."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(" ".join(record.getMessage().split()))
    logger = logging.getLogger("transformers")
    former, logger.level = logger.level, logging.WARNING
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
