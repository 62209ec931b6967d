"""A made-up data set in FineWeb's layout: several parquet files, all nine columns, snappy, a card with configurations.

    python -m benchmarks.made_up_fineweb DIR --files 4 --row-groups 2000 --documents 40

The text is pieces of the standard library's sources, drawn with a seed: the same files again on the same Python.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distributed_training.data.corpus import read_corpus
from distributed_training.data.local import FINEWEB_SCHEMA

NAME = "sample-10BT"  # the configuration that holds everything
CARD = """---
license: odc-by
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
- config_name: sample-100BT
  data_files:
  - split: train
    path: sample/100BT/*
---
# Made-up FineWeb
"""
_POOL_BYTES = 8_000_000


def write_fineweb(folder: Path, *, files: int, row_groups: int, documents: int, seed: int = 0) -> list[Path]:
    """Write `row_groups` row groups of `documents` rows into `files` files of sample-10BT below `folder`, a file of
    another configuration, and README.md. Returns those of sample-10BT in order."""
    source = random.Random(seed)
    with read_corpus(None, _POOL_BYTES) as corpus:
        pool = [document.text for document in corpus.documents()]
    data = folder / "sample" / "10BT"
    data.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    ends = [row_groups * (number + 1) // files for number in range(files)]
    written: list[Path] = []
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        written.append(data / f"{number:03d}_00000.parquet")
        with pq.ParquetWriter(written[-1], FINEWEB_SCHEMA, compression="snappy") as writer:
            for group in range(start, end):
                table = _rows(source, pool, group * documents, documents)
                writer.write_table(table, row_group_size=documents)
    crawl = folder / "data" / "CC-MAIN-2024-10"  # of the default configuration, which `datasets` looks at first
    crawl.mkdir(parents=True)
    pq.write_table(_rows(source, pool, row_groups * documents, documents), crawl / "000_00000.parquet")
    return written


def _rows(source: random.Random, pool: Sequence[str], first: int, count: int) -> pa.Table:
    texts = [f"Document {first + row}.\n{_text(source, pool)}" for row in range(count)]
    columns = {
        "text": texts,
        "id": [f"<urn:uuid:{source.getrandbits(128):032x}>" for _ in texts],
        "dump": [f"CC-MAIN-20{source.randint(13, 24)}-{source.randint(10, 50)}" for _ in texts],
        "url": [f"https://example.org/{source.getrandbits(64):x}" for _ in texts],
        "date": [f"20{source.randint(13, 24)}-0{source.randint(1, 9)}-11T20:28:47Z" for _ in texts],
        "file_path": [f"s3://commoncrawl/{source.getrandbits(64):x}.warc.gz" for _ in texts],
        "language": ["en"] * count,
        "language_score": [round(source.uniform(0.65, 1.0), 4) for _ in texts],
        "token_count": [len(text) // 4 for text in texts],
    }
    return pa.table(columns, schema=FINEWEB_SCHEMA)


def _text(source: random.Random, pool: Sequence[str]) -> str:
    """Most are short and a few are long, as on the web."""
    wanted = min(int(source.lognormvariate(6.8, 1.0)), 20_000) + 1
    parts: list[str] = []
    while wanted > 0:
        parts.append(pool[source.randrange(len(pool))][:wanted])
        wanted -= len(parts[-1])
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--row-groups", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=40, help="in a row group; 1000 in FineWeb")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    written = write_fineweb(
        args.folder, files=args.files, row_groups=args.row_groups, documents=args.documents, seed=args.seed
    )
    size = sum(path.stat().st_size for path in written)
    print(f"{len(written)} files of {size / 1e6:.1f} MB in {args.folder}; its configuration is {NAME}")


if __name__ == "__main__":
    main()
