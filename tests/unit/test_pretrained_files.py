"""A folder with a saved model as a run's round 0: read whole and exactly, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed_training.errors import ConfigError
from distributed_training.training.flat import to_flat
from distributed_training.training.model import build_model, read_config
from distributed_training.training.pretrained import load_pretrained

CONFIG = read_config(
    {"model_type": "gpt2", "vocab_size": 257, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
).config
Tensors = dict[str, torch.Tensor]
MODEL = build_model(CONFIG, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    MODEL.save_pretrained(folder)  # type: ignore[operator]
    return folder


def changed(saved: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    folder.mkdir()
    shutil.copy(saved / "config.json", folder)
    tensors = change(load_file(saved / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_every_number_is_taken(saved: Path, tmp_path: Path) -> None:
    other = build_model(CONFIG, 4)
    assert load_pretrained(other, saved) == ()
    assert (to_flat(other) == to_flat(MODEL)).all()

    def as_published(tensors: Tensors) -> Tensors:  # GPT-2's own file: no prefix, and masks that are no parameter
        mask = torch.ones(1, 1, 16, 16).tril()
        return {name.removeprefix("transformer."): v for name, v in tensors.items()} | {"h.0.attn.bias": mask}

    other = build_model(CONFIG, 5)
    load_pretrained(other, changed(saved, tmp_path / "published", as_published))
    assert (to_flat(other) == to_flat(MODEL)).all()
    other = build_model(CONFIG, 6)
    half = changed(saved, tmp_path / "half", lambda tensors: {name: v.bfloat16() for name, v in tensors.items()})
    load_pretrained(other, half)
    assert (to_flat(other) == torch.from_numpy(to_flat(MODEL)).bfloat16().float().numpy()).all()
    more = changed(saved, tmp_path / "more", lambda tensors: tensors | {"extra.weight": torch.ones(2)})
    assert load_pretrained(build_model(CONFIG, 7), more) == (
        "left out, no parameters of this model: 1 tensors, extra.weight",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {n: v for n, v in t.items() if "c_fc" not in n},
            r"2 tensors missing, .*h\.0\.mlp\.c_fc\.bias, .*c_fc\.weight;",
        ),
        (
            lambda t: t | {"transformer.wpe.weight": torch.ones(8, 16)},
            r"1 tensors of another shape, .*wpe\.weight \(8, 16\) for \(16, 16\);",
        ),
        (lambda t: t | {"transformer.wpe.weight": torch.full((16, 16), torch.inf)}, "wpe.weight has a number that is"),
    ],
)
def test_another_model_is_refused_by_name(
    saved: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    before = to_flat(model := build_model(CONFIG, 4))
    with pytest.raises(ConfigError, match=message) as caught:
        load_pretrained(model, changed(saved, tmp_path / "changed", change))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"--start {tmp_path}/changed: ")
    assert "number" in message or (to_flat(model) == before).all()


def test_no_pickle_and_no_torn_file_is_opened(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected config\.json and model\.safetensors as .* writes them$"):
        load_pretrained(MODEL, tmp_path)
    shutil.copy(saved / "config.json", tmp_path)
    torch.save(load_file(saved / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle, which runs code when it is opened"):
        load_pretrained(MODEL, tmp_path)
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ConfigError, match="cannot be loaded: SafetensorError: ") as caught:
        load_pretrained(MODEL, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = {"weight_map": dict.fromkeys(load_file(saved / "model.safetensors"), "model-00001-of-00002.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}} | weights))
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model-00001-of-00002\.safetensors") as caught:
        load_pretrained(MODEL, tmp_path)
    assert "\n" not in str(caught.value)
