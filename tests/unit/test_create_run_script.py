"""scripts/create_run.py: a manifest from files and options, checked, never overwritten."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from distributed_training.errors import ConfigError

SCRIPT = Path(__file__).parents[2] / "scripts" / "create_run.py"
SMALL = ["--preset", "local", "--set", "data.heldout_sequences=4"]


def load() -> Callable[[Sequence[str]], int]:
    """The script's main, without starting a process for every case."""
    spec = importlib.util.spec_from_file_location("create_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = load()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page set that the script itself builds from text."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "text").mkdir()
    for number in range(300):
        (folder / "text" / f"{number}.txt").write_text("".join(f"{number} and {i}\n" for i in range(400)))
    assert main([*SMALL, "--pages", str(folder / "pages"), "--text", str(folder / "text")]) == 0
    return folder / "pages"


def test_it_writes_a_manifest_that_it_accepts_itself(
    pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "manifest.json"
    (tmp_path / "options.toml").write_text("name = 'mine'\n[outer]\nmomentum = 0.8\n")
    flags = [*SMALL, "--pages", str(pages), "--options", str(tmp_path / "options.toml"), "--set", "timing.length=60"]
    assert main([*flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    manifest = json.loads(out.read_text())
    assert (manifest["name"], manifest["outer"]["momentum"], manifest["timing"]["length"]) == ("mine", 0.8, 60)
    assert main(["--check", str(out), "--tempo", "100"]) == 0
    checked = capsys.readouterr().out.splitlines()
    assert checked[:4] == printed.splitlines()[:4] and checked[0].startswith("mine: sha256 ")
    assert "the pages allow " in printed
    with pytest.raises(ConfigError, match="a new manifest is a new run"):
        main([*flags, "--out", str(out)])
    with pytest.raises(ConfigError, match="commitment bytes per epoch of 7200 blocks"):
        main(["--check", str(out), "--tempo", "7200"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "timing.map=58"], r"timing: map \+ finality <= length - roster_lead"),
        (["--set", "timing.lenght=60"], r"timing.lenght: there is no such name here; did you mean timing\.length\?"),
        (["--set", "audit=5"], "audit: expected a section with fields, not 5"),
        (["--set", "lenght=5"], r"run manifest: lenght: there is no such name here; did you mean timing\.length\?"),
        (["--preset", "gpt2-124m"], r"--netuid N is needed, .* \(0 is the root"),
        (["--set", "netuid=0"], r"--netuid N is needed, .* \(0 is the root"),
        (["--in", "2h"], "--in counts from a chain's newest block: name one, --subtensor.network"),
        (["--in", "2h", "--set", "timing.first_block=9000"], "--in and timing.first_block both say when"),
        (["--in", "soon"], "argument --in: expected a time such as 30m, 2h or 1d, not 'soon'"),
        (["--name", "qwen-mine"], r"name qwen-mine: it names qwen, the model is gpt2; choose a name that fits it"),
        (["--name", "gpt2-124m"], r"name gpt2-124m: it says 124m, the model has 859,\d+ parameters; choose"),
        (["--wallet.hotkey", "h", "--wallet.path", "."], r"no hotkey at .*/default/hotkeys/h, nor hpub\.txt beside it"),
        (["--start", "nowhere"], r"--start: expected a folder, .*/nowhere does not exist"),
        (["--set", "length"], "--set: expected KEY=VALUE"),
        (["--set", "data.num_pages=5"], r"data\.num_pages cannot be set: it follows from"),
        (["--set", "inner.options=5"], "inner.options: expected options by name, for example momentum=0.9, not 5"),
        (["--set", "optimizers.muon.outer.momentum=0.5"], "optimizers cannot be set: change it in a copy of the pres"),
        (["--set", "model.init_seed=5"], "model cannot be set: it follows from"),
        (["--set", "data.page_trust=trustme"], r"data\.page_trust: expected"),
        (
            ["--preset", "gpt2-124m", "--netuid", "5", "--set", "timing.map=124"],
            r"timing: map \+ finality <= length - roster_lead",
        ),
        (["--options", "none.toml"], r"argument --options: expected a file, .*/none\.toml does not exist"),
    ],
)
def test_what_cannot_be_run_says_what_was_expected(pages: Path, flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        main([*(SMALL[2:] if "--preset" in flags else SMALL), "--pages", str(pages), *flags])
    assert "\n" not in str(caught.value)


def test_the_command_line_exits_2_with_one_line() -> None:
    command = [sys.executable, str(SCRIPT), "--check", "none.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: argument --check: expected a file, ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pages", ".", "--set", "foo"], "--set: expected KEY=VALUE"),
        (["--pages", "nowhere"], "--pages: expected a folder, "),
        (["--pages", ".", "--model", "bad.json"], "bad.json: expected JSON"),
    ],
)
def test_what_can_be_read_without_torch_is_judged_before_it_is_loaded(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    (tmp_path / "bad.json").write_text("{")
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--netuid", "5", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert "torch" not in done.stderr.replace(str(SCRIPT), "")


def test_a_model_may_be_named_by_its_folder(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model in (tmp_path, tmp_path / "config.json"):
        assert main([*SMALL, "--pages", str(pages), "--model", str(model)]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if "sha256" in line)
    assert first == second


def test_a_run_may_have_a_tokeniser_of_its_own(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.save(str(tmp_path / "mine.json"))
    flags = [*SMALL, "--pages", str(pages), "--tokenizer", str(tmp_path / "mine.json")]
    with pytest.raises(ConfigError, match="give --eos TOKEN; its special tokens are <end>"):
        main(flags)
    assert main([*flags, "--eos", "<end>", "--out", str(tmp_path / "manifest.json")]) == 0
    data = json.loads((tmp_path / "manifest.json").read_text())["data"]
    beside = (tmp_path / "tokenizer.json").read_bytes()
    assert (data["tokenizer"], data["eos_id"]) == ("file", 256)
    assert data["tokenizer_sha256"] == hashlib.sha256(beside).hexdigest()
    assert "nodes need it in their run directory" in capsys.readouterr().out


def test_pages_of_text_lie_beside_the_manifest_unless_a_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text("".join(f"{number} and {i}\n" for i in range(400)))
    flags = ["--preset", "local", "--text", str(tmp_path / "text")]
    with pytest.raises(ConfigError, match="--pages DIR, or --out FILE to have them beside it"):
        main(flags)
    assert main([*flags, "--out", str(tmp_path / "run" / "manifest.json")]) == 0
    assert (tmp_path / "run" / "pages" / "pages.bin").exists()


def test_a_held_out_file_that_is_cut_is_told_in_one_line(pages: Path, tmp_path: Path) -> None:
    shutil.copytree(pages, tmp_path / "pages")
    os.truncate(tmp_path / "pages" / "heldout.parquet", 500)
    command = [sys.executable, str(SCRIPT), *SMALL, "--pages", str(tmp_path / "pages")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "") and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot read held-out set in heldout.parquet:")
    assert done.stderr.count("cannot read held-out set") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optimizers.moun]\ninner.learning_rate = 1e-3", "optimizers.moun: expected one of adamw, muon"),
        ("[optimizers.adamw]\ninner.lerning_rate = 1e-3", "did you mean inner.learning_rate"),
        ("[inner]\nmax_step = 40", "inner.max_step: there is no such name here; did you mean inner.max_steps"),
    ],
)
def test_a_slip_in_a_copied_preset_is_named(pages: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(f'like = "local"\n{text}\n')
    with pytest.raises(ConfigError, match=said):
        main(["--preset", str(tmp_path / "mine.toml"), "--pages", str(pages)])
