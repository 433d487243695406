"""The documents against the code: what they name exists, what they say of numbers is so, what is
written from the code is fresh. Their blocks: ``tests/test_documents.py``."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from msgspec import inspect

from filters.api import Reason
from gateway import config
from gateway.config_types import described, shape
from gateway.reference_config import comments, configuration, sections
from gateway.replies import TABLE
from tests.documents import documents
from tests.gateway.test_collect import documented
from tests.tidy import ROOT

FILTERS = (ROOT / "docs" / "filters.md").read_text()
DOCUMENTS = [ROOT / "ARCHITECTURE.md", *documents()]
LIMITS = (ROOT / "docs" / "limits.md").read_text()
REFERENCE = (ROOT / "configs" / "reference.yaml").read_text()
MANNERS = {
    Reason.VERSION, Reason.METHOD, Reason.NOT_IMPLEMENTED, Reason.EXPECTATION,
    Reason.TARGET_TOO_LONG,
}  # fmt: skip
"""What only a client can get wrong: docs/reasons.md says what each of them is."""


def symptoms() -> list[list[str]]:
    table = FILTERS.partition("## At three in the morning")[2].partition("\n## ")[0]
    return [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]


def test_the_table_of_symptoms_names_every_reason_that_is_told() -> None:
    rows = symptoms()
    codes = {code for row in rows for code in re.findall(r"`(\w+)`", row[1])}
    assert codes <= {each.value for each in Reason}
    assert {each.value for each in {*Reason} - MANNERS - {Reason.UPSTREAM_STATUS}} <= codes


def test_the_table_of_symptoms_says_the_status_that_is_answered() -> None:
    told = 0
    for symptom, codes, *_ in symptoms():
        statuses = re.findall(r"\b[1-5]\d\d\b", symptom)
        if "200" in statuses:
            continue  # the head was out already
        for code in re.findall(r"`(\w+)`", codes):
            status = str(TABLE[Reason(code)].status)
            assert status in statuses or f"{status[0]}xx" in symptom or not statuses, code
            told += bool(statuses)
    assert told > 20


def test_metrics_in_the_table_of_symptoms_exist() -> None:
    named = {each for row in symptoms() for each in re.findall(r"`([a-z_]+_total)`", row[-1])}
    assert named
    assert named <= set(documented())


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


def test_the_reference_of_the_configuration_is_fresh() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == configuration(REFERENCE), "write it again: make reference"


def test_the_reference_of_the_configuration_is_whole() -> None:
    """Every struct once, and every field with words beside it or in the struct's reasons."""
    order = [each.name for each in described(config.Config).fields]
    said = comments(REFERENCE)
    found = list(sections(order))
    assert len({each.kind.cls for each in found}) == len(found) > 25
    for section in found:
        doc = section.kind.cls.__doc__ or ""
        for each in section.kind.fields:
            struct = shape(each.type).one(inspect.StructType)  # a section of its own
            words = (section.kind.cls, each.name) in said or f"``{each.name}``" in doc
            assert words or struct, f"{section.place}.{each.name}"


@pytest.mark.parametrize("section", re.findall(r"^## (.+)$", LIMITS, re.MULTILINE))
def test_numbers_of_limits_are_those_of_the_code(section: str) -> None:
    """In docs/limits.md a constant is written `NAME` 1.5, or NAME = 1.5 in a formula."""
    text = LIMITS.partition(f"## {section}\n")[2].partition("\n## ")[0]
    files = re.findall(r"\]\(\.\./(\w+)/(\w+)\.py\)", text)
    modules = [import_module(f"{package}.{name}") for package, name in files]
    assert modules
    told = re.findall(r"`([A-Z_]{2,})`\s+(\d[\d.]*)", text)
    told += re.findall(r"\b([A-Z_]{2,}) = (\d[\d.]*)", text)
    for name, number in told:
        values = {getattr(each, name) for each in modules if hasattr(each, name)}
        assert float(number.rstrip(".")) in values, name
    named = set(re.findall(r"\b([A-Z][A-Z_]{2,})\b", text)) - {"GCRA"}
    assert named <= {name for name, _ in told}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
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
