"""``docs/metrics.md`` and ``docs/reasons.md`` are what the code says now, and whole."""

from __future__ import annotations

import re

from filters.api import Reason
from gateway.collect import collect
from gateway.metrics import OTHER
from gateway.reasons import MEANINGS
from gateway.reference import families, metrics, reasons, values
from tests.ops.observed import observed
from tests.tidy import ROOT

CLOSED = ("priority", "state", "why", "outcome", "cause", "result", "how", "runner")


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


async def test_what_is_exported_has_the_labels_and_values_that_are_told() -> None:
    told = values()
    async with observed() as running:
        await running.everything()
        found = collect(running.server)
    counted = 0
    seen: set[str] = set()
    for family in found:
        for key in (*family.numbers, *family.buckets):
            counted += 1
            assert tuple(name for name, _ in key) == family.labels, family.name
            for name, text in key:
                assert name in told
                seen.add(name)
                if name in CLOSED:
                    assert f"`{text}`" in told[name], family.name
                assert text != OTHER
    assert counted > 80
    assert set(told) - seen == {"version", "would"}  # with build_info, and with a dry run
    assert len({each.name for each in found}) == len(found)
    assert all(each.doc.endswith(".") and len(each.doc) <= 120 for each in found)
