"""The hub as a process, and the real libraries as processes that know only HF_ENDPOINT."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import get_session

from hub import Store, TestHub

MAIN = Path(__file__).with_name("__main__.py")
ROWS_PER_GROUP = 50
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("text", "id", "dump", "url", "date", "file_path", "language")]
    + [("language_score", pa.float64()), ("token_count", pa.int64())]
)

STREAM = """
import json, sys
from datasets import load_dataset
data = load_dataset("org/fineweb", data_files="sample/10BT/*.parquet", split="train", streaming=True)
print(json.dumps([[row["id"], row["token_count"]] for row in data]))
"""

ROUND_TRIP = """
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
model.push_to_hub("org/tiny")
loaded = AutoModelForCausalLM.from_pretrained("org/tiny")
assert type(loaded) is GPT2LMHeadModel
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
print("equal")
"""


@contextmanager
def hub_process(folder: Path, *arguments: str) -> Iterator[str]:
    """Gives the endpoint. Ends the process by SIGTERM and expects it to end well."""
    file = folder / "endpoint"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(MAIN), "--root", str(folder / "hub"), "--endpoint-file", str(file), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
    try:
        deadline = time.monotonic() + 20
        while not file.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield file.read_text()
    finally:
        process.terminate()
        assert process.wait(10) == 0


def run_client(code: str, endpoint: str, home: Path) -> str:
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def write_pages(path: Path, seed: int, groups: int) -> list[str]:
    """A file like FineWeb's; returns the ids of its rows."""
    rng = random.Random(seed)
    ids = [f"<urn:uuid:{seed}-{n}>" for n in range(groups * ROWS_PER_GROUP)]
    rows = [
        {
            "text": " ".join(rng.choices(["a", "page", "of", "the", "web"], k=rng.randint(5, 50))),
            "id": name,
            "dump": "CC-MAIN-2013-20",
            "url": f"http://example.org/{name}",
            "date": "2013-05-18T05:48:54Z",
            "file_path": f"s3://dump/{seed}.warc.gz",
            "language": "en",
            "language_score": rng.random(),
            "token_count": rng.randint(5, 50),
        }
        for name in ids
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=ROWS_PER_GROUP, compression="snappy")
    return ids


def test_datasets_streams_parquet_files(hub: TestHub, tmp_path: Path) -> None:
    paths = {f"sample/10BT/{n:03d}_00000.parquet": tmp_path / f"{n}.parquet" for n in range(3)}
    ids = [name for n, path in enumerate(paths.values()) for name in write_pages(path, n, groups=4)]
    hub.put("datasets", "org/fineweb", {**paths, "README.md": b"---\nlicense: odc-by\n---\n"})
    rows = json.loads(run_client(STREAM, hub.endpoint, tmp_path / "home"))
    assert [name for name, _ in rows] == ids
    assert {seen.status for seen in hub.requests} <= {200, 206, 302, 404} and hub.traffic.leaks == []


def test_transformers_pushes_and_loads_a_model(hub: TestHub, tmp_path: Path) -> None:
    assert run_client(ROUND_TRIP, hub.endpoint, tmp_path / "home").split() == ["equal"]
    assert hub.store.get("models", "org/tiny") is not None and hub.traffic.leaks == []


def test_a_process_serves_takes_faults_and_keeps_its_state(tmp_path: Path) -> None:
    Store(tmp_path / "hub").put("models", "org/seeded", {"a.json": b"{}"}, tag="v1")
    faults = json.dumps([{"kind": "unavailable", "path": "/refs"}])
    with hub_process(tmp_path, "--faults", faults, "--token", "hf_one:one:write:org") as endpoint:
        api = HfApi(endpoint=endpoint, token="hf_one")
        with pytest.raises(Exception, match="503"):
            api.list_repo_refs("org/seeded")
        assert [tag.name for tag in api.list_repo_refs("org/seeded").tags] == ["v1"]
        sha = api.create_commit("org/seeded", [CommitOperationAdd("w.bin", b"\0w")], commit_message="w").oid
        lost = {"kind": "lost", "method": "POST", "path": "/tag/"}
        assert get_session().post(f"{endpoint}/admin/faults", json=lost).json()[-1]["fired"] == 0
        with pytest.raises(Exception, match="disconnected"):
            api.create_tag("org/seeded", tag="v2", revision=sha)
        stats = get_session().get(f"{endpoint}/admin/stats").json()
        assert stats["fault.lost"] == 1 and stats["status.503"] == 1 and stats["leaks"] == []
        assert get_session().post(f"{endpoint}/admin/faults", json={"kind": "no such"}).status_code == 400
        assert get_session().delete(f"{endpoint}/admin/faults").json() == []
    with hub_process(tmp_path) as endpoint:
        assert HfApi(endpoint=endpoint, token=False).repo_info("org/seeded", revision="v2").sha == sha
