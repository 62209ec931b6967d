"""Which Python scripts/setup.sh takes on a stranger's machine, and what it says where there is none. Over stubs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stub_machine import ROOT, Machine, make_machine

UV_FETCHES = """case "$*" in
    "python find "*no-python-downloads*) exit 2 ;;
    "python find "*) echo "$0-python" ;;
    "python dir") echo /home/me/.local/share/uv/python ;;
    "python install "*) ;;
    *) exit 1 ;;
esac"""
UV_OFFLINE = """case "$*" in
    "python dir") echo /somewhere ;;
    "python install "*) echo "error: Failed to download" >&2; echo "  Caused by: dns error" >&2; exit 1 ;;
    *) exit 2 ;;
esac"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


def taken(machine: Machine) -> str:
    """Which Python the environment is made of; the stubs' venv fails, so that nothing is installed."""
    done = machine.run()
    assert done.returncode == 2 and "error: could not create" in done.stderr, done
    (line,) = [line for line in machine.log.splitlines() if " -m venv " in line]
    return line.split()[0]


def apt(machine: Machine, **candidates: str) -> None:
    """apt-cache of a system that has these packages; dashes are written as underscores, dots as two."""
    cases = "".join(
        f'"policy {name.replace("__", ".").replace("_", "-")}") echo "  Candidate: {version}" ;;\n'
        for name, version in candidates.items()
    )
    machine.stub("apt-cache", f'case "$*" in\n{cases} esac')


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_every_supported_python_is_taken(machine: Machine, minor: int) -> None:
    machine.python(f"python3.{minor}", f"3.{minor}")
    assert taken(machine) == f"python3.{minor}"


def test_the_newest_that_fits_is_taken_under_whatever_name(machine: Machine) -> None:
    machine.python("python3.12", "3.12")
    machine.python("python3", "3.14")
    machine.python("python", "3.13")
    assert taken(machine) == "python3"


def test_what_does_not_fit_or_run_is_passed_over(machine: Machine) -> None:
    machine.stub("python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    machine.python("python3.13", "3.13", "free-threaded")
    machine.python("python3.12", "3.12", "bare")
    machine.python("python3.11", "3.11")
    machine.python("python3", "3.15", "unsupported")
    machine.python("python", "2.7", "unsupported")
    assert taken(machine) == "python3.11"


@pytest.mark.parametrize(
    ("fact", "verdict"),
    [
        ("pass", "fits"),
        ("sys.version_info = (3, 10, 9)", "unsupported"),
        ("sys.version_info = (3, 15, 0)", "unsupported"),
        ("sys.version_info = (2, 7, 18)", "unsupported"),
        ("sys.implementation.name = 'pypy'", "pypy"),
        ("sys.maxsize = 2**31 - 1", "32-bit"),
        ("sysconfig.get_config_var = {'Py_GIL_DISABLED': 1}.get", "free-threaded"),
        ("sysconfig.get_config_var = {'SOABI': 'cpython-312-x86_64-linux-musl'}.get", "musl"),
        ("sys.modules['ensurepip'] = None", "bare"),
        ("sys.modules['venv'] = None", "bare"),
    ],
)
def test_a_python_is_judged_by_what_it_says_of_itself(fact: str, verdict: str) -> None:
    source = f'source "{ROOT}/scripts/find_python.sh"; printf %s "$_DT_JUDGE"'
    judge = subprocess.run(["bash", "-c", source], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, sysconfig\n{fact}\n{judge}"], capture_output=True, text=True
    )
    version, said, executable = done.stdout.split()
    assert said == verdict and version.count(".") == 1 and Path(executable).exists()


def test_no_python_at_all_is_one_line_and_leaves_nothing(machine: Machine) -> None:
    line = machine.refusal()
    assert "no Python 3.11 to 3.14 here" in line and "PYTHON=/path/to/python" in line
    assert not machine.venv.exists()


def test_a_chosen_python_that_does_not_fit_is_named_with_what_it_is(machine: Machine) -> None:
    chosen = machine.python("my python", "3.14", "free-threaded")
    machine.python("python3.13", "3.13")
    assert f"PYTHON={chosen} is Python 3.14 (free-threaded), not an ordinary" in machine.refusal(PYTHON=str(chosen))
    assert "PYTHON=/nowhere/python is nothing that runs" in machine.refusal(PYTHON="/nowhere/python")


def test_a_debian_without_the_venv_module_is_told_the_package_it_has(machine: Machine) -> None:
    machine.python("python3", "3.13", "bare")
    apt(machine, python3="3.13.5-1", python3_venv="3.13.5-1")
    line = machine.refusal()
    assert "python3 has no venv module; run: " in line and line.endswith("apt install python3-venv")


@pytest.mark.parametrize(
    ("candidates", "advice"),
    [
        ({"python3": "3.14.3-1", "python3_venv": "3.14.3-1"}, "apt install python3-venv"),
        (
            {"python3": "3.10.6-1", "python3_venv": "3.10.6-1", "python3__11_venv": "3.11.0~rc1-1"},
            "apt install python3.11-venv",
        ),
        ({"python3": "3.9.2-3", "python3_venv": "3.9.2-3"}, "or set PYTHON=/path/to/python"),
        ({"python3": "3.13.5-1"}, "apt update; then this again"),  # what is installed is known without lists
    ],
    ids=["newest", "old default", "too old", "no lists"],
)
def test_apt_is_asked_what_it_has(machine: Machine, candidates: dict[str, str], advice: str) -> None:
    apt(machine, **candidates)
    assert machine.refusal().endswith(advice)


@pytest.mark.parametrize(
    ("manager", "advice"),
    [
        ("dnf", "dnf install python3.12"),
        ("pacman", "pacman -S uv; then this again, and uv fetches one"),
        ("zypper", "zypper install python313 (Leap 15: python311)"),
        ("brew", "brew install python@3.13"),
    ],
)
def test_every_package_manager_is_named_with_a_package_it_has(machine: Machine, manager: str, advice: str) -> None:
    machine.stub(manager, "exit 1")
    assert machine.refusal().endswith(advice)


@pytest.mark.parametrize("has_python", [True, False])
def test_a_system_with_musl_is_told_that_no_python_helps(machine: Machine, has_python: bool) -> None:
    machine.stub("uv", UV_FETCHES)
    if has_python:
        machine.python("python3", "3.12", "musl")
    else:
        machine.stub("apk", "exit 1")
    assert "torch has no builds for the C library of this system (musl)" in machine.refusal()
    assert "uv " not in machine.log


def test_a_platform_without_builds_is_named(machine: Machine) -> None:
    machine.python("python3.13", "3.13")
    machine.stub("uname", "echo Linux riscv64")
    assert "not for Linux riscv64" in machine.refusal()


def test_uv_fetches_a_private_python_after_saying_so(machine: Machine) -> None:
    machine.stub("uv", UV_FETCHES)
    machine.stub("uv-python", "exit 1")
    machine.python("python3", "3.9", "unsupported")
    done = machine.run()
    assert "Fetching a private CPython 3.13: about 35 MB" in done.stdout
    assert "/home/me/.local/share/uv/python" in done.stdout
    assert "uv-python -m venv" in machine.log


def test_a_python_that_uv_has_already_is_not_fetched_again(machine: Machine) -> None:
    machine.stub("uv", 'case "$*" in *no-python-downloads*) echo "$0-python" ;; *) exit 1 ;; esac')
    machine.stub("uv-python", "exit 1")
    machine.run()
    assert "uv-python -m venv" in machine.log and "python install" not in machine.log


def test_a_fetch_that_fails_is_one_line_with_uvs_reason_and_what_this_system_has(machine: Machine) -> None:
    machine.stub("uv", UV_OFFLINE)
    apt(machine, python3="3.13.5-1", python3_venv="3.13.5-1")
    line = machine.refusal()
    assert "uv could not fetch one (Caused by: dns error)" in line and line.endswith("apt install python3-venv")


def test_uv_itself_comes_by_the_pip_of_any_python_into_the_environments_folder(machine: Machine) -> None:
    body = UV_FETCHES.replace("*) exit 1", "--version) ;; *) exit 1").replace(
        "$0-python", f"{machine.home}/bin/uv-python"
    )
    source = machine.stub("uv-source", body)
    target = (
        f'{machine.venv}/.uv.*) ;; *) exit 1 ;; esac; mkdir -p "${{@: -2:1}}/bin"; cp "{source}" "${{@: -2:1}}/bin/uv"'
    )
    pip = f'case "$*" in "-m pip --version") exit 0 ;; esac; case "${{@: -2:1}}" in {target}'
    machine.python("python3", "3.9", "unsupported", pip)
    machine.stub("uv-python", "exit 1")
    done = machine.run(PIP_REQUIRE_VIRTUALENV="1", PIP_USER="1")
    assert "uv, by pip of" in done.stdout and "Fetching a private CPython" in done.stdout
    assert "uv-python -m venv" in machine.log


@pytest.mark.parametrize("maker", ["virtualenv", "uv"])
def test_a_python_without_venv_is_used_through_what_can_make_one(machine: Machine, maker: str) -> None:
    machine.python("python3.13", "3.13", "bare")
    machine.stub(maker, "exit 1")
    machine.run()
    (line,) = [line for line in machine.log.splitlines() if line.startswith(maker)]
    assert f"--python {machine.home}/bin/python3.13 {machine.venv}" in line
