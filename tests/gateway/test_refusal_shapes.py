"""The body of a refusal is what the clients of the path parse."""

from __future__ import annotations

import json

import pytest

from filters.api import Reason, Reject
from gateway.replies import TABLE, render, says_text
from tests.harness import gateway
from tests.wire.table import check_refusal, post

TEXTS = [
    b"/v2/models/m/infer",
    b"/v2/models/m/versions/3/infer",
    b"/prefix/v2/models/m/infer",
    b"/v2/health/ready",
    b"/v2/systemsharedmemory/region/x/register",
    b"/v1/models/m:predict",
    b"/x/v1/models/m:explain",
]
OBJECTS = [b"/v1/embeddings", b"/v1/chat/completions", b"/v2/rerank", b"/v2/chat", b"/", b""]


@pytest.mark.parametrize("path", TEXTS)
@pytest.mark.parametrize("reason", [*Reason])
def test_clients_of_tensors_get_a_text(path: bytes, reason: Reason) -> None:
    status, headers, body = render(Reject(reason, "what it was"), b"id", path)
    told = json.loads(body)
    assert list(told) == ["error"]
    assert told["error"].startswith(TABLE[reason].message)
    assert status == TABLE[reason].status
    assert (b"x-tailrace-reason", reason.value.encode()) in headers


@pytest.mark.parametrize("path", OBJECTS)
def test_all_others_get_an_object(path: bytes) -> None:
    assert not says_text(path)
    _, _, body = render(Reject(Reason.SHED), b"id", path)
    assert json.loads(body)["error"]["code"] == "shed"


async def test_through_a_gateway() -> None:
    async with gateway("http://127.0.0.1:1") as running:
        for target in (b"/v2/models/m/infer", b"/v1/embeddings"):
            asked = post(b"Content-Length: 2", body=b"{}", target=target)
            response = await running.ask(asked, b"POST")
            check_refusal(response, 502, reason="connect_failed")
            said = json.loads(response.body)["error"]
            assert isinstance(said, str) == target.startswith(b"/v2")
