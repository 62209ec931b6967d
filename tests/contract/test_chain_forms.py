"""The chain's contract tests as an operator asks a development node: with --chain and its sudo key."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from devnode import DevNode, bare_chain

TESTS = Path(__file__).with_name("test_chain.py")
SOME = "params_and_uids or serving_has or mere_reader"


async def test_a_development_node_is_asked_on_a_subnet_made_with_its_sudo_key(tmp_path: Path) -> None:
    async with DevNode(bare_chain(tmp_path, 0.1), spec=461) as node:
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", "-p", "no:cacheprovider", "-k", SOME]
        command += ["--chain", node.endpoint, "--sudo-uri", "//Alice"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        asked = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        said = (await asked.communicate())[0].decode()
        assert asked.returncode == 0 and node.path.name == "subnet.sqlite", said
    assert "2 passed, 1 skipped" in said and "only a local chain can be told to do" in said, said
