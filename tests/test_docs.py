"""The documents against the code: reason codes, metrics, fields and links that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from filters.api import Reason
from tests.gateway.test_collect import documented
from tests.tidy import ROOT

FILTERS = (ROOT / "docs" / "filters.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "docs" / "filters.md"]
MANNERS = {
    Reason.VERSION, Reason.METHOD, Reason.NOT_IMPLEMENTED, Reason.EXPECTATION,
    Reason.TARGET_TOO_LONG,
}  # fmt: skip
"""What only a client can get wrong: README says what each of them is."""


def test_the_table_of_symptoms_names_every_reason_that_is_told() -> None:
    table = FILTERS.partition("## At three in the morning")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    codes = {code for row in rows for code in re.findall(r"`(\w+)`", row[1])}
    assert codes <= {each.value for each in Reason}
    assert {each.value for each in {*Reason} - MANNERS - {Reason.UPSTREAM_STATUS}} <= codes


def test_metrics_that_are_named_exist() -> None:
    named = set(re.findall(r"tailrace_([a-z_]+)\b", FILTERS))
    known = set(documented())
    assert {re.sub(r"_(count|sum|bucket)$", "", each) for each in named} <= known
    labels = re.findall(r"tailrace_([a-z_]+?)(?:_count)?\{([^}]*)\}", FILTERS)
    for name, written in labels:
        assert set(re.findall(r"(\w+)=", written)) <= documented()[name], name


def test_every_filter_of_the_configuration_has_its_section() -> None:
    reference = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text().replace("#|", ""))
    sections = set(re.findall(r"^## (\w+)$", FILTERS, re.MULTILINE))
    assert {*reference["filters"], "outlier"} <= sections


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        led_to = (path.parent / file).resolve() if file else path
        assert led_to.exists(), target
        assert not anchor or anchor in anchors(led_to.read_text()), target


def anchors(text: str) -> set[str]:
    """Of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
