"""What the formats in JSON have in common: which heads they read, and who gets an answer's fields;
and the table of formats."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gpu_batcher.api import BadAnswerError, Call, Message
from gpu_batcher.codecs.kserve_v1 import KServeV1
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.codecs.openai_embeddings import OpenAiEmbeddings
from gpu_batcher.codecs.registry import FORMATS, is_tensor_codec, make

PREDICT = b"/v1/models/m:predict"
INFER = b"/v2/models/m/infer"
EMBED = b"/v1/embeddings"
TENSOR = b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}'


def predict(instances: str = "[1]") -> Call:
    body = memoryview(b'{"instances": ' + instances.encode() + b"}")
    call = KServeV1().read(PREDICT, {}, body)
    assert call is not None
    return call


def embed(text: str) -> Call:
    call = OpenAiEmbeddings().read(EMBED, {}, memoryview(json.dumps({"input": text}).encode()))
    assert call is not None
    return call


# -- heads -----------------------------------------------------------------------------------------

JSON = b"application/json"


@pytest.mark.parametrize(
    ("head", "as_json", "as_tensors"),
    [
        ({}, True, True),
        ({b"content-type": b"Application/JSON; charset=UTF-8"}, True, True),
        ({b"content-type": b'application/json;charset="utf-8"'}, True, True),
        ({b"content-type": b"application/json; a=b; Charset = utf8 "}, True, True),
        ({b"content-type": b"application/json; a=b"}, True, True),
        ({b"content-type": JSON, b"content-encoding": b" Identity"}, True, True),
        # What a client says that forgets to say anything (curl), and tritonclient. Triton never
        # looks at it; servers of the other formats do, so they are to be asked.
        ({b"content-type": b"application/x-www-form-urlencoded"}, False, True),
        ({b"content-type": b"application/octet-stream"}, False, True),
        ({b"content-type": b"text/plain"}, False, True),
        ({b"content-type": b"text/plain; charset=latin-1"}, False, False),
        ({b"content-type": b"application/json; charset=utf-16"}, False, False),
        ({b"content-type": b"application/json; a=b; charset=latin-1"}, False, False),
        ({b"content-type": JSON, b"content-encoding": b"gzip"}, False, False),
        ({b"content-type": JSON, b"content-encoding": b"identity, br"}, False, False),
    ],
)
def test_heads(head: dict[bytes, bytes], as_json: bool, as_tensors: bool) -> None:
    """What is not read goes alone: also where the body could not be read at all."""
    predicted = KServeV1().read(PREDICT, head, memoryview(b'{"instances":[1]}'))
    embedded = OpenAiEmbeddings().read(EMBED, head, memoryview(b'{"input":"a"}'))
    inferred = KserveV2().read(INFER, head, memoryview(TENSOR))
    assert (predicted is not None) is (embedded is not None) is as_json
    assert (inferred is not None) is as_tensors
    if not as_tensors:
        noise = memoryview(b"\x1f\x8b\x00")
        assert KServeV1().read(PREDICT, head, noise) is None
        assert OpenAiEmbeddings().read(EMBED, head, noise) is None
        assert KserveV2().read(INFER, head, noise) is None


def test_no_format_asks_for_a_compressed_answer() -> None:
    """Its caller may have: tritonclient can."""
    tensors = KserveV2().read(INFER, {}, memoryview(TENSOR))
    assert tensors is not None
    for message in (
        KServeV1().join([predict()]),
        OpenAiEmbeddings().join([embed("a")]),
        KserveV2().join([tensors]),
        KserveV2(binary=False).join([tensors]),
    ):
        assert message.head[b"accept-encoding"] == b"identity"


# -- who gets what of an answer --------------------------------------------------------------------

VALUES = [
    ('"a [b]"', False), ("7", False), ("[]", False), ('{"name": "m", "labels": []}', False),
    ("[1, 2]", True), ('{"scores": {"x": [1]}}', True), ('[[], {"a": "["}]', True),
]  # fmt: skip


@pytest.mark.parametrize(("value", "held"), VALUES)
def test_what_may_be_about_another_is_given_to_nobody(value: str, held: bool) -> None:
    calls = [predict("[1]"), predict("[2]")]
    text = '{"predictions": [1, 2], "model_version": "7", "secret": ' + value + "}"
    if held:
        with pytest.raises(BadAnswerError, match="besides predictions holds a list") as caught:
            KServeV1().divide(calls, Message([text.encode()]))
        assert "secret" not in str(caught.value)
        return
    replies = KServeV1().divide(calls, Message([text.encode()]))
    for reply, each in zip(replies, (1, 2), strict=True):
        assert json.loads(reply.body) == {"predictions": [each], "model_version": "7"}


def test_even_a_known_field_is_to_be_one_value() -> None:
    text = b'{"predictions": [1, 2], "model_name": {"a": 1}}'
    (first, _) = KServeV1().divide([predict(), predict()], Message([text]))
    assert json.loads(first.body) == {"predictions": [1]}


def test_a_single_caller_of_predictions_gets_all_there_is() -> None:
    text = b'{"scores": [0.1], "predictions": [1], "deployed": {"v": [2]}}'
    (reply,) = KServeV1().divide([predict()], Message([text]))
    assert reply.body == b'{"scores":[0.1],"predictions":[1],"deployed":{"v": [2]}}'


DATA = '"data": [{"index": 0, "embedding": [0.5]}, {"index": 1, "embedding": [1.5]}]'


def test_an_id_made_of_the_first_callers_is_given_to_nobody() -> None:
    """As vLLM's is, of x-request-id."""
    text = '{"id": "embd-mine", "object": "list", "created": 7, "meta": {"v": []}, "usage": null, '
    calls = [embed("a"), embed("b")]
    for reply in OpenAiEmbeddings().divide(calls, Message([(text + DATA + "}").encode()])):
        body = json.loads(reply.body)
        assert set(body) == {"data", "object", "created", "usage"}
        assert (body["object"], body["created"], body["usage"]) == ("list", 7, None)


def test_a_single_caller_of_embeddings_gets_all_there_is() -> None:
    text = b'{"id": "e", "usage": {"prompt_tokens": 3, "of": {"x": [1]}}, "more": [1], "data": ['
    text += b'{"index": 0, "embedding": [0.5]}]}'
    (reply,) = OpenAiEmbeddings().divide([embed("a")], Message([text]))
    body = json.loads(reply.body)
    assert (body["id"], body["more"]) == ("e", [1])
    assert body["usage"] == {"prompt_tokens": 3, "of": {"x": [1]}}


@pytest.mark.parametrize(
    "text", [b'{"predictions": [1, "\xfe"]}', b'{"predictions": [1], "a\xfe": 1}', b"\xfe"]
)
def test_an_error_for_all_says_nothing_of_the_answer(text: bytes) -> None:
    """Python's own words for it are: can't decode byte 0xfe."""
    with pytest.raises(BadAnswerError) as caught:
        KServeV1().divide([predict(), predict()], Message([text]))
    assert "fe" not in str(caught.value)


# -- the table of formats --------------------------------------------------------------------------


def test_every_format_is_made() -> None:
    for name in FORMATS:
        for binary in (True, False):
            codec = make(name, {}, binary)
            assert codec.name == name
            assert is_tensor_codec(codec) is (name == "kserve_v2")


def test_what_formats_are_made_with() -> None:
    codec = make("kserve_v2", {"x": (1,)})
    keys = set()
    for size in (1, 2):
        given = {"name": "x", "shape": [1, size], "datatype": "INT8", "data": [0] * size}
        body = json.dumps({"inputs": [given]}).encode()
        call = codec.read(INFER, {}, memoryview(body))
        assert call is not None
        keys.add(call.key)
    assert len(keys) == 1
    call = make("openai_embeddings", binary=False).read(
        EMBED, {}, memoryview(b'{"input": "a", "encoding_format": "float"}')
    )
    assert call is not None
    joined = make("openai_embeddings", binary=False).join([call])
    assert json.loads(joined.joined())["encoding_format"] == "float"


def test_what_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="expected one of kserve_v1, kserve_v2, openai_emb"):
        make("kserve_v3")
    for name in ("kserve_v1", "openai_embeddings"):
        with pytest.raises(ValueError, match="no tensors"):
            make(name, {"x": (1,)})
    with pytest.raises(ValueError, match="count from 1"):
        make("kserve_v2", {"x": (0,)})


def test_numpy_is_not_loaded_for_formats_that_do_without() -> None:
    code = (
        "import sys; from gpu_batcher.codecs import registry, kserve_v1, openai_embeddings;"
        "registry.make('kserve_v1'); registry.make('kserve_v2'); print('numpy' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "False"
