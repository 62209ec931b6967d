"""Which files a name means: what our reading of a card says, and what the real `datasets` says, over the same Hub."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import TestHub

from distributed_training.data.build.card import files_of
from distributed_training.data.build.footers import read_footer
from distributed_training.data.build.hub import HubDataset, HubFile
from distributed_training.errors import ConfigError, DataUnavailable

FILES = [
    "b.parquet",
    "a.parquet",
    "sample/10BT/001.parquet",
    "sample/10BT/000.parquet",
    "sample/10BT/deep/002.parquet",
    "sample/.hidden/3.parquet",
    "sample/__pycache__/4.parquet",
    "other/test-0.parquet",
    "other/train-0.parquet",
]
CARDS = {
    "string": "data_files: sample/10BT/*",
    "list": "data_files: [sample/10BT/001.parquet, 'sample/10BT/*']",
    "splits": "data_files: [{split: train, path: 'other/train-*'}, {split: test, path: 'other/test-*'}]",
    "paths": "data_files: [{split: train, path: ['b.parquet', 'sample/10BT/00?.parquet']}]",
    "recursive": "data_files: sample/**",
    "folder": "data_dir: sample",
    "trained": "data_dir: other",
    "one_split": "data_files: [{split: half, path: '*.parquet'}]",
}
RESOLVE = """
import datasets, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    files = datasets.load_dataset_builder("org/" + name, "default").config.data_files
    split = "train" if "train" in files else next(iter(files))
    found[name] = [path.split("@", 1)[1].split("/", 1)[1] for path in files[split]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema([("text", pa.string()), ("n", pa.int64())])) as writer:
        for group in range(3):
            table = pa.table({"text": [f"{group} {row}" for row in range(5)], "n": range(5)}, schema=writer.schema)
            writer.write_table(table, row_group_size=5)
    return sink.getvalue().to_pybytes()


def test_a_card_means_the_files_that_datasets_takes(parquet: bytes, tmp_path: Path) -> None:
    with TestHub(tmp_path / "hub") as hub:
        for name, lines in CARDS.items():
            card = f"---\nconfigs:\n- config_name: default\n  {lines}\n---\n"
            hub.put("datasets", f"org/{name}", {"README.md": card.encode(), **dict.fromkeys(FILES, parquet)})
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, json.dumps(list(CARDS))],
            env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        theirs = json.loads(done.stdout.splitlines()[-1])
        for name in CARDS:
            ours = files_of(HubDataset(f"org/{name}", endpoint=hub.endpoint), None, None)
            # A file that two patterns name is read twice there; a page is a page once.
            assert [file.name for file in ours] == list(dict.fromkeys(theirs[name])), name


def test_without_a_card_all_parquet_files_are_meant_or_those_for_training(parquet: bytes, tmp_path: Path) -> None:
    with TestHub(tmp_path / "hub") as hub:
        hub.put("datasets", "org/plain", {"b.parquet": parquet, "x/a.parquet": parquet, "notes.txt": b"no"})
        hub.put("datasets", "org/splits", {"train/[0].parquet": parquet, "test/0.parquet": parquet})
        hub.put("datasets", "org/unclear", {"validation.parquet": parquet, "all.parquet": parquet})
        hub.put("datasets", "org/odd", {"README.md": b"---\nconfigs: [: }\n---\n", "a.parquet": parquet})

        def names(repo: str) -> list[str]:
            return [file.name for file in files_of(HubDataset(repo, endpoint=hub.endpoint), None, None)]

        assert names("org/plain") == ["b.parquet", "x/a.parquet"]
        assert names("org/splits") == ["train/[0].parquet"]
        with pytest.raises(ConfigError, match=r"which files are for training.*validation\.parquet"):
            names("org/unclear")
        with pytest.raises(ConfigError, match="its card cannot be read"):
            names("org/odd")


def test_any_bytes_as_a_footer_are_refused_or_read(parquet: bytes, tmp_path: Path) -> None:
    source = random.Random(5)
    footer = pq.read_metadata(pa.BufferReader(parquet)).serialized_size + 8
    files: dict[str, bytes | Path] = {"empty": b"", "short": b"PAR1", "whole": parquet, "cut": parquet[:-5]}
    files["endless"] = parquet[:-8] + b"\xff\xff\xff\xff" + b"PAR1"
    files["none"] = parquet[:-8] + b"\0\0\0\0" + b"PAR1"
    for number in range(100):
        spoiled = bytearray(parquet)
        for _ in range(source.randint(1, 4)):
            spoiled[-source.randint(9, footer)] = source.randrange(256)
        files[f"{number}"] = bytes(spoiled)
    with TestHub(tmp_path / "hub") as hub:
        hub.put("datasets", "org/bad", files)
        dataset = HubDataset("org/bad", endpoint=hub.endpoint)
        read = 0
        for file in dataset.files([""]):
            try:
                found, _ = read_footer(dataset, file, "text", 100)
                read += 1
                assert sum(group.usable for group in found.groups) <= len(found.groups)
            except (ConfigError, DataUnavailable) as error:
                assert "\n" not in str(error) and file.name in str(error)
        assert 1 <= read < len(files)
        whole = HubFile("whole", len(parquet), None)
        assert [group.rows for group in read_footer(dataset, whole, "text", 1 << 20)[0].groups] == [5, 5, 5]
        assert read_footer(dataset, whole, "text", 8) == (read_footer(dataset, whole, "text", footer)[0], footer)
