"""NaN and Infinity are no JSON, but Triton takes them and its client sends them."""

from __future__ import annotations

import pytest

from gpu_batcher.api import BadRequestError
from gpu_batcher.codecs.kserve_v2 import KserveV2

TARGET = b"/v2/models/m/infer"


def body(data: str) -> bytes:
    entry = '{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [' + data + "]}"
    return b'{"inputs": [%b]}' % entry.encode()


@pytest.mark.parametrize("data", ["NaN, 1.0", "1.0, -Infinity", "Infinity, NaN"])
def test_it_goes_alone(data: str) -> None:
    assert KserveV2().read(TARGET, {}, memoryview(body(data))) is None


@pytest.mark.parametrize("data", ["nan, 1.0", "1.0, -inf", "1.0,"])
def test_other_words_are_malformed(data: str) -> None:
    with pytest.raises(BadRequestError):
        KserveV2().read(TARGET, {}, memoryview(body(data)))
