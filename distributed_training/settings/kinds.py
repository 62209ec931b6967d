"""Kinds of values that a person sets: how a text becomes one, and what it has to look like."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from distributed_training import addresses
from distributed_training.paths import file_name, typed
from distributed_training.settings.places import HubRepo, parse_place, parse_repo


def _device(value: str) -> str:
    kind, _, index = value.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (":" in value and not (kind == "cuda" and index.isdigit())):
        raise ValueError("expected auto, cpu, mps, cuda or cuda:N")
    return value


def _run_prefix(value: str) -> str:
    if not re.fullmatch("[0-9a-f]{4,64}", value):
        raise ValueError("expected the first 4 to 64 hex digits of a manifest's sha256")
    return value


def _path(value: object) -> object:
    return typed(value) if isinstance(value, str | Path) else value


def _place(value: object) -> object:
    return parse_place(value) if isinstance(value, str) else value


def _repo(value: object) -> object:
    return parse_repo(value) if isinstance(value, str) else value


def _names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(addresses.ipv4)]
Listen = Annotated[str, AfterValidator(addresses.listen)]
Endpoint = Annotated[str, AfterValidator(addresses.chain_node)]
RunPrefix = Annotated[str, AfterValidator(_run_prefix)]
Port = Annotated[int, Field(ge=1, le=65535)]
Mbit = Annotated[float, Field(ge=0.1, le=1e5, allow_inf_nan=False)]
Device = Annotated[str, AfterValidator(_device)]
KeyName = Annotated[str, AfterValidator(file_name)]
Positive = Annotated[int, Field(ge=1)]
Typed = Annotated[Path, BeforeValidator(_path)]
Place = Annotated[HubRepo | Path, BeforeValidator(_place)]
Repo = Annotated[HubRepo, BeforeValidator(_repo)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Endpoints = Annotated[tuple[Endpoint, ...], BeforeValidator(_names)]
