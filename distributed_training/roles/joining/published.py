"""A published state back from its files. The run manifest's model says which files there are and how large."""

from __future__ import annotations

import json
from pathlib import Path

from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.checkpoints.checking import read_bounded
from distributed_training.checkpoints.description import Description
from distributed_training.errors import ConfigError, WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.wire import decode_carry
from distributed_training.training.export import StateLayout
from distributed_training.training.fields import difference
from distributed_training.training.model import read_config, saved_form
from distributed_training.training.outer import RunState, state_root

CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 256 << 20
MAX_OTHER_BYTES = 1 << 20  # any other file that holds no numbers,
MAX_OTHERS_BYTES = 16 << 20  # and all of them


def load_published(store: CheckpointStore, ref: CheckpointRef, manifest: RunManifest) -> RunState:
    """The state, its files checked; its root is the caller's check. Blocking: it may fetch gigabytes.

    Raises WireError for anything that is no state of this run, LocalFault for our own trouble.
    """
    described = store.describe(ref)
    layout = expected_layout(described, ref.location, manifest)
    folder = store.fetch(ref, [*layout.sizes, CONFIG_FILE])
    check_config(folder / CONFIG_FILE, layout)
    return layout.read(folder, described.applied, decode_carry(described.carry))


def check_published(store: CheckpointStore, index: int, root: bytes, manifest: RunManifest) -> CheckpointRef | None:
    """What `store` has of round `index`, if its numbers have this state root; None: it has nothing of that round.

    For the repository of a miner: nobody names its digest, but every node knows the root. Raises as load_published.
    """
    ref = store.find(index, None)
    if ref is None:
        return None
    found = state_root(load_published(store, ref, manifest), manifest.average.chunk_coords)
    if found != root:
        raise WireError(f"checkpoint {ref.location}: state root {found.hex()[:16]}, expected {root.hex()[:16]}")
    return ref


def expected_layout(described: Description, where: str, manifest: RunManifest) -> StateLayout:
    """The files with numbers that this run's model has. Raises WireError unless exactly those are described, and this
    run's manifest and tokeniser, before anything is fetched."""
    if described.manifest_sha256 != manifest.sha256:
        raise WireError(
            f"checkpoint {where}: of the run with manifest {described.manifest_sha256[:16]}, not {manifest.sha256[:16]}"
        )
    num_bytes = sum(facts.num_bytes for name, facts in described.files.items() if name.endswith(".safetensors"))
    try:
        form = saved_form(manifest.model, num_bytes // 2)  # 8 a trained parameter; tied ones are built apart
    except ConfigError as error:
        raise WireError(f"checkpoint {where}: {error}") from None
    layout = StateLayout(form, described.shard_bytes)
    sizes = layout.sizes
    _check_sizes(described, where, layout)
    missing = sorted({*sizes, CONFIG_FILE} - set(described.files))
    if missing:
        raise WireError(f"checkpoint {where}: {missing[0]} is missing")
    tokenizer = None if manifest.data.tokenizer == "bytes" else manifest.data.tokenizer_sha256
    for name, sha256 in ((MANIFEST_FILE, manifest.sha256), (TOKENIZER_FILE, tokenizer)):
        facts = described.files.get(name)
        if (None if facts is None else facts.sha256) != sha256:
            raise WireError(f"checkpoint {where}: {name} is not that of this run")
    return layout


def _check_sizes(described: Description, where: str, layout: StateLayout) -> None:
    """Before any of it is fetched."""
    sizes, others = layout.sizes, 0
    known = {name: len(data) for name, data in layout.index_files.items()} | {TOKENIZER_FILE: MAX_TOKENIZER_BYTES}
    for name, facts in described.files.items():
        if name in sizes:
            if facts.num_bytes != sizes[name]:
                raise WireError(
                    f"checkpoint {where}: {name} has {facts.num_bytes} bytes, this model's has {sizes[name]}"
                )
            continue
        if name.endswith(".safetensors"):
            raise WireError(f"checkpoint {where}: {name} is no file of this model")
        most = known.get(name, MAX_OTHER_BYTES)
        if facts.num_bytes > most:
            raise WireError(f"checkpoint {where}: {name} has {facts.num_bytes} bytes, at most {most} expected")
        others += 0 if name in known else facts.num_bytes
    if others > MAX_OTHERS_BYTES:
        raise WireError(f"checkpoint {where}: {others} bytes beside the numbers, at most {MAX_OTHERS_BYTES} expected")


def check_config(path: Path, layout: StateLayout) -> None:
    """config.json is for others, who may load the folder with it: raises WireError when it speaks of another model, of
    code that comes with it, or of what nobody would write there."""
    data = read_bounded(path, MAX_OTHER_BYTES)
    ours = json.loads(layout.form.config)
    try:
        found = json.loads(data)
        asks = "auto_map" in found
        same = found["model_type"] == ours["model_type"]
        theirs = read_config(found).config if same and not asks else {}
    except ConfigError as error:
        raise WireError(f"{path.name}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"{path.name}: no config of a model: {str(error)[:80]}") from None
    if asks:
        raise WireError(f"{path.name}: it asks for code from its repository (auto_map)")
    differing = difference(theirs, read_config(ours).config) if same else ("model_type",)
    if differing is not None:
        raise WireError(f"{path.name}: another {differing[0][:80]} than the run manifest says")
    strange = sorted(set(found) - set(ours) - set(theirs))
    if strange:
        raise WireError(f"{path.name}: {strange[0][:80]!r} is no field of this model's")
