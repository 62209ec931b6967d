"""Names of runs: everybody sees them, so one that speaks of another model is refused."""

from __future__ import annotations

import re

# Families that people know by name; a model's type begins with its family's.
_FAMILIES = ("deepseek", "falcon", "gemma", "gpt", "llama", "mamba", "mistral", "mixtral", "olmo", "phi", "qwen")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([mb])")
_NEAR = 1.5  # what is called 1B has 1.24 billion parameters


def default_name(model_type: str, parameters: int) -> str:
    """Of a run whose model is not the preset's, for example qwen2-494m."""
    size = f"{parameters / 1e9:.1f}b" if parameters >= 1e9 else f"{max(1, round(parameters / 1e6))}m"
    return f"{model_type}-{size}"


def name_problem(name: str, model_type: str, parameters: int) -> str | None:
    """Why this is another model's name, None if it is not: a word of it is a family that the model is not of, or a size
    that the model is not near."""
    words = re.findall(r"[a-z0-9.]+", name.lower())
    for word in words:
        family = next((known for known in _FAMILIES if re.fullmatch(rf"{known}[\d.]*", word)), None)
        if family is not None and family not in model_type:
            return f"name {name}: it names {family}, the model is {model_type}"
        size = _SIZE.fullmatch(word)
        named = 0.0 if size is None else float(size[1]) * (1e6 if size[2] == "m" else 1e9)
        if size is not None and not parameters / _NEAR <= named <= parameters * _NEAR:
            return f"name {name}: it says {word}, the model has {parameters:,} parameters"
    return None
