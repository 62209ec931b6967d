"""The public state as files that transformers reads: `AutoModelForCausalLM.from_pretrained(folder)`."""

from __future__ import annotations

from safetensors.torch import save
from torch import nn

from distributed_training.training.model import Flat, load_flat


def model_files(model: nn.Module, flat: Flat) -> dict[str, bytes]:
    """model.safetensors and config.json of the parameters `flat`, float32 [d]. Overwrites the model's parameters."""
    load_flat(model, flat)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    config = model.config.to_json_string()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    return {"model.safetensors": save(tensors, metadata={"format": "pt"}), "config.json": str(config).encode()}
