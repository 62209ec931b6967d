"""The benchmark on fresh systems, as far as it needs no root: what it takes from this machine, what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.fresh_root import carried_variables, check_tools, local_paths, mounted_below, pip_settings
from distributed_training.errors import ConfigError


def test_pips_settings_are_read_as_pip_prints_them() -> None:
    listed = ":env:.cert='/x'\nglobal.find-links='/wheels'\ninstall.pre='true'\nglobal.extra-index-url='a\\nb'\n"
    assert pip_settings(listed) == {
        "global.find-links": "/wheels",
        "install.pre": "true",
        "global.extra-index-url": "a\nb",
    }


def test_places_of_this_machine_that_settings_name_are_found(tmp_path: Path) -> None:
    (tmp_path / "simple").mkdir()
    (tmp_path / "cert.pem").touch()
    values = {
        "global.cert": f"{tmp_path}/cert.pem",
        "global.index-url": "https://example.org/simple",
        "global.extra-index-url": f"file://{tmp_path}/simple\n/not/there",
        "global.timeout": "60",
        "global.root": "/",
    }
    assert list(local_paths(values)) == [tmp_path / "cert.pem", tmp_path]


def test_only_pip_proxies_and_certificates_are_carried() -> None:
    environ = {"PIP_CERT": "a", "https_proxy": "b", "NO_PROXY": "c", "SSL_CERT_FILE": "d", "HF_TOKEN": "e", "PATH": "f"}
    assert carried_variables(environ) == {"PIP_CERT": "a", "https_proxy": "b", "NO_PROXY": "c", "SSL_CERT_FILE": "d"}


def test_mounts_below_a_folder_are_found_also_with_spaces() -> None:
    mountinfo = "22 1 0:20 / /proc rw - proc proc rw\n9 1 0:5 / /tmp/a\\040b/root/dev rw - x x rw\n"
    assert mounted_below(Path("/tmp/a b"), mountinfo) == ["/tmp/a b/root/dev"]
    assert mounted_below(Path("/tmp/a"), mountinfo) == []


def test_who_is_not_root_or_lacks_debootstrap_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = "run: apt install debootstrap" if os.geteuid() == 0 else r"run this as root \(sudo\)"
    with pytest.raises(ConfigError, match=expected):
        check_tools()
