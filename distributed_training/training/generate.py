"""What a model writes, id by id; the attention over what came before is kept, not computed again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from distributed_training.errors import LocalFault


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 0.8  # 0: always the most likely id
    top_k: int = 40  # drawn from so many of the most likely; 0: from all
    top_p: float = 1.0  # and from no more of those than have this probability together
    seed: int = 0


def generate(
    model: nn.Module, ids: Sequence[int], sampling: Sampling, *, vocab_size: int, context: int, cached: bool = True
) -> Iterator[int]:
    """Ids after `ids`, without end; each costs one step of the model when it is asked for.

    Ids from `vocab_size` on, which no tokeniser has, are never drawn. At most `context` ids are looked at: what is
    longer is cut from the left, later to its last half. Draws happen on the CPU: a seed gives the same text wherever
    the numbers are the same. `cached=False` computes everything anew for each id, as do models that keep their past
    in another form. Threads may share a model. Raises LocalFault for numbers that overflow.
    """
    device = next(model.parameters()).device
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    generator = torch.Generator().manual_seed(sampling.seed)
    seen = list(ids)[-context:]
    fresh, past = seen, None
    while True:
        options = last_only if past is None else {"past_key_values": past}
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([fresh], device=device), use_cache=cached, **options)
            drawn = _draw(out.logits[0, -1, :vocab_size].float().cpu().double(), sampling, generator)
        yield drawn
        seen = [*seen, drawn]
        past = getattr(out, "past_key_values", None)
        if len(seen) > context:
            seen, past = seen[-max(1, context // 2) :], None
        fresh = seen if past is None else [drawn]


def _draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if not torch.isfinite(logits).all():
        raise LocalFault("the model's numbers overflow: it gives no probabilities")
    if sampling.temperature == 0:
        return int(logits.argmax())
    best = torch.topk(logits, min(sampling.top_k or len(logits), len(logits)))
    chances = torch.softmax((best.values - best.values[0]) / sampling.temperature, dim=0)
    chances[chances.cumsum(0) - chances >= sampling.top_p] = 0  # never the first
    return int(best.indices[torch.multinomial(chances, 1, generator=generator)])
