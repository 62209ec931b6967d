"""Every codec over chunks of 262,144 coordinates, one after the other, as nodes do it. A row for each:

  bits_per_param     of what is sent, heads and scales included
  encode_gb_s        bytes of fp32 numbers (4 a parameter) a second of one processor, with the norm; best of several
  decode_gb_s        the same into memory that is there
  parse_gb_s         the check of foreign bytes
  add_gb_s           decoding, weighing and adding, as a reducer does for every sender
  relative_error     L2 norm of what encoding changed, as a share of the vector's, of normal numbers
  heavy_error        the same of Student's t with three degrees of freedom: some numbers far larger than most

It fails above 4.3 bits a parameter for int4, 0.17 for sparse. Errors are of one vector: a codec with error feedback
sends what it left out later.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from distributed_training.averaging.codecs.base import Codec, Layout, Vector, wire_bytes
from distributed_training.averaging.codecs.known import CODECS
from distributed_training.settings.arguments import whole

DESCRIPTION = __doc__ or ""
CHUNK_COORDS, BLOCK_COORDS = 1 << 18, 512
MOST_BITS = {"int4": 4.3, "sparse": 0.17}
SEED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--chunks", type=whole(1, 4096, "chunks"), default=8, metavar="N", help="default 8")
    add("--times", type=whole(1, 1000, "times"), default=7, metavar="N", help="the best of so many; default 7")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for each codec. `failures`: those that take more bits than they may."""
    layout = Layout(args.chunks * CHUNK_COORDS, CHUNK_COORDS, BLOCK_COORDS)
    rng = np.random.default_rng(SEED)
    normal = rng.standard_normal(layout.num_coords).astype(np.float32)
    heavy = rng.standard_t(3, layout.num_coords).astype(np.float32)
    rows = [_row(kind, layout, normal, heavy, args.times) for kind in CODECS]
    failures = [
        f"{row['codec']}: {row['bits_per_param']} bits a parameter, at most {MOST_BITS[row['codec']]} expected"
        for row in rows
        if row["bits_per_param"] > MOST_BITS.get(row["codec"], 32)
    ]
    return {"name": "codec", "rows": rows, "failures": failures}


def _row(kind: Codec, layout: Layout, normal: Vector, heavy: Vector, times: int) -> dict[str, Any]:
    encoder = kind.encoder(layout)
    parts = [normal[slice(*layout.coords(c))] for c in range(layout.num_chunks)]
    chunks = [encoder.encode(part) for part in parts]
    memory, total = np.empty(layout.chunk_coords, np.float32), np.zeros(layout.chunk_coords, np.float32)

    def gb_s(one: Callable[[int], object]) -> float:
        best = min(_passed(lambda: [one(c) for c in range(layout.num_chunks)]) for _ in range(times))
        return round(4 * layout.num_coords / best / 1e9, 2)

    return {
        "codec": kind.name,
        "bits_per_param": round(8 * wire_bytes(kind, layout) / layout.num_coords, 4),
        "encode_gb_s": gb_s(lambda c: encoder.encode(parts[c]).norm()),
        "decode_gb_s": gb_s(lambda c: chunks[c].decode(memory)),
        "parse_gb_s": gb_s(lambda c: kind.parse(chunks[c].data, layout, c)),
        "add_gb_s": gb_s(lambda c: chunks[c].add_to(total, np.float32(0.25), memory)),
        "relative_error": _error(kind, layout, normal),
        "heavy_error": _error(kind, layout, heavy),
    }


def _passed(work: Callable[[], object]) -> float:
    """Processor seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _error(kind: Codec, layout: Layout, vector: Vector) -> float:
    return round(float(np.sqrt(sum(_changed(kind, layout, vector)) / np.square(vector.astype(np.float64)).sum())), 4)


def _changed(kind: Codec, layout: Layout, vector: Vector) -> Iterator[float]:
    encoder = kind.encoder(layout)
    for c in range(layout.num_chunks):
        part = vector[slice(*layout.coords(c))]
        yield float(np.square(encoder.encode(part).decode().astype(np.float64) - part).sum())
