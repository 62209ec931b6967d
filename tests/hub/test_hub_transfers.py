"""Bytes: uploads in one piece and in parts, ranges, signed addresses, and downloads over bad lines."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, hf_raise_for_status

from hub import Settings, TestHub

REPO = "org/model"
NAME = "model.safetensors"
DATA = random.Random(1).randbytes(3_500_000)


def fetch(hub: TestHub, cache: Path, name: str = NAME) -> bytes:
    return Path(hf_hub_download(REPO, name, endpoint=hub.endpoint, cache_dir=cache)).read_bytes()


def address(hub: TestHub, name: str = NAME) -> str:
    return f"{hub.endpoint}/{REPO}/resolve/main/{name}"


def signed(hub: TestHub) -> str:
    return get_session().head(address(hub), follow_redirects=False).headers["Location"]


def ranged(url: str, byte_range: str) -> tuple[int, bytes]:
    answer = get_session().get(url, headers={"Range": byte_range, "Authorization": "Bearer hf_test"})
    return answer.status_code, answer.content


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, len(DATA)])
def test_an_upload_comes_whole_or_in_parts(hub: TestHub, api: HfApi, tmp_path: Path, size: int) -> None:
    api.create_repo(REPO)
    api.create_commit(REPO, [CommitOperationAdd(NAME, DATA[:size])], commit_message="weights")
    puts = [seen for seen in hub.requests if seen.method == "PUT"]
    assert len(puts) == -(-size // (1 << 20)) and not any(seen.authorized for seen in puts)
    assert fetch(hub, tmp_path) == DATA[:size]
    api.create_commit(REPO, [CommitOperationAdd("same.bin", DATA[:size])], commit_message="what is there is not sent")
    assert len([seen for seen in hub.requests if seen.method == "PUT"]) == len(puts)


def test_an_upload_over_a_bad_line_is_repeated(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    broken = hub.faults.add("drop", method="PUT", path="^/upload/", after_bytes=1000)
    busy = hub.faults.add("unavailable", method="PUT", path="^/upload/.*/2")
    api.create_commit(REPO, [CommitOperationAdd(NAME, DATA)], commit_message="weights")
    assert (broken.fired, busy.fired) == (1, 1)
    assert fetch(hub, tmp_path) == DATA


def test_ranges(hub: TestHub) -> None:
    hub.put("models", REPO, {NAME: DATA, "small.json": b"0123456789"})
    for name, data in ((NAME, DATA), ("small.json", b"0123456789")):
        assert ranged(address(hub, name), "bytes=2-5") == (206, data[2:6])
        assert ranged(address(hub, name), "bytes=7-") == (206, data[7:])
        assert ranged(address(hub, name), "bytes=-3") == (206, data[-3:])
        assert ranged(address(hub, name), "bytes=0-99999999") == (206, data)
        assert ranged(address(hub, name), "bytes=99999999-")[0] == 416
    assert hub.traffic.leaks == []


def test_a_file_is_described_before_it_is_sent(hub: TestHub) -> None:
    sha = hub.put("models", REPO, {NAME: DATA, "small.json": b"{}"})
    head = get_session().head(address(hub), follow_redirects=False)
    digest = hashlib.sha256(DATA).hexdigest()
    assert (head.status_code, head.headers["X-Repo-Commit"]) == (302, sha)
    assert (head.headers["X-Linked-Etag"], head.headers["X-Linked-Size"]) == (f'"{digest}"', str(len(DATA)))
    assert head.headers["Location"].startswith(f"http://localhost:{hub.port}/cdn/")
    small = get_session().head(address(hub, "small.json"))
    assert (small.status_code, small.headers["Content-Length"]) == (200, "2")
    for url, error in ((address(hub, "no"), RemoteEntryNotFoundError), (address(hub)[:-6] * 2, HfHubHTTPError)):
        with pytest.raises(error):
            hf_raise_for_status(get_session().get(url))
    with pytest.raises(RepositoryNotFoundError):
        hf_raise_for_status(get_session().get(f"{hub.endpoint}/org/nobody/resolve/main/{NAME}"))


def test_a_signed_address_needs_no_token_and_expires(tmp_path: Path) -> None:
    with TestHub(tmp_path, settings=Settings(url_lifetime_s=0.3)) as hub:
        hub.put("models", REPO, {NAME: DATA}, private=True)
        head = get_session().head(address(hub), headers={"Authorization": "Bearer hf_test"}, follow_redirects=False)
        url = head.headers["Location"]
        assert get_session().get(url).content == DATA
        assert get_session().get(url.replace("signature=", "signature=0")).status_code == 403
        time.sleep(0.35)
        assert get_session().get(url).status_code == 403


def test_a_token_that_reaches_the_other_host_is_reported(hub: TestHub) -> None:
    hub.put("models", REPO, {NAME: DATA})
    url = signed(hub)
    get_session().get(url)
    assert hub.traffic.leaks == []
    get_session().get(url, headers={"Authorization": "Bearer hf_test"})
    assert len(hub.traffic.leaks) == 1 and NAME in hub.traffic.leaks[0]


def test_signed_addresses_may_be_of_the_same_host(tmp_path: Path) -> None:
    with TestHub(tmp_path / "hub", settings=Settings(cdn_host="")) as hub:
        hub.put("models", REPO, {NAME: DATA})
        assert fetch(hub, tmp_path / "cache") == DATA and hub.traffic.leaks == []


def test_a_rate_limit_is_waited_out(hub: TestHub, api: HfApi) -> None:
    hub.put("models", REPO, {"a": b"a"})
    hub.faults.add("rate_limit", path="/tree/", seconds=0)
    begun = time.monotonic()
    assert len(list(api.list_repo_tree(REPO))) == 2
    assert 1 <= time.monotonic() - begun < 5
    assert [seen.status for seen in hub.requests] == [429, 200]
    hub.faults.add("rate_limit", path="/refs", seconds=55)
    with pytest.raises(HfHubHTTPError, match=r"reached your 'api' rate limit.*\n*.*55 seconds"):
        api.list_repo_refs(REPO)


def test_a_dropped_download_goes_on_where_it_broke(hub: TestHub, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(12 << 20)
    hub.put("models", REPO, {NAME: data})
    hub.faults.add("drop", method="GET", path="^/cdn/", after_bytes=11 << 20)
    assert fetch(hub, tmp_path) == data
    first, second = [seen for seen in hub.requests if seen.bucket == "cdn"]
    assert (first.byte_range, first.sent, first.fault) == ("", 11 << 20, "drop")
    assert (second.byte_range, second.sent) == (f"bytes={10 << 20}-", 2 << 20)  # the client keeps whole 10 MiB


def test_the_client_does_not_notice_wrong_bytes(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    """Why every digest is checked by us: the real client compares sizes only, and keeps what it got."""
    hub.put("models", REPO, {NAME: DATA})
    hub.faults.add("wrong_bytes", path="^/cdn/")
    got = fetch(hub, tmp_path)
    middle = len(DATA) // 2
    assert got != DATA and len(got) == len(DATA)
    assert got[:middle] == DATA[:middle] and got[middle + 1 :] == DATA[middle + 1 :]
    assert fetch(hub, tmp_path) == got
    assert [m["path"] for m in api.verify_repo_checksums(REPO, cache_dir=tmp_path).mismatches] == [NAME]


def test_a_short_answer_is_an_error(hub: TestHub, tmp_path: Path) -> None:
    hub.put("models", REPO, {NAME: DATA})
    hub.faults.add("truncate", path="^/cdn/", after_bytes=1000)
    with pytest.raises(OSError, match="Consistency check failed"):
        fetch(hub, tmp_path)
    assert fetch(hub, tmp_path) == DATA


def test_a_damaged_cache_is_used_again(hub: TestHub, tmp_path: Path) -> None:
    """The other reason: a file that another process cut short is taken from the cache without a look."""
    hub.put("models", REPO, {NAME: DATA})
    path = Path(hf_hub_download(REPO, NAME, endpoint=hub.endpoint, cache_dir=tmp_path))
    with path.open("r+b") as file:
        file.truncate(1000)
    assert fetch(hub, tmp_path) == DATA[:1000]


def test_silence_expired_addresses_and_an_absent_hub(hub: TestHub, tmp_path: Path) -> None:
    hub.put("models", REPO, {NAME: DATA})
    hub.faults.add("stall", method="HEAD", seconds=0.3)
    hub.faults.add("stall", path="^/cdn/", seconds=0.3, after_bytes=1000)
    begun = time.monotonic()
    assert fetch(hub, tmp_path / "1") == DATA and time.monotonic() - begun > 0.6
    hub.faults.add("expired", path="^/cdn/")
    with pytest.raises(HfHubHTTPError, match="403"):
        fetch(hub, tmp_path / "2")
    down = hub.faults.add("down", times=None)
    for _ in range(2):
        with pytest.raises(Exception, match="disconnected"):
            get_session().get(address(hub))
    hub.faults.remove(down)
    hub.faults.add("reset", path="^/cdn/", after_bytes=1 << 16)
    with pytest.raises(Exception, match="reset by peer"):
        get_session().get(signed(hub))
    assert fetch(hub, tmp_path / "2") == DATA


def test_a_share_of_requests_fails_the_same_way_each_time(hub: TestHub) -> None:
    hub.put("models", REPO, {NAME: DATA})

    def outcomes(seed: int) -> list[int]:
        fault = hub.faults.add("unavailable", path="^/cdn/", times=None, share=0.3, seed=seed)
        url = signed(hub)
        found = [ranged(url, f"bytes={n}-{n}")[0] for n in range(100)]
        hub.faults.remove(fault)
        assert found.count(503) == fault.fired
        return found

    assert outcomes(1) == outcomes(1) != outcomes(2)
    assert 15 <= outcomes(1).count(503) <= 45


def test_ten_thousand_pages_are_no_burden(hub: TestHub) -> None:
    """A tenth of them: the time per page is the server's, not the disk's or the memory's."""
    hub.put("datasets", "org/data", {"pages.parquet": random.Random(3).randbytes(8 << 20)})
    url = f"{hub.endpoint}/datasets/org/data/resolve/main/pages.parquet"
    signed_url = get_session().head(url, follow_redirects=False).headers["Location"]
    begun = time.monotonic()
    for n in range(1000):
        assert ranged(signed_url, f"bytes={n * 1000}-{n * 1000 + 99_999}")[0] == 206
    assert time.monotonic() - begun < 20
    assert hub.traffic.stats()["bytes.cdn"] == 1000 * 100_000
