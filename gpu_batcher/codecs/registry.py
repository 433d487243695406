"""registry: the formats that a route can have, by the names they have in its configuration. Pure.

Whoever only asks for the names, as the configuration's schema does, loads no codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeGuard, get_args

if TYPE_CHECKING:
    from gpu_batcher.api import Codec, TensorCodec

Format = Literal["kserve_v1", "kserve_v2", "openai_embeddings"]
FORMATS: tuple[Format, ...] = get_args(Format)


def make(
    format: str,  # noqa: A002
    variable: Mapping[str, tuple[int, ...]] | None = None,
    binary: bool = True,
    sole: bool = False,
) -> Codec:
    """The codec of a format, for one route.

    ``variable``: input name -> axes (from 1) that may differ within a batch; only inputs that are
    tensors have any. ``binary``: whether the server knows the compact form of the format: the
    binary tensor extension of kserve_v2, base64 of openai_embeddings; kserve_v1 has none. ``sole``:
    there is no server that could answer what goes alone, so what is wrong with it is said here.
    Raises ValueError for what cannot be, and ImportError where the format needs NumPy and it is
    missing.
    """
    if format == "kserve_v2":
        from gpu_batcher.codecs.kserve_v2 import KserveV2

        return KserveV2(variable, binary=binary)
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}, expected one of {', '.join(FORMATS)}")
    if variable:
        raise ValueError(f"{format} has no tensors, so none that vary in shape")
    if format == "kserve_v1":
        from gpu_batcher.codecs.kserve_v1 import KServeV1

        return KServeV1()
    # Numbers are made of base64 by NumPy. Loading it takes a tenth of a second, which is better
    # spent at the start than in the middle of the first batch.
    import numpy  # noqa: F401

    from gpu_batcher.codecs.openai_embeddings import OpenAiEmbeddings

    return OpenAiEmbeddings(upstream_base64=binary, sole=sole)


def is_tensor_codec(codec: Codec) -> TypeGuard[TensorCodec]:
    """Whether the inputs of a format are tensors, so that they can be packed."""
    return all(hasattr(codec, name) for name in ("head", "outputs", "deal"))
