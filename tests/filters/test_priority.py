"""A class is believed downwards from anybody, upwards only from whom the gateway trusts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Exchange, Priority
from filters.priority import Config, Priorities, classify
from tests.filters.doubles import exchange

HEADER = b"x-request-priority"
NAMES = ["critical_plus", "critical", "sheddable_plus", "sheddable"]


def arrived(value: bytes | None, config: Config | None = None, *, trusted: bool) -> Exchange:
    subject = exchange(headers={b"a": b"1"} if value is None else {HEADER: value, b"a": b"1"})
    subject.trusted = trusted
    Priorities(config or Config()).arrive(subject, 0.0)
    return subject


def sent(subject: Exchange) -> list[bytes]:
    return [line for name, _, _, line in subject.request.fields if name == HEADER]


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_without_the_header_it_is_the_default(number: int, trusted: bool) -> None:
    config = Config(default=NAMES[number])  # type: ignore[arg-type]
    subject = arrived(None, config, trusted=trusted)
    assert subject.priority is Priority(number)
    assert sent(subject) == []


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_a_trusted_client_names_its_class_in_any_case(number: int, change: object) -> None:
    value = change(NAMES[number]).encode()  # type: ignore[operator]
    subject = arrived(value, trusted=True)
    assert subject.priority is Priority(number)
    assert sent(subject) == [HEADER + b": " + value + b"\r\n"]


@pytest.mark.parametrize(
    ("value", "priority", "forwarded"),
    [
        (b"critical_plus", Priority.CRITICAL, b"critical"),
        (b"CRITICAL_PLUS", Priority.CRITICAL, b"critical"),
        (b"critical", Priority.CRITICAL, b"critical"),
        (b"Critical", Priority.CRITICAL, b"Critical"),
        (b"sheddable_plus", Priority.SHEDDABLE_PLUS, b"sheddable_plus"),
        (b"sheddable", Priority.SHEDDABLE, b"sheddable"),
        (b"critical_plus, sheddable", Priority.CRITICAL, b"critical"),
        (b"0", Priority.CRITICAL, b"critical"),
        (b"", Priority.CRITICAL, b"critical"),
        (b"\xff", Priority.CRITICAL, b"critical"),
    ],
)
def test_others_are_believed_only_downwards(
    value: bytes, priority: Priority, forwarded: bytes
) -> None:
    subject = arrived(value, trusted=False)
    assert subject.priority is priority
    assert sent(subject) == [HEADER + b": " + forwarded + b"\r\n"]
    assert subject.request.index[HEADER] == forwarded


@given(st.sampled_from([each.encode() for each in NAMES]) | st.binary(max_size=20), st.booleans())
def test_no_claim_of_a_stranger_is_better_than_the_default(value: bytes, trusted: bool) -> None:
    for default in Priority:
        believed = classify(value, trusted, default)
        assert trusted or believed >= default
        assert classify(value, False, default) in (believed, default)


def test_every_line_of_a_false_claim_is_replaced_and_nothing_else() -> None:
    subject = exchange(headers={b"x-class": b"critical_plus, critical_plus", b"a": b"1"})
    request = subject.request
    claim = (b"x-class", b"critical_plus", b"X-Class", b"X-Class: critical_plus\r\n")
    request.fields = [claim, *(each for each in request.fields if each[0] == b"a"), claim]
    subject.trusted = False
    check = Priorities(Config(header="x-class", default="sheddable"))
    check.arrive(subject, 0.0)
    assert [each[3] for each in subject.request.fields] == [b"a: 1\r\n", b"x-class: sheddable\r\n"]
    assert check.disbelieved == 1


def test_counts_outlive_a_reload() -> None:
    before, after = Priorities(Config()), Priorities(Config(default="sheddable"))
    subject = exchange(headers={HEADER: b"urgent"})
    before.arrive(subject, 0.0)
    assert subject.priority is Priority.CRITICAL
    assert sent(subject) == [b"x-request-priority: urgent\r\n"]
    after.take_over(before)
    assert after.describe(0.0) == {"default": "sheddable", "disbelieved": 1}
