"""What huggingface_hub raises becomes one line of ours that says the fix."""

from __future__ import annotations

import errno

import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status, httpx

from distributed_training.errors import ConfigError, DistributedTrainingError, LocalFault
from distributed_training.hub import HubConflict, HubDenied, HubFault, HubMissing, Repo, hub_errors, translate

REPO = Repo("org/run")


def answer(status: int, code: str | None = None, message: str | None = None) -> HfHubHTTPError:
    """The error that the client itself makes of an answer of the Hub."""
    request = httpx.Request("GET", "https://huggingface.co/api/models/org/run/revision/main")
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    response = httpx.Response(status, headers={k: v for k, v in headers.items() if v is not None}, request=request)
    with pytest.raises(HfHubHTTPError) as caught:
        hf_raise_for_status(response)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (answer(404, "RepoNotFound"), HubMissing, "check the name"),
        (answer(401), HubMissing, "set HF_TOKEN"),
        (answer(401, None, "Invalid credentials in Authorization header"), HubDenied, "does not know this token"),
        (answer(403, "GatedRepo"), HubMissing, "private or gated"),
        (answer(404, "RevisionNotFound"), HubMissing, "no such revision"),
        (answer(404, "EntryNotFound"), HubMissing, "no such file"),
        (answer(403, None, "token has no write access"), HubDenied, "role 'write'"),
        (answer(412), HubConflict, "changed meanwhile"),
        (answer(409), HubConflict, "changed meanwhile"),
        (answer(429), HubFault, "rate limit"),
        (answer(503), HubFault, "answers 503"),
        (OfflineModeIsEnabled("offline"), ConfigError, "unset it"),
        (HFValidationError("bad\nname"), ConfigError, "expected ORG/NAME"),
        (LocalTokenNotFoundError("no token"), HubDenied, "there is no token"),
        (httpx.ConnectError("[Errno 111] Connection refused"), HubFault, "Connection refused"),
        (OSError(errno.ENOSPC, "No space left on device"), HubFault, "No space left"),
        (ValueError("LFS batch API\nreturned errors"), HubFault, "LFS batch API returned errors"),
    ],
)
def test_each_error_is_one_line_that_says_the_fix(error: Exception, kind: type[Exception], words: str) -> None:
    found = translate(error, REPO, "cannot read")
    assert type(found) is kind
    assert str(found).startswith("cannot read: ") and words in str(found) and "\n" not in str(found)


def test_what_an_upload_failed_of_is_what_is_said() -> None:
    with pytest.raises(HubDenied, match="may not change"), hub_errors(REPO, "cannot publish"):
        try:
            raise answer(403)
        except HfHubHTTPError as error:
            raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from error


def test_our_own_errors_pass() -> None:
    with pytest.raises(LocalFault, match=r"^ours$"), hub_errors(REPO, "cannot read"):
        raise LocalFault("ours")
    assert issubclass(HubFault, LocalFault) and issubclass(HubMissing, DistributedTrainingError)
