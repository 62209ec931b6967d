"""What a killed node left in the temporary directory goes when the next one starts; what lives stays."""

from __future__ import annotations

import socket
from pathlib import Path

from distributed_training.locks import Lock
from distributed_training.network.libp2p import sweep


def test_folders_of_killed_nodes_go_and_others_stay(tmp_path: Path) -> None:
    for name in ("dt-dead", "dt-lives", "dt-new", "dt-somebodys", "else"):
        (tmp_path / name).mkdir()
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(tmp_path / name / "socket"))
    (tmp_path / "dt-kept").mkdir()
    (tmp_path / "dt-kept" / "work.txt").write_text("somebody's, who has a lock file too")
    Lock(tmp_path / "dt-kept", "").release()
    Lock(tmp_path / "dt-dead", "").release()
    Lock(tmp_path / "else", "").release()
    (tmp_path / "dt-somebodys" / "lock").write_text("mine")
    (tmp_path / "dt-file").touch()
    with Lock(tmp_path / "dt-lives", ""):
        sweep(tmp_path)
        sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dt-file", "dt-kept", "dt-lives", "dt-new", "dt-somebodys", "else",
    ]  # fmt: skip
    sweep(tmp_path / "nowhere")
