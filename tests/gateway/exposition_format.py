"""A strict reader of the Prometheus text format 0.0.4: what it does not know, it refuses."""

from __future__ import annotations

import math
import re

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
_HELP = re.compile(rf"# HELP ({_NAME}) (.+)")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram)")
_SAMPLE = re.compile(
    rf"({_NAME})(?:\{{((?:{_LABEL})(?:,{_LABEL})*)\}})? (-?[0-9.]+(?:e[+-]?[0-9]+)?|[+-]?inf|nan)"
)
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Every sample by name and labels. AssertionError for whatever a scraper might refuse."""
    assert text.endswith("\n")
    samples: Samples = {}
    described: set[str] = set()
    typed: dict[str, str] = {}
    family = ""
    for line in text[:-1].split("\n"):
        if found := _HELP.fullmatch(line):
            family = found[1]
            assert family not in described, f"described twice: {family}"
            described.add(family)
        elif found := _TYPE.fullmatch(line):
            assert found[1] == family, f"not described: {line}"
            assert family not in typed
            typed[family] = found[2]
        else:
            _sample(line, family, typed, samples)
    for family, kind in typed.items():
        if kind == "histogram":
            _check_histogram(family, samples)
        elif kind == "counter":
            assert family.endswith("_total"), f"a counter is named _total: {family}"
    return samples


def _sample(line: str, family: str, typed: dict[str, str], samples: Samples) -> None:
    found = _SAMPLE.fullmatch(line)
    assert found is not None, f"not a sample: {line!r}"
    name = found[1]
    suffixes = ("_bucket", "_sum", "_count") if typed[family] == "histogram" else ("",)
    assert name in {family + each for each in suffixes}, f"{name} stands under {family}"
    pairs = [
        (label, re.sub(r"\\.", lambda each: _ESCAPES[each[0]], value))
        for label, value in re.findall(_LABEL, found[2] or "")
    ]
    assert len(pairs) == len({label for label, _ in pairs}), f"a label twice: {line}"
    key = (name, frozenset(pairs))
    assert key not in samples, f"a series twice: {line}"
    samples[key] = float(found[7])


def _check_histogram(family: str, samples: Samples) -> None:
    series: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
    for (name, labels), count in samples.items():
        if name == family + "_bucket":
            bound = next(float(value) for label, value in labels if label == "le")
            rest = frozenset(each for each in labels if each[0] != "le")
            series.setdefault(rest, []).append((bound, count))
    for labels, buckets in series.items():
        assert [bound for bound, _ in buckets] == sorted(bound for bound, _ in buckets)
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        assert buckets[-1][0] == math.inf
        assert buckets[-1][1] == samples[family + "_count", labels]
        assert (family + "_sum", labels) in samples


def value(samples: Samples, name: str, **labels: str) -> float:
    """The one sample with this name that has at least these labels."""
    wanted = set(labels.items())
    found = [count for (each, has), count in samples.items() if each == name and wanted <= has]
    assert len(found) == 1, f"{len(found)} series {name} with {labels}"
    return found[0]
