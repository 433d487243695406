"""``docs/metrics.md`` and ``docs/reasons.md`` are what the code says now, and whole."""

from __future__ import annotations

import re

import pytest

from filters.api import Reason
from gateway.collect import collect
from gateway.metrics import OTHER
from gateway.reasons import MEANINGS
from gateway.reference import families, metrics, reasons, values
from gateway.replies import TABLE
from tests.ops.observed import observed
from tests.tidy import ROOT

CLOSED = ("priority", "state", "why", "outcome", "cause", "result")
README_REASON = re.compile(r"^\| `(\w+)` \| (\d{3}) \|", re.MULTILINE)


async def test_the_reference_of_metrics_is_fresh() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert text == metrics(await families()), "write it again: make reference"


def test_the_reference_of_reasons_is_fresh() -> None:
    text = (ROOT / "docs" / "reasons.md").read_text()
    assert text == reasons(), "write it again: make reference"


def test_every_reason_is_explained() -> None:
    assert set(MEANINGS) == set(Reason)
    for each, meaning in MEANINGS.items():
        assert meaning.what, each
        assert meaning.remedy, each
        named = set(re.findall(r"as for `(\w+)`", meaning.remedy, re.IGNORECASE))
        assert named <= {other.value for other in Reason}, each


def test_readme_gives_every_reason_the_same_status() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("\n## Reason codes\n")[2].partition("\n## ")[0]
    told = {code: int(status) for code, status in README_REASON.findall(section)}
    if not told:
        pytest.skip("README has no table of reason codes any more")
    assert told == {each.value: reply.status for each, reply in TABLE.items()}


async def test_what_is_exported_has_the_labels_and_values_that_are_told() -> None:
    told = values()
    async with observed() as running:
        await running.everything()
        found = collect(running.server)
    counted = 0
    for family in found:
        for key in (*family.numbers, *family.buckets):
            counted += 1
            assert tuple(name for name, _ in key) == family.labels, family.name
            for name, text in key:
                assert name in told
                if name in CLOSED:
                    assert f"`{text}`" in told[name], family.name
                assert text != OTHER
    assert counted > 80
    assert len({each.name for each in found}) == len(found)
    assert all(each.doc.endswith(".") and len(each.doc) <= 120 for each in found)
