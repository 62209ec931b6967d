from __future__ import annotations

import json
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from samples import RUN

from distributed_training.errors import ConfigError
from distributed_training.protocol import limits
from distributed_training.protocol.manifest import RunManifest, check, load_manifest, parse_manifest
from distributed_training.protocol.quota import least_length, quota_problem

FIELDS: dict[str, Any] = RUN.model_dump(mode="json")
LEAVES = [f"{s}.{f}" for s, section in FIELDS.items() if isinstance(section, dict) for f in section]
LEAVES += [s for s, section in FIELDS.items() if not isinstance(section, dict)]


def changed(path: str, value: Any) -> bytes:
    """The manifest document with one field replaced."""
    fields = deepcopy(FIELDS)
    *sections, name = path.split(".")
    holder = fields[sections[0]] if sections else fields
    holder[name] = value
    return json.dumps(fields).encode()


def without(path: str) -> bytes:
    fields = deepcopy(FIELDS)
    *sections, name = path.split(".")
    del (fields[sections[0]] if sections else fields)[name]
    return json.dumps(fields).encode()


# --- documents -----------------------------------------------------------------------------------------


def test_canonical_bytes_are_sorted_json_and_come_back() -> None:
    data = RUN.canonical()
    assert data == json.dumps(FIELDS, sort_keys=True, separators=(",", ":")).encode()
    assert parse_manifest(data) == RUN and parse_manifest(data).canonical() == data
    assert RUN.digest == sha256(data).digest() and RUN.sha256 == RUN.digest.hex()


def test_the_digest_does_not_depend_on_layout_but_on_every_value() -> None:
    spaced = json.dumps(dict(reversed(FIELDS.items())), indent=4).encode()
    assert parse_manifest(spaced).digest == RUN.digest
    assert parse_manifest(changed("name", "other")).digest != RUN.digest
    assert parse_manifest(changed("audit.newcomer_factor", 2)).digest == RUN.digest  # 2 is 2.0
    assert parse_manifest(changed("audit.newcomer_factor", 2.0000000000000004)).digest != RUN.digest


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RUN.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("path", LEAVES)
def test_a_missing_or_mistyped_field_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^manifest: {path}: it is missing \(1 problem"):
        parse_manifest(without(path))
    with pytest.raises(ConfigError, match=rf"^manifest: {path}(\.|: )"):
        parse_manifest(changed(path, [None]))


@pytest.mark.parametrize(("path", "value"), [("timing.map", "44"), ("timing.map", 44.5), ("netuid", True)])
def test_types_are_strict(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=path):
        parse_manifest(changed(path, value))


@pytest.mark.parametrize("path", ["surprise", "timing.surprise", "keep.path"])
def test_an_unknown_field_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^here: {path}: there is no such name"):
        parse_manifest(changed(path, 1), source="here")


@settings(max_examples=60)
@given(st.binary(max_size=40) | st.sampled_from([b"{}", b"[]", b"null", b'{"timing":', b"\xff"]))
def test_anything_else_is_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match="manifest"):
        parse_manifest(data)


def test_a_manifest_of_another_protocol_is_told_so_whatever_else_it_lacks() -> None:
    with pytest.raises(ConfigError, match=r"^old: protocol_version must be \d+, not 4: a run is followed"):
        parse_manifest(b'{"protocol_version": 4, "name": "old"}', source="old")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite_everywhere(number: str) -> None:
    for path in ("audit.depth_share", "model.config"):
        value: Any = "@" if path == "audit.depth_share" else {"model_type": "gpt2", "x": "@"}
        with pytest.raises(ConfigError, match=path):
            parse_manifest(changed(path, value).replace(b'"@"', number.encode()))


def test_a_file_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(ConfigError, match=rf"cannot read the run manifest {path}.*create_run"):
        load_manifest(path)
    path.write_bytes(RUN.canonical())
    assert load_manifest(path) == RUN
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match=rf"^{path}: document"):
        load_manifest(path)


# --- ranges and relations ------------------------------------------------------------------------------

ZERO_IS_TOO_LITTLE = """
    netuid max_uids data.sequence_length data.batch_size data.heldout_sequences inner.nominal_steps inner.max_steps
    inner.learning_rate inner.ramp_steps inner.clip_norm outer.learning_rate average.chunk_coords average.block_coords
    average.feedback_decay
    average.token_cap average.initial_tau average.tau_factor average.gate_factor average.min_counted
    average.max_reducers timing.length audit.depth_share audit.newcomer_factor audit.sketch_size audit.probe_chunks
    audit.error_ok audit.error_growth_steps audit.error_growth_max audit.norm_ok audit.loss_ok scoring.vesting_rounds
    scoring.audit_half_life scoring.integrity_half_life scoring.goodput_probes keep.work_rounds keep.output_rounds
    keep.snapshot_every keep.checkpoint_every keep.max_missing_rounds
"""
NEGATIVE_IS_TOO_LITTLE = """
    version_key data.eos_id inner.warmup_steps inner.decay_steps inner.min_lr_ratio
    inner.weight_decay outer.momentum average.min_map_share average.min_voter_share
    timing.first_block timing.finality timing.reduce_margin
    timing.transfer audit.full_share scoring.integrity_floor scoring.soft_fail_weight scoring.penalty_rounds
    scoring.goodput_required scoring.bandwidth_share scoring.cutoff scoring.burn_share
"""
TOO_MUCH = {
    "netuid": 65536, "max_uids": 4097, "version_key": 1 << 64, "data.sequence_length": 1 << 21, "data.eos_id": 1 << 24,
    "data.batch_size": 65536, "inner.min_lr_ratio": 1.1, "inner.ramp_steps": 1 << 17, "outer.momentum": 1.0,
    "average.min_map_share": 1.1, "average.min_voter_share": 1.1, "scoring.burn_share": 1.1,
    "average.feedback_decay": 1.1, "average.block_coords": 8192, "average.chunk_coords": 1 << 25,
    "average.token_cap": 1 << 53, "average.gate_factor": 2.1, "average.max_reducers": 257, "audit.full_share": 1.1,
    "audit.depth_share": 1.1, "scoring.vesting_rounds": 1025,
    "audit.sketch_size": 256, "audit.vector_cosine_bad": 1.1, "scoring.integrity_floor": 1.1,
    "scoring.bandwidth_share": 1.1, "scoring.cutoff": 1.1,
}  # fmt: skip
OUT_OF_RANGE = (
    [(path, 0) for path in ZERO_IS_TOO_LITTLE.split()]
    + [(path, -1) for path in NEGATIVE_IS_TOO_LITTLE.split()]
    + [*TOO_MUCH.items(), ("keep.work_rounds", 2)]
)


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE)
def test_a_value_that_cannot_be_is_named(path: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{path}: {value}(\.0)? is not in"):
        parse_manifest(changed(path, value))


def test_every_range_is_tried_and_every_number_has_one_or_a_relation() -> None:
    tried = {path for path, _ in OUT_OF_RANGE}
    numbers = {p for p in LEAVES if type(getattr_path(p)) in (int, float)}
    related = {
        "protocol_version", "data.num_pages", "model.init_seed", "timing.roster_lead", "timing.commit_margin",
        "timing.commit", "timing.output", "timing.map", "audit.error_bad", "audit.norm_bad", "audit.loss_bad",
    }  # fmt: skip
    assert set(limits._RANGES) == tried
    assert tried | related == numbers | {"audit.vector_cosine_bad"} and not tried & related


def getattr_path(path: str) -> Any:
    value: Any = FIELDS
    for part in path.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("value", ["00", "AB" * 32, "run"])
def test_what_a_run_continues_is_a_digest(value: str) -> None:
    assert parse_manifest(changed("continues", "ab" * 32)).continues == "ab" * 32
    with pytest.raises(ConfigError, match="continues: expected 64 hex digits or nothing"):
        parse_manifest(changed("continues", value))


@pytest.mark.parametrize("path", ["model.initial_root", "data.tokenizer_sha256", "data.pages_sha256"])
@pytest.mark.parametrize("value", ["", "00", "0" * 63 + "G", "A" * 64, "0" * 64 + "\n"])
def test_digests_are_64_hex_digits(path: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{path}: not 64"):
        parse_manifest(changed(path, value))


@pytest.mark.parametrize("config", [{}, {"vocab_size": 3}, {"model_type": 7}])
def test_a_model_must_say_its_type(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must name model_type"):
        parse_manifest(changed("model.config", config))


def test_a_model_config_that_is_no_json_is_named() -> None:
    config = {"model_type": "gpt2", "x": {1, 2}}
    broken = RUN.model_copy(update={"model": RUN.model.model_copy(update={"config": config})})
    assert check(broken) == ["model.config: cannot be written as JSON: Object of type set is not JSON serializable"]


RELATIONS: list[tuple[str, Any, str]] = [
    ("protocol_version", 999, "protocol_version must be"),
    ("timing.commit_margin", 0, "0 < commit_margin"),
    ("timing.commit_margin", 26, "commit_margin < commit"),
    ("timing.commit", 33, "commit \\+ finality <= output"),
    ("timing.reduce_margin", 9, "output - reduce_margin"),
    ("timing.map", 40, "output \\+ transfer < map"),
    ("timing.transfer", 8, "output \\+ transfer < map"),
    ("timing.map", 38, "output \\+ finality < map"),
    ("timing.map", 49, "map \\+ finality <= length"),
    ("timing.length", 49, "map \\+ finality <= length"),
    ("timing.roster_lead", 1, "roster_lead >= finality"),
    ("timing.first_block", 3, "first_block >= roster_lead"),
    ("average.block_coords", 500, "multiple of block_coords"),
    ("audit.error_bad", 0.02, "error_ok < error_bad"),
    ("audit.error_bad", 0.125, r"error_bad \* error_growth_max < 0.5"),
    ("audit.error_growth_max", 5, r"error_bad \* error_growth_max < 0.5"),
    ("audit.norm_bad", 0.03, "norm_ok < norm_bad"),
    ("audit.loss_bad", 0.01, "loss_ok < loss_bad"),
    ("data.num_pages", 3, "num_pages >= max_uids"),
    ("data.eos_id", 50256, "eos_id of bytes is 256"),
]


@pytest.mark.parametrize(("path", "value", "message"), RELATIONS)
def test_fields_that_contradict_each_other(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_manifest(changed(path, value))


def timing(**changes: int) -> RunManifest:
    """Without validation, to ask `check` itself."""
    return RUN.model_copy(update={"timing": RUN.timing.model_copy(update=changes)})


def test_edges_of_the_timing_are_allowed() -> None:
    assert check(RUN) == []
    assert check(timing(length=50)) == [] and check(timing(map=41)) == [] and check(timing(commit=32)) == []
    assert check(timing(first_block=4)) == [] and check(timing(roster_lead=2)) == []


def test_the_audit_beacon_is_final_before_the_round_ends() -> None:
    # the other constraints imply it for every sane lead, so it is asked alone
    problems = check(timing(roster_lead=20))
    assert any("audit beacon" in p for p in problems)


def test_more_slices_than_reducers_are_never_counted() -> None:
    section = RUN.average.model_copy(update={"min_counted": 3, "max_reducers": 2})
    assert check(RUN.model_copy(update={"average": section})) == [
        "average: min_counted <= max_reducers, or no round is ever applied"
    ]


def test_all_problems_are_told_at_once() -> None:
    assert len(check(timing(commit=60, commit_margin=0))) == 2
    with pytest.raises(ConfigError, match=r"map \+ finality.*; .*"):
        parse_manifest(changed("timing.length", 41))


@pytest.mark.parametrize(
    ("length", "tempo", "fits"),
    [
        (54, 54, True),
        (125, 360, True),
        (40, 360, False),
        (45, 360, True),
        (54, 108, True),
        (13, 100, True),
        (12, 100, False),
    ],
)
def test_three_writes_a_round_must_fit_the_quota(length: int, tempo: int, fits: bool) -> None:
    writes = 3 * (-(-tempo // length) + 1)
    assert (writes * 114 <= 3100) is fits
    problem = quota_problem(length, tempo)
    assert (problem is None) is fits
    if problem is not None:
        assert f"timing.length {length}" in problem and str(writes * 114) in problem


@pytest.mark.parametrize(("tempo", "allowed"), [(360, None), (54, None), (7200, None), (360, 700), (1, 5000)])
def test_the_shortest_round_that_fits_the_quota_is_one_block_longer_than_one_that_does_not(
    tempo: int, allowed: int | None
) -> None:
    length = least_length(tempo, allowed)
    assert length is not None and quota_problem(length, tempo, allowed) is None
    assert length == 1 or quota_problem(length - 1, tempo, allowed) is not None
    assert least_length(tempo, 600) is None and quota_problem(1 << 20, tempo, 600) is not None


def test_the_blocks_of_a_round() -> None:
    r = RUN.round(2)
    s = 10 + 2 * 54
    assert (r.index, r.roster_block, r.start_block, r.train_end_block) == (2, s - 4, s, s + 20)
    assert (r.commit_block, r.output_block, r.audit_block) == (s + 26, s + 36, s + 40)
    assert (r.map_block, r.end_block) == (s + 44, s + 54) and RUN.round(3).start_block == r.end_block
    assert RUN.tokens_per_step == 8 * 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_key", "ab"),
        ("run_key", "AB" * 32),
        ("checkpoints", "hub:o"),
        ("checkpoints", "https://o/r"),
        ("pages", "http://o/r"),
        ("pages", "https://o r"),
        ("pages", "hub:o/r@"),
    ],
)
def test_public_fields_of_another_form_are_refused_by_name(field: str, value: str) -> None:
    fields = RUN.model_dump()
    fields["public"][field] = value
    with pytest.raises(ConfigError, match=f"public.{field}: expected"):
        parse_manifest(json.dumps(fields).encode())


@pytest.mark.parametrize("listed", [["ab"], ["AB" * 32], ["bb" * 32, "aa" * 32], ["aa" * 32] * 2, ["aa" * 32 + "\n"]])
@pytest.mark.parametrize("kind", ["hotkeys", "coldkeys"])
def test_a_list_of_who_may_mine_has_one_spelling(kind: str, listed: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"access.{kind}: expected at most 4096 public keys of 64 hex digits, sorted"):
        parse_manifest(changed(f"access.{kind}", listed))


def test_a_list_of_who_may_mine_is_bounded() -> None:
    keys = [f"{number:064x}" for number in range(limits.MAX_KEYS + 1)]
    assert parse_manifest(changed("access.hotkeys", keys[:-1])).access.hotkeys == keys[:-1]
    with pytest.raises(ConfigError, match=r"access.hotkeys: expected at most 4096"):
        parse_manifest(changed("access.hotkeys", keys))


def test_the_tag_is_the_beginning_of_the_digest() -> None:
    assert RUN.tag == bytes.fromhex(RUN.sha256)[:8]
