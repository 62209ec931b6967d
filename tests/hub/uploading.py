"""Routes of the LFS protocol: where to upload an object, the upload in one piece or in parts, and its check."""

from __future__ import annotations

from math import ceil
from typing import Any

from hub.blobs import BadBlobError
from hub.context import Context
from hub.wire import HubError, Reply, Request, json_reply, route

OID = r"(?P<oid>[0-9a-f]{64})"


def batch(context: Context, request: Request) -> Reply:
    context.writable(request)
    objects = [_actions(context, request, item["oid"], item["size"]) for item in request.json().get("objects", [])]
    return json_reply({"transfer": "basic", "objects": objects})


def _actions(context: Context, request: Request, oid: str, size: int) -> dict[str, Any]:
    """No actions: the object is here already."""
    if context.store.blobs.has(oid):
        return {"oid": oid, "size": size}
    verify = {"href": f"{request.base_url}{request.path.removesuffix('/objects/batch')}/verify"}
    part = context.settings.part_bytes
    if size <= part:
        upload: dict[str, Any] = {"href": context.sign(request, f"/upload/{oid}")}
    else:
        count = ceil(size / part)
        header = {f"{n:05d}": context.sign(request, f"/upload/{oid}/{n}") for n in range(1, count + 1)}
        upload = {
            "href": context.sign(request, f"/upload/{oid}/complete"),
            "header": {"chunk_size": str(part), **header},
        }
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def put_whole(context: Context, request: Request) -> Reply:
    context.check_signature(request, request.path)
    try:
        context.store.blobs.receive(request.body, request.groups["oid"])
    except BadBlobError as error:
        raise HubError(400, f"BadDigest: {error}") from None
    return Reply(headers={"ETag": f'"{request.groups["oid"]}"'})


def put_part(context: Context, request: Request) -> Reply:
    context.check_signature(request, request.path)
    etag = context.store.blobs.receive_part(request.body, request.groups["oid"], int(request.groups["part"]))
    return Reply(headers={"ETag": f'"{etag}"'})


def complete(context: Context, request: Request) -> Reply:
    context.check_signature(request, request.path)
    oid = request.groups["oid"]
    request.content = request.body.read()
    numbers = [int(part["partNumber"]) for part in request.json().get("parts", [])]
    try:
        # Joining twice is harmless: a client that lost the first answer asks again.
        if not context.store.blobs.has(oid):
            context.store.blobs.complete(oid, numbers)
    except BadBlobError as error:
        raise HubError(400, str(error)) from None
    return json_reply({})


def verify(context: Context, request: Request) -> Reply:
    context.writable(request)
    body = request.json()
    blobs = context.store.blobs
    if not blobs.has(body["oid"]) or blobs.size(body["oid"]) != body["size"]:
        raise HubError(404, "Object not found")
    return json_reply({})


LFS = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs"
ROUTES = [
    route("POST", rf"{LFS}/objects/batch", batch),
    route("POST", rf"{LFS}/verify", verify),
    route("PUT", rf"/upload/{OID}", put_whole, streaming=True),
    route("PUT", rf"/upload/{OID}/(?P<part>\d+)", put_part, streaming=True),
    route("POST", rf"/upload/{OID}/complete", complete, streaming=True),
]
