"""scripts/setup.sh as a stranger's machine meets it once a Python was found. Over stubs: nothing is installed here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from fake_gpu import put_nvidia_smi
from stub_machine import ROOT, Machine, finished, make_machine, working_python

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


def test_what_it_needs_is_said_before_anything_is_installed(machine: Machine) -> None:
    machine.python("python3.11", "3.11", other="echo 'Error: No space left on device' >&2; exit 1")
    done = machine.run(DT_TORCH_INDEX="")
    assert done.returncode == 2
    assert "GB of disk" in done.stdout and "minutes" in done.stdout
    assert done.stderr == f"error: could not create {machine.venv} (Error: No space left on device)\n"


def test_an_interrupted_install_is_redone_from_scratch_and_a_finished_one_is_not(machine: Machine) -> None:
    machine.python("python3.11", "3.11", other=working_python(machine, 'exit "${PIP_EXIT:-0}"'))
    failed = machine.run(PIP_EXIT="1")
    assert failed.returncode == 2 and "pip could not install torch" in failed.stderr
    (machine.venv / "left-over").touch()

    again = machine.run()
    assert again.returncode == 0, again.stderr
    assert not (machine.venv / "left-over").exists()
    assert "Installed in" in again.stdout

    (machine.home / "log").unlink()
    third = machine.run()
    assert third.returncode == 0 and third.stdout == f"started by {machine.venv}/bin/python\n"
    assert "-m pip" not in machine.log


def test_an_environment_whose_python_is_gone_is_made_again(machine: Machine) -> None:
    machine.python("python3.11", "3.11", other=working_python(machine))
    assert machine.run().returncode == 0
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "bin" / "python").symlink_to(machine.home / "removed" / "python3.11")
    done = machine.run()
    assert done.returncode == 0 and "Installed in" in done.stdout


def test_an_environment_of_a_python_that_does_not_fit_is_made_again(machine: Machine) -> None:
    # as after a distribution upgrade, or by an editor that made .venv itself
    machine.python("python3.13", "3.13", other=working_python(machine))
    assert machine.run().returncode == 0
    old = machine.python("old", "3.15", "unsupported", "exit 0")
    shutil.move(old, machine.venv / "bin" / "python")
    done = machine.run()
    assert done.returncode == 0 and f"started by {machine.venv}/bin/python" in done.stdout


@pytest.mark.parametrize("name", ["thesis.txt", "pyvenv.cfg"])
def test_a_folder_with_other_things_or_of_another_project_is_never_emptied(machine: Machine, name: str) -> None:
    machine.python("python3.13", "3.13", other=working_python(machine))
    machine.venv.mkdir()
    (machine.venv / name).write_text("all of it")
    assert "holds other things than an environment of this project" in machine.refusal()
    assert (machine.venv / name).read_text() == "all of it"


def test_a_disk_without_room_is_one_line_before_anything_is_downloaded(machine: Machine) -> None:
    machine.python("python3.13", "3.13", other=working_python(machine), free_gb=1)
    assert "needs about 2 GB and its disk has too little left" in machine.refusal(DT_TORCH_INDEX="")
    assert "-m pip" not in machine.log


def pip_torch(machine: Machine) -> list[str]:
    """What pip was asked for as torch since the last look: the index and the requirement."""
    lines = re.findall(r"-m pip (?:install .*/constraints.txt (.*)|(uninstall .*))", machine.log)
    (machine.home / "log").unlink()
    return [installed or removed for installed, removed in lines if "requirements.txt" not in installed]


def test_where_there_is_a_gpu_its_torch_is_said_installed_looked_at_and_kept(machine: Machine) -> None:
    machine.python("python3.13", "3.13", other=working_python(machine))
    put_nvidia_smi(machine.home / "bin", "NVIDIA H200, 580.65.06, 143771, 9.0")
    done = machine.run(DT_TORCH_INDEX="https://index/whl")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "torch comes as cu130, for NVIDIA H200 (140 GiB, driver 580.65.06): about 3 GB of download" in said[0]
    assert "about 9 GB of disk" in said[1] and said[2] == "  torch (torch==2.13.0+cu130, from https://index/whl)"
    assert pip_torch(machine) == ["--extra-index-url https://index/whl torch==2.13.0+cu130"]
    if "+cpu" in version("torch"):
        assert "warning: torch finds no GPU: torch" in done.stderr and "DT_TORCH=cu130 bash scripts" in done.stderr

    (machine.home / "bin" / "nvidia-smi").unlink()  # it fell off, or its driver is being changed
    again = machine.run()
    assert again.stdout == f"started by {machine.venv}/bin/python\n" and pip_torch(machine) == []
    cpu = machine.run(DT_TORCH="cpu", DT_TORCH_INDEX="https://index/cpu")
    assert cpu.returncode == 0 and "Bringing" in cpu.stdout
    assert pip_torch(machine) == ["uninstall --quiet --yes torch", "--extra-index-url https://index/cpu torch==2.13.0"]
    put_nvidia_smi(machine.home / "bin", "NVIDIA H200, 580.65.06, 143771, 9.0")
    assert "Bringing" not in machine.run().stdout, "what a person asked for is kept"
    (machine.home / "log").unlink()
    assert machine.run(DT_TORCH="auto", DT_TORCH_INDEX="https://index/whl").returncode == 0
    assert pip_torch(machine)[1:] == ["--extra-index-url https://index/whl torch==2.13.0+cu130"]


def test_a_gpu_that_no_torch_can_use_is_said_and_the_cpu_one_installed(machine: Machine) -> None:
    machine.python("python3.13", "3.13", other=working_python(machine))
    put_nvidia_smi(machine.home / "bin", "NVIDIA A100, 470.57.02, 40536, 8.0")
    done = machine.run(DT_TORCH_INDEX="https://index/cpu")
    assert done.returncode == 0 and "about 2 GB of disk" in done.stdout
    warning = "warning: torch comes for the CPU: driver 470.57.02 is too old for any build of torch; install NVIDIA's"
    assert done.stderr.startswith(warning)
    assert pip_torch(machine) == ["--extra-index-url https://index/cpu torch==2.13.0"]


def test_an_index_out_of_reach_is_said_before_anything_is_installed(machine: Machine) -> None:
    machine.python("python3.13", "3.13", other=working_python(machine))
    assert "PyTorch's index of rocm7.2 cannot be reached, or there is none" in machine.refusal(DT_TORCH="rocm7.2")
    assert "DT_TORCH=cuda: expected auto, cpu, cu130, cu126, rocm7.2, or what pip" in machine.refusal(DT_TORCH="cuda")
    assert "-m pip install" not in machine.log


def test_a_person_runs_it(machine: Machine) -> None:
    machine.python("python3.13", "3.13", other=working_python(machine))
    script, bash = str(ROOT / "scripts" / "setup.sh"), str(machine.home / "bin" / "bash")
    shown = machine.run(bash, script, "--help").stdout
    assert shown.startswith("Makes the virtual environment") and "DT_TORCH=cpu bash scripts/setup.sh" in shown
    refused = machine.run(bash, script, "now")
    assert refused.returncode == 2 and refused.stderr.startswith("error: setup.sh takes no arguments but --help")
    done = machine.run(bash, script, DT_TORCH_INDEX="")
    assert done.returncode == 0 and done.stdout.endswith(f"Ready: {machine.venv}/bin/python\n")


def test_pips_reason_is_in_the_one_line(machine: Machine) -> None:
    said = """echo "WARNING: Retrying after connection broken by 'Name or service not known': /simple/torch/" >&2
echo "ERROR: Could not find a version that satisfies the requirement torch" >&2; exit 1"""
    machine.python("python3.13", "3.13", other=working_python(machine, said))
    line = machine.refusal(DT_TORCH_INDEX="")
    assert "torch (no connection: 'Name or service not known': /simple/torch/; all it said" in line
    said = 'echo "ERROR: No space left on device" >&2; echo "ERROR: and more" >&2; exit 1'
    machine.python("python3.13", "3.13", other=working_python(machine, said))
    assert "torch (No space left on device; all" in machine.refusal(DT_TORCH_INDEX="")


def test_settings_of_another_python_and_pip_do_not_reach_ours(machine: Machine) -> None:
    said = f'echo "$PIP_USER $PIP_REQUIRE_VIRTUALENV [$PIP_TARGET] [${{PYTHONHOME-}}] $TMPDIR" >>"{machine.home}/seen"'
    machine.python("python3.13", "3.13", other=working_python(machine, said))
    foreign = {
        "PIP_USER": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_TARGET": "/x",
        "PYTHONHOME": "/conda",
        "PYTHONPATH": "/ros",
    }
    done = machine.run(**foreign)
    assert done.returncode == 0, done.stderr
    assert set((machine.home / "seen").read_text().splitlines()) == {f"0 0 [] [] {machine.venv}/.tmp"}


def test_of_two_set_ups_at_once_the_second_waits(machine: Machine) -> None:
    slow = f'case "$*" in "-m venv "*) "{shutil.which("sleep")}" 0.5 ;; esac\n{working_python(machine)}'
    machine.python("python3.13", "3.13", other=slow)
    both = [machine.start(), machine.start()]
    outputs = [finished(process) for process in both]
    assert [done.returncode for done in outputs] == [0, 0], outputs
    assert machine.log.count(" -m venv ") == 1
    assert sum("Another set-up is at work" in done.stdout for done in outputs) == 1


def test_a_checkout_that_was_renamed_uses_its_own_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b é c"
    shutil.copytree(ROOT / "scripts", first / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, first)
    (first / "distributed_training").mkdir()
    (first / "distributed_training" / "__init__.py").touch()
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", first / ".venv"], check=True)
    (pip,) = first.glob(".venv/lib/python3.*/site-packages")
    (pip / "pip").mkdir()
    for name in ("__init__.py", "__main__.py"):
        (pip / "pip" / name).touch()

    def python(folder: Path) -> str:
        script = f'cd / && source "{folder}/scripts/setup.sh" >&2 && command -v python'
        environ = {"PATH": "/usr/bin:/bin", "DT_TORCH_INDEX": "", "CDPATH": "/tmp"}
        done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert python(first) == str(first / ".venv" / "bin" / "python")
    first.rename(second)
    where = [str(second / ".venv" / "bin" / "python"), "-Ic", "import distributed_training as d; print(d.__file__)"]
    found = str(second / "distributed_training" / "__init__.py")
    assert subprocess.run(where, cwd="/", capture_output=True, text=True).stdout.strip() == found  # before any set-up
    assert python(second) == where[0]


@pytest.mark.parametrize("shell", ["dash", "bash --posix"])
def test_the_scripts_start_under_what_sh_is_elsewhere(machine: Machine, shell: str) -> None:
    program, *options = shell.split()
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} here")
    machine.python("python3.13", "3.13", other=working_python(machine))
    done = machine.run(found, *options, str(ROOT / "scripts" / "demo.sh"))
    assert done.returncode == 0 and "started by" in done.stdout, done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_for_the_bash_of_macos_and_trust_no_activate(path: Path) -> None:
    text = path.read_text()
    newer = r"\bmapfile\b|\breadarray\b|declare -\w*[An]|\$\{\w+(\[[^]]*\])?[,^@]|\|&|&>>|\bcoproc\b|EPOCH|wait -n"
    assert re.findall(newer, text) == []
    assert "bin/activate" not in text


def test_what_digests_pin_and_shells_read_has_one_spelling_in_every_checkout() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    pinned = "distributed_training/data/gpt2_tokenizer/tokenizer.json"
    asked = ["scripts/demo.sh", ".ci/run", "constraints.txt", pinned]
    done = subprocess.run(
        ["git", "check-attr", "text", "eol", "--", *asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in asked[:-1]:
        assert f"{name}: eol: lf" in done.stdout
    assert f"{pinned}: text: unset" in done.stdout
