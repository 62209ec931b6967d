"""Addresses that files redirect to, and until when they are good."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

_MARGIN_S = 5.0  # an address that expires so soon is not used any more


class Way:
    """An address that gives a file's bytes, for a time."""

    def __init__(self, url: str) -> None:
        self.url, self._since = url, time.monotonic()
        expires = _expiry(url)
        self._until = math.inf if expires is None else self._since + expires - time.time() - _MARGIN_S

    def expired(self) -> bool:
        return time.monotonic() >= self._until

    def age_s(self) -> float:
        return time.monotonic() - self._since


def _expiry(url: str) -> float | None:
    """When a signed address expires, in seconds since 1970, as CloudFront and S3 write it; None: it does not say."""
    query = {name.lower(): values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    try:
        if "expires" in query:
            return float(query["expires"])
        if "x-amz-date" in query:
            signed = datetime.strptime(query["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return signed.timestamp() + float(query["x-amz-expires"])
    except (ValueError, KeyError):
        pass
    return None


def origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
