"""A trained model for round 0 from the Hub: its numbers and what says how to read them, and nothing that would run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub import TestHub

from distributed_training.errors import ConfigError
from distributed_training.recipes.start import fetch_start, tokenizer_of
from distributed_training.settings.places import parse_repo


def test_only_numbers_config_and_tokeniser_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "modeling_mine.py")
    of_run = ("config.json", "model.safetensors", "manifest.json", "training_state.json", "outer_momentum.safetensors")
    for name in {*names, *of_run}:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "manifest.json").write_text('{"protocol_version": 1, "data": {"tokenizer": "bytes", "eos_id": 256}}')
    with TestHub(tmp_path / "hub") as hub:
        sha = hub.put("models", "org/model", {name: tmp_path / name for name in names})
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        folder = fetch_start(parse_repo(f"org/model@{sha}"))
        assert {path.name for path in folder.iterdir()} == set(names[:3])
        assert (folder / "model.safetensors").read_bytes() == b"model.safetensors"
        assert tokenizer_of(folder) == (str(folder / "tokenizer.json"), None)
        hub.put("models", "org/run", {name: tmp_path / name for name in of_run})
        folder = fetch_start(parse_repo("org/run"))
        assert {path.name for path in folder.iterdir()} == set(of_run[:4]), "of a run's checkpoint no momentum"
        assert tokenizer_of(folder) == ("bytes", None), "of whichever version of the protocol"
        with pytest.raises(ConfigError, match="cannot fetch hub:org/none: the Hub has no model repository") as caught:
            fetch_start(parse_repo("org/none"))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"it has no tokenizer\.json; name the one it was trained with"):
        tokenizer_of(tmp_path / "hub")
