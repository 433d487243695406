"""kserve_v2: the codec of the Open Inference Protocol v2 (KServe, Triton, MLServer). Pure.

The protocol and its binary extension are those of Triton's ``docs/protocol``; what these leave
open is done as Triton's HTTP server does it. A joined request always asks for binary outputs,
which can be cut into rows without a look at a single number; each caller then gets its own rows in
the form that it asked for, JSON or binary. For servers that know only JSON there is
``binary=False``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gpu_batcher.api import SIZES, Call, Message, Placed, Reply, Tensor
from gpu_batcher.codecs import kserve_v2_answer as answers
from gpu_batcher.codecs import tensor_json
from gpu_batcher.codecs.json_body import JOINED_HEAD
from gpu_batcher.codecs.kserve_v2_request import Ask, Reader


class KserveV2:
    """``variable``: input name -> axes (from 1) that may differ within a batch, because they are
    padded or ragged. ``binary``: whether the server knows the binary extension; without it,
    requests with data that JSON cannot carry go alone, and outputs of FP16 are JSON numbers, as
    such a server's are, where Triton refuses them."""

    name = "kserve_v2"

    def __init__(
        self, variable: Mapping[str, tuple[int, ...]] | None = None, *, binary: bool = True
    ) -> None:
        self._binary = binary
        self._in_json = frozenset(SIZES).difference(("FP16", "BF16") if binary else ("BF16",))
        self._reader = Reader(variable or {}, self._in_json, json_only=not binary)

    def read(self, target: bytes, head: Mapping[bytes, bytes], body: memoryview) -> Call | None:
        """``target`` as it is sent to the server: ``/v2/models/M[/versions/V]/infer``. The tensors
        of the call are sorted by name, and views of ``body`` where they came as binary data."""
        return self._reader.read(target, head, body)

    def join(self, calls: Sequence[Call]) -> Message:
        """Copies no binary data: the body is the JSON and then the callers' own bytes, input by
        input. Raises ValueError where the keys differ, or dimensions that may differ do: such
        inputs are to be packed, and sent by ``head``."""
        first = calls[0]
        ask = _ask(first)
        rows = sum([call.rows for call in calls])
        if any(call.key != first.key for call in calls):
            raise ValueError("calls with different keys cannot be joined")
        entries = []
        body: list[bytes | bytearray | memoryview] = []
        for place, tensor in enumerate(first.inputs):
            tail = tensor.shape[1:]
            mine = [call.inputs[place] for call in calls]
            if any(each.shape[1:] != tail for each in mine):
                raise ValueError(f"input {tensor.name!r} differs in shape, so it is to be packed")
            chunks = [each.data for each in mine]
            joined = Tensor(tensor.name, tensor.datatype, (rows, *tail), b"")
            entries.append(self._input(ask, joined, chunks))
            body += chunks
        return self._request(ask, entries, body, ())

    def head(
        self, calls: Sequence[Call], inputs: Sequence[Placed], outputs: Sequence[Placed]
    ) -> Message:
        """Of packed inputs, in the given order. Where any of ``outputs`` is placed, the server
        answers those and the ones that the callers named; so place all, if they named none."""
        ask = _ask(calls[0])
        entries = []
        body: list[bytes | bytearray | memoryview] = []
        for placed in inputs:
            if placed.region:
                entries.append(_entry(placed.tensor, _region(placed), ask))
            else:
                data = answers.flat(placed.tensor.data)
                entries.append(self._input(ask, placed.tensor, [data]))
                body.append(data)
        return self._request(ask, entries, body, outputs)

    def outputs(self, answer: Message) -> list[Tensor]:
        """Not yet checked against the rows of any batch: ``deal`` does that."""
        return answers.tensors(*answers.opened(answer))

    def divide(self, calls: Sequence[Call], answer: Message) -> list[Reply]:
        """About 3 us for each call with binary outputs, and a copy of its rows."""
        given, rest = answers.opened(answer)
        told = answers.about(given)
        return answers.divided(calls, answers.tensors(given, rest), told, self._in_json)

    def deal(
        self,
        calls: Sequence[Call],
        outputs: Sequence[Tensor],
        answer: Message | None = None,
        own: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> list[Reply]:
        """See ``TensorCodec``. A part in ``own`` has the call's rows as its first dimension, any
        others, and the datatype of its output, of which nothing else is looked at then. The bodies
        are copies: whatever the tensors are views of is free afterwards."""
        if answer is not None:
            told = answers.about(answers.opened(answer)[0])
        else:
            ask = _ask(calls[0])
            fields = {"model_name": ask.model}
            if ask.version:
                fields["model_version"] = ask.version
            told = answers.About(fields, {})
        return answers.divided(calls, outputs, told, self._in_json, own)

    def reply(self, call: Call, outputs: Sequence[Tensor]) -> Reply:
        """``deal`` for one."""
        return self.deal((call,), outputs)[0]

    def _input(
        self, ask: Ask, tensor: Tensor, chunks: Sequence[bytes | bytearray | memoryview]
    ) -> dict[str, Any]:
        """As it stands in the JSON; ``chunks`` are its data."""
        if self._binary:
            return _entry(tensor, {"binary_data_size": sum([len(each) for each in chunks])}, ask)
        text = tensor_json.encode(tensor.datatype, memoryview(b"".join(chunks)))
        return {**_entry(tensor, {}, ask), "data": msgspec.Raw(text)}

    def _request(
        self,
        ask: Ask,
        entries: list[dict[str, Any]],
        body: list[bytes | bytearray | memoryview],
        outputs: Sequence[Placed],
    ) -> Message:
        regions = {placed.tensor.name: _region(placed) for placed in outputs}
        form: dict[str, Any] = {"binary_data": True} if self._binary else {}
        wanted: list[dict[str, Any]] = []
        for each in ask.outputs:
            where = regions.pop(each.name, form)
            wanted.append({"name": each.name, "parameters": {**_parameters(each.extras), **where}})
        wanted += [{"name": name, "parameters": region} for name, region in regions.items()]
        parameters = _parameters(ask.parameters)
        if self._binary:
            parameters["binary_data_output"] = True
        request: dict[str, Any] = {"inputs": entries}
        if wanted:
            request["outputs"] = wanted
        if parameters:
            request["parameters"] = parameters
        text = msgspec.json.encode(request)
        if not self._binary:
            return Message([text], dict(JOINED_HEAD))
        return Message([text, *body], {**JOINED_HEAD, **answers.binary_head(text)})


def _ask(call: Call) -> Ask:
    assert isinstance(call.notes, Ask)
    return call.notes


def _entry(tensor: Tensor, parameters: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """An input as the JSON of a request names it."""
    entry: dict[str, Any] = {
        "name": tensor.name,
        "shape": tensor.shape,
        "datatype": tensor.datatype,
    }
    extras = _parameters(ask.inputs.get(tensor.name, ()))
    if extras or parameters:
        entry["parameters"] = {**extras, **parameters}
    return entry


def _parameters(extras: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    return {name: msgspec.Raw(text) for name, text in extras}


def _region(placed: Placed) -> dict[str, Any]:
    tensor = placed.tensor
    # A buffer on a device has no view here, but then its elements are of a fixed size.
    size = memoryview(tensor.data).nbytes or math.prod(tensor.shape) * SIZES[tensor.datatype]
    region: dict[str, Any] = {
        "shared_memory_region": placed.region,
        "shared_memory_byte_size": size,
    }
    if placed.offset:
        region["shared_memory_offset"] = placed.offset
    return region
