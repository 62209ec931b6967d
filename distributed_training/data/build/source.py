"""Rows of any data set, through the `datasets` library: from the Hub, or from files on this machine; streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from typing import Any

import pyarrow as pa
from huggingface_hub.utils import httpx

from distributed_training.data.build.filters import Row
from distributed_training.data.build.hub import HubDataset
from distributed_training.errors import ConfigError, DataUnavailable
from distributed_training.paths import typed

FORMATS = ("parquet", "json", "csv", "text", "arrow")  # of files on this machine
_AT_ONCE = 256  # rows
_TEXT = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")  # bytes are text if UTF-8


@dataclass(frozen=True, slots=True)
class RowSource:
    """A data set that was opened. `about` says which, as JSON, and names no place on this machine."""

    about: str
    columns: tuple[str, ...]
    text_columns: tuple[str, ...]  # those of which it is known that they hold text, or bytes that may be text
    _what: str  # the flag that named it
    _local: bool
    _stream: Any = field(repr=False)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """These columns of all rows, in order. Raises ConfigError for a row that cannot be read, DataUnavailable when
        the source does not answer."""
        number = 0
        try:
            for batch in self._stream.select_columns(list(columns)).iter(batch_size=_AT_ONCE):
                for values in zip(*(batch[name] for name in columns), strict=True):
                    yield dict(zip(columns, values, strict=True))
                    number += 1
        except Exception as error:  # every builder of the library has errors of its own
            told = f"{self._what}: after row {number}: {_line(error)}"
            if isinstance(error, httpx.HTTPError | OSError) and not self._local:
                raise DataUnavailable(told) from error
            raise ConfigError(told) from None


def open_hub(dataset: HubDataset, name: str | None, split: str | None) -> RowSource:
    """A data set of the Hub at its commit. Raises ConfigError for a name, split or format that is not there."""
    about = {"dataset": dataset.repo, "revision": dataset.revision, "name": name, "split": split}
    return _open(f"--dataset {dataset.repo}", about, split, dataset.repo, name, revision=dataset.revision)


def open_local(kind: str, data_files: str) -> RowSource:
    """Files on this machine that fit a pattern, in order of their names. Raises ConfigError."""
    if kind not in FORMATS:
        raise ConfigError(f"--dataset {kind}: with --data-files expected one of {', '.join(FORMATS)}")
    pattern = typed(data_files)
    if not glob(str(pattern), recursive=True):  # noqa: PTH207 - a pattern with folders in it, as datasets takes it
        raise ConfigError(f"--data-files {data_files}: no file fits")
    more = {"batch_size": _AT_ONCE} if kind == "parquet" else {}  # the default is that of the file, which may be 0
    return _open(f"--data-files {data_files}", {"dataset": kind}, None, kind, None, data_files=str(pattern), **more)


def _open(
    what: str, about: dict[str, Any], split: str | None, path: str, name: str | None, **options: Any
) -> RowSource:
    try:
        import datasets  # here: it takes two seconds, and only those who rewrite need it
    except ImportError:
        raise ConfigError("the datasets library is needed: pip install -e '.[data]'") from None
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(path, name, streaming=True, **options)
    except httpx.HTTPError as error:
        raise DataUnavailable(f"{what}: {_line(error)}") from error
    except Exception as error:  # not found, no such configuration, no known format: the library tells in many types
        raise ConfigError(f"{what}: {_line(error)}") from None
    splits: dict[str, Any] = dict(found)  # pyright: ignore[reportArgumentType, reportCallIssue]
    chosen = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if chosen not in splits:
        raise ConfigError(f"--split {chosen}: not in {path}; expected one of {', '.join(splits)}")
    stream = splits[chosen]
    try:
        columns, text = _columns(stream)
    except Exception as error:  # the first row is read here, with all that can be wrong with a file
        raise ConfigError(f"{what}: {_line(error)}") from None
    told = json.dumps(about | {"split": chosen}, sort_keys=True)
    return RowSource(told, columns, text, what, "data_files" in options, stream)


def _columns(stream: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All columns, and those that hold text."""
    features = stream.features
    if features is None:
        first: dict[str, Any] = next(iter(stream), {})
        return tuple(first), tuple(name for name, value in first.items() if isinstance(value, str | bytes | None))
    text = [name for name, kind in features.items() if getattr(kind, "dtype", None) in _TEXT]
    return tuple(features), tuple(text)


def _line(error: BaseException) -> str:
    while isinstance(error.__cause__, UnicodeDecodeError):
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start : error.start + 1].hex()
        return f"byte 0x{byte} is not UTF-8; `iconv -f ENCODING -t UTF-8` converts a file"
    cause = error.__cause__ if isinstance(error.__cause__, pa.ArrowException | ValueError) else error
    return " ".join(str(cause).split())[:300] or type(error).__name__
