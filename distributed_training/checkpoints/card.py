"""README.md of a checkpoint: the model card that the Hub shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from distributed_training.checkpoints.benchmarks import Result, table
from distributed_training.checkpoints.description import Description, run_name, tag_name
from distributed_training.protocol.manifest import RunManifest

MAX_ROWS = 40
_LOAD_TEXT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (auto.from_pretrained({place}) for auto in (AutoTokenizer, AutoModelForCausalLM))
ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(ids, max_new_tokens=50)[0]))"""
_LOAD_BYTES = """\
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({place})
ids = torch.tensor([list("Once upon a time".encode())])  # token i < 256 is byte i of the text, 256 ends a document
print(bytes(i for i in model.generate(ids, max_new_tokens=50)[0].tolist() if i < 256).decode(errors="replace"))"""
_TEXT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- distributed-training
- bittensor
- {model_type}
---

# {name}, state at the start of round {round}

A language model that miners of Bittensor subnet {netuid} train together. This is the public state of the run, in
float32: the parameters, and beside them the outer momentum (`outer_momentum*`), which only training needs.

| | |
|---|---|
| model | {model_type}, {num_parameters:,} parameters |
| rounds applied | {applied} |
| state root | `{state_root}` |
| run manifest (`manifest.json`), sha256 | `{manifest_sha256}` |
| pages of text, sha256 of their list | `{pages_sha256}` |
| tokenizer | {tokenizer}, sha256 `{tokenizer_sha256}` |

## Held-out loss

{losses}
{benchmarks}
## How it was made

Each round, every miner trains from the same state on pages of text that the chain draws for it. The differences are
averaged by all miners together, and everybody takes the same outer step (Nesterov momentum {momentum}, rate {rate}),
bit for bit. `training_state.json` holds what else belongs to the state, and the sha256 and size of every file here. The
owner of the subnet puts the sha256 of `training_state.json` on chain, validators the state root.

## Verify it

With the source of `distributed-training`; it prints what was proven and what was not:

```bash
python scripts/verify_checkpoint.py {verify}
```

## Load it

```python
{load}
```
"""


def model_card(
    manifest: RunManifest,
    described: Description,
    num_parameters: int,
    losses: Mapping[int, float],
    repo: str | None,
    benchmarks: Sequence[Result] = (),
) -> bytes:
    """losses: nats per token after each round (-1: at the start). repo: ORG/NAME on the Hub, None for a directory.
    benchmarks: of any run; those of this one are shown."""
    run = run_name(manifest.name, manifest.sha256)
    tag, own = tag_name(run, described.round), [r for r in benchmarks if r.tag == tag_name(run, r.round)]
    tokenizer = manifest.data.tokenizer
    place, verify = '"DIR"', "DIR --run-dir RUN_DIR"
    if repo is not None:
        place = f'"{repo}", revision="{tag}"'
        verify = f"{repo} --revision {tag} --netuid {manifest.netuid} --chain finney"
    return _TEXT.format(
        name=" ".join(manifest.name.split()),
        model_type=manifest.model.config["model_type"],
        netuid=manifest.netuid,
        round=described.round,
        applied=described.applied,
        state_root=described.state_root,
        manifest_sha256=manifest.sha256,
        num_parameters=num_parameters,
        pages_sha256=manifest.data.pages_sha256,
        tokenizer="tokenizer.json" if tokenizer == "file" else tokenizer,
        tokenizer_sha256=manifest.data.tokenizer_sha256,
        losses=_table(losses),
        benchmarks=f"\n## Benchmarks\n\n{table(own)}\n" if own else "",
        momentum=manifest.outer.momentum,
        rate=manifest.outer.learning_rate,
        verify=verify,
        load=(_LOAD_BYTES if tokenizer == "bytes" else _LOAD_TEXT).format(place=place),
    ).encode()


def _table(losses: Mapping[int, float]) -> str:
    """At most MAX_ROWS rows, evenly over the run, the last one always."""
    if not losses:
        return "Not measured by whoever published this."
    rounds = sorted(losses)
    step = max(1, -(-len(rounds) // MAX_ROWS))
    shown = sorted({*rounds[::step], rounds[-1]})
    lines = ["| after round | nats per token | perplexity |", "|---|---|---|"]
    for index in shown:
        loss = losses[index]
        name = "(start)" if index < 0 else str(index)
        lines.append(f"| {name} | {loss:.4f} | {math.exp(min(loss, 700.0)):.2f} |")
    return "\n".join(lines)
