"""Batches through system shared memory, and what a real server (2.51) says to everything else.

What the runner relies on: a region is known by its name, and its key must be no other region's;
unregistering an unknown one is fine; one that is in use cannot be unregistered, and nothing is put
off: ask again until it is let go. An inference whose client has left goes on, also if it had not
begun, and writes its outputs. A restarted server knows no region, and says 404 with a text that
tells it from an unknown model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest

from gpu_batcher.api import Placed, Tensor
from gpu_batcher.codecs.kserve_v2 import KserveV2
from loadtests.oip.triton import SHARED_MEMORY
from tests.triton.client import BOUND, SHARED, Answer, Triton, asked, read
from tests.triton.test_codec import read_calls

SIZE = 8192
UNKNOWN = "Unable to find shared memory region"
IN_USE = "it is currently in use."


class Region:
    """Of this process; ``name`` is its name at the server as well as its key."""

    def __init__(self, size: int = SIZE) -> None:
        # Not multiprocessing's: that cannot be closed quietly while a failed test holds a view.
        with NamedTemporaryFile(prefix="tailrace-test-", dir=SHARED_MEMORY, delete=False) as file:
            file.truncate(size)
            self.view = memoryview(mmap(file.fileno(), size))
        self.path = Path(file.name)
        self.name = self.path.name

    def unlink(self) -> None:
        self.path.unlink(missing_ok=True)

    def floats(self, count: int, offset: int = 0) -> list[float]:
        found: list[float] = np.frombuffer(bytes(self.view[offset:]), np.float32, count).tolist()
        return found


@pytest.fixture
def regions() -> Iterator[tuple[Region, Region]]:
    both = Region(), Region()
    yield both
    for each in both:
        each.unlink()


@pytest.fixture
async def placed(triton: Triton, regions: tuple[Region, Region]) -> tuple[Region, Region]:
    """Registered; the fixture's end does not unregister, but a key is used only once."""
    for each in regions:
        assert (await triton.register(each.name, each.name, SIZE)).status == 200
    return regions


def where(region: str, size: int, offset: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"shared_memory_region": region, "shared_memory_byte_size": size}
    if offset:
        found["shared_memory_offset"] = offset
    return found


def inference(source: dict[str, Any], sink: dict[str, Any] | None, rows: int = 2) -> dict[str, Any]:
    """Of ``elementwise``."""
    x = {"name": "X", "shape": [rows, 16], "datatype": "FP32", "parameters": source}
    fields: dict[str, Any] = {"inputs": [x]}
    if sink is not None:
        fields["outputs"] = [{"name": "Y", "parameters": sink}]
    return fields


async def test_a_padded_batch_through_regions(
    triton: Triton, placed: tuple[Region, Region]
) -> None:
    """Requests of different lengths, padded here by hand, their mask beside them; each caller is
    dealt his own part, and it is what the server answers him directly."""
    source, sink = placed
    widths, rows = (3, 7, 1, 5), (1, 2, 3, 1)
    requests = []
    for number, (width, count) in enumerate(zip(widths, rows, strict=True)):
        x = np.arange(count * width, dtype=np.float32).reshape(count, width) + 10 * number + 0.25
        given = {"VALUES": ("FP32", x), "MASK": ("BOOL", np.ones(x.shape, np.bool_))}
        requests.append(asked("masked", given, outputs=["DOUBLED", "SUM"], request_id=str(number)))
    codec = KserveV2({"VALUES": (1,), "MASK": (1,)})
    calls = read_calls(codec, requests)
    assert len({call.key for call in calls}) == 1
    total, longest = sum(rows), max(widths)
    values = np.frombuffer(source.view, np.float32, total * longest).reshape(total, longest)
    mask = np.frombuffer(source.view, np.bool_, total * longest, SIZE // 2).reshape(total, longest)
    values[:], mask[:] = 999, False
    at = 0
    for call, width in zip(calls, widths, strict=True):
        (sent,) = [each for each in call.inputs if each.name == "VALUES"]
        values[at : at + call.rows, :width] = np.frombuffer(sent.data, np.float32).reshape(
            sent.shape
        )
        mask[at : at + call.rows, :width] = True
        at += call.rows
    shape = (total, longest)
    half, size = SIZE // 2, 4 * total * longest
    inputs = [
        Placed(Tensor("VALUES", "FP32", shape, source.view[:size]), source.name),
        Placed(Tensor("MASK", "BOOL", shape, source.view[half:][: size // 4]), source.name, half),
    ]
    outputs = [
        Placed(Tensor("DOUBLED", "FP32", shape, sink.view[:size]), sink.name),
        Placed(Tensor("SUM", "FP32", (total, 1), sink.view[half:][: 4 * total]), sink.name, half),
    ]
    message = codec.head(calls, inputs, outputs)
    answer = await triton.infer("masked", message.joined(), message.head)
    assert answer.status == 200, answer
    views = {each.tensor.name: each.tensor.data for each in outputs}
    told = [
        Tensor(each.name, each.datatype, each.shape, views[each.name])
        for each in codec.outputs(answer.message)
    ]
    doubled = np.frombuffer(sink.view, np.float32, total * longest).reshape(shape)
    own, at = [], 0
    for call, width in zip(calls, widths, strict=True):
        part = np.ascontiguousarray(doubled[at : at + call.rows, :width])
        own.append(Tensor("DOUBLED", "FP32", part.shape, part.tobytes()))
        at += call.rows
    replies = codec.deal(calls, told, answer.message, {"DOUBLED": own})
    for request, reply in zip(requests, replies, strict=True):
        direct = await triton.ask(request)
        assert read(reply.body, reply.head).agrees(read(direct.body, direct.head))


async def test_bytes_through_regions(triton: Triton, placed: tuple[Region, Region]) -> None:
    """The size of an output is a bound: the answer does not say how much was written."""
    source, sink = placed
    data = b"\x01\0\0\0a" + b"\0\0\0\0" + b"\x02\0\0\0\xff\0"
    source.view[: len(data)] = data
    x = {"name": "X_BYTES", "shape": [3, 1], "datatype": "BYTES"}
    fields = {
        "inputs": [{**x, "parameters": where(source.name, len(data))}],
        "outputs": [{"name": "Y_BYTES", "parameters": where(sink.name, SIZE)}],
    }
    answer = await triton.infer("echo", fields)
    assert answer.json["outputs"] == [{"name": "Y_BYTES", "datatype": "BYTES", "shape": [3, 1]}]
    assert bytes(sink.view[: len(data) + 4]) == data + b"\0\0\0\0"


async def test_registering(triton: Triton, regions: tuple[Region, Region]) -> None:
    a, b = regions
    said = await triton.register("none", "no-such-key", 64)
    assert (said.status, said.error) == (
        500,
        "Unable to open shared memory region: '/no-such-key'",
    )
    said = await triton.register(a.name, a.name, 10 * SIZE)
    assert (said.status, said.error.endswith("invalid args")) == (400, True)
    for offset, size in ((100, 64), (0, 0)):
        said = await triton.register(a.name, a.name, size, offset)
        assert (said.status, "unable to process address space" in said.error) == (400, True)
    said = await triton.register(a.name, a.name, SIZE)
    assert (said.status, said.body) == (200, b"")
    for key in (a.name, b.name):
        said = await triton.register(a.name, key, SIZE)
        assert (said.status, said.error) == (
            400,
            f"shared memory region '{a.name}' already in manager",
        )
    one = {"name": a.name, "key": f"/{a.name}", "offset": 0, "byte_size": SIZE}
    said = await triton.status(a.name)
    assert (said.status, said.json) == (200, [one])
    assert one in (await triton.status()).json
    for _ in range(2):  # the second time it is unknown
        said = await triton.unregister(a.name)
        assert (said.status, said.body) == (200, b"")
    said = await triton.status(a.name)
    assert (said.status, said.error) == (
        404,
        f"Unable to find system shared memory region: '{a.name}'",
    )


async def test_a_key_has_one_name(triton: Triton, regions: tuple[Region, Region]) -> None:
    """As long as it is registered: this server looks at a descriptor that it has closed since. The
    runner gives every region a key of its own, so this only says that it has to."""
    a, _ = regions
    assert (await triton.register(a.name, a.name, SIZE)).status == 200
    assert (await triton.register(f"{a.name}-2", a.name, SIZE)).status in (400, 500)
    assert (await triton.unregister(a.name)).status == 200
    assert (await triton.register(f"{a.name}-2", a.name, SIZE)).status == 200
    assert (await triton.unregister(f"{a.name}-2")).status == 200


async def test_an_unlinked_region_works_until_it_is_unregistered(
    triton: Triton, placed: tuple[Region, Region]
) -> None:
    source, sink = placed
    for each in placed:
        each.unlink()
    answer = await triton.infer(
        "elementwise", inference(where(source.name, 128), where(sink.name, 128))
    )
    assert (answer.status, sink.floats(32)) == (200, [1.0] * 32)
    assert (await triton.unregister(sink.name)).status == 200
    answer = await triton.infer(
        "elementwise", inference(where(source.name, 128), where(sink.name, 128))
    )
    assert (answer.status, answer.error) == (404, f"{UNKNOWN}: '{sink.name}'")


async def test_what_is_refused(triton: Triton, placed: tuple[Region, Region]) -> None:
    a, b = (each.name for each in placed)
    fine = where(a, 128)
    bound = "Invalid offset + byte size for shared memory region"
    cases: list[tuple[dict[str, Any], int, str]] = [
        (inference(where("nobody", 128), None), 404, f"{UNKNOWN}: 'nobody'"),
        (inference(fine, where("nobody", 128)), 404, f"{UNKNOWN}: 'nobody'"),
        (inference(where(a, 128, SIZE - 64), None), 400, bound),
        (inference(fine, where(b, 128, SIZE - 64)), 400, bound),
        (inference(fine, {"shared_memory_region": b}), 400, bound),
        (inference(where(a, 64), None), 400, "input byte size mismatch"),
        (inference(where(a, 256), None), 400, "input byte size mismatch"),
        (inference(fine, where(b, 64)), 500, "(64 bytes) should be at least 128 bytes"),
        (inference(fine, {**where(b, 128), "binary_data": True}), 400, "can't set both"),
    ]
    for fields, status, text in cases:
        answer = await triton.infer("elementwise", fields)
        assert (answer.status, text in answer.error) == (status, True), answer
    # More than is needed is fine, and so are odd offsets and one region for both.
    answer = await triton.infer(
        "elementwise", inference(where(a, 128, 4), where(a, SIZE - 201, 201))
    )
    assert answer.status == 200, answer


async def test_a_region_in_use_cannot_be_unregistered(
    triton: Triton, placed: tuple[Region, Region]
) -> None:
    source, sink = placed
    fields = inference(where(source.name, 128), where(sink.name, 128))
    running, refused = await in_use(triton, sink, fields)
    assert refused == f"Cannot unregister shared memory region '{sink.name}', {IN_USE}"
    said = await triton.send("POST", f"{SHARED}/unregister")
    assert (said.status, sink.name in said.error) == (500, True)
    # Nothing is put off: it is there, now and afterwards.
    assert (await triton.status(sink.name)).status == 200
    answer = await running
    assert (answer.status, sink.floats(32)) == (200, [1.0] * 32)
    assert (await triton.status(sink.name)).status == 200
    assert (await triton.unregister(sink.name)).status == 200


async def test_an_inference_whose_client_has_left_still_writes(
    triton: Triton, placed: tuple[Region, Region]
) -> None:
    """Also one that is waiting its turn. When its region can be unregistered, it is over."""
    source, sink = placed
    first, _ = await in_use(triton, source, inference(where(source.name, 128), None))
    fields = inference(where(source.name, 128), where(sink.name, 128))
    second, _ = await in_use(triton, sink, fields)
    for task in (first, second):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await until_let_go(triton, sink)
    assert sink.floats(32) == [1.0] * 32


async def in_use(
    triton: Triton, region: Region, fields: dict[str, Any]
) -> tuple[asyncio.Task[Answer], str]:
    """An inference that takes its time, seen to be using the region, and how the server refused to
    unregister that. The inference that comes while it is unregistered is refused, and sent again.
    """
    task = asyncio.create_task(triton.infer("slow", fields))
    async with asyncio.timeout(BOUND):
        while (said := await triton.unregister(region.name)).status == 200:
            assert (await triton.register(region.name, region.name, SIZE)).status == 200
            if task.done():
                assert UNKNOWN in (await task).error
                task = asyncio.create_task(triton.infer("slow", fields))
            await asyncio.sleep(0.01)
    assert (said.status, IN_USE in said.error) == (500, True)
    return task, said.error


async def until_let_go(triton: Triton, region: Region) -> None:
    async with asyncio.timeout(BOUND):
        while (said := await triton.unregister(region.name)).status != 200:
            assert IN_USE in said.error
            await asyncio.sleep(0.01)
