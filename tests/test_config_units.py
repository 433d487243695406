"""Numbers and text as people write them."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config_text import (
    parse_address,
    parse_cidr,
    parse_endpoint,
    parse_header_value,
    parse_host,
    parse_limit_key,
    parse_path,
    parse_url,
)
from gateway.config_units import (
    BadValueError,
    format_unit,
    parse_duration,
    parse_quantile,
    parse_rate,
    parse_share,
    parse_size,
)

GOOD: list[tuple[Callable[[str], object], str, object]] = [
    (parse_duration, "0", 0.0),
    (parse_duration, "500ms", 0.5),
    (parse_duration, "10s", 10.0),
    (parse_duration, "5m", 300.0),
    (parse_duration, "1h", 3600.0),
    (parse_duration, "1d", 86400.0),
    (parse_duration, "1m30s", 90.0),
    (parse_duration, "1.5s", 1.5),
    (parse_duration, "250us", 0.00025),
    (parse_size, "0", 0),
    (parse_size, "65536", 65536),
    (parse_size, "64KiB", 65536),
    (parse_size, "1MiB", 1048576),
    (parse_size, "1.5GiB", 1610612736),
    (parse_size, "64KB", 64000),
    (parse_size, "64kB", 64000),
    (parse_size, "1MB", 1000000),
    (parse_size, "12B", 12),
    (parse_share, "5%", 0.05),
    (parse_share, "0.05", 0.05),
    (parse_share, "100%", 1.0),
    (parse_share, "1", 1.0),
    (parse_share, "0", 0.0),
    (parse_share, "12.5%", 0.125),
    (parse_quantile, "p50", 0.5),
    (parse_quantile, "p95", 0.95),
    (parse_quantile, "p99.9", 0.999),
    (parse_rate, "100/s", 100.0),
    (parse_rate, "600/m", 10.0),
    (parse_rate, "1000/h", 1000 / 3600),
    (parse_rate, "1/d", 1 / 86400),
    (parse_rate, "0.5/s", 0.5),
    (parse_rate, "1000000/s", 1e6),
    (parse_limit_key, "client", "client"),
    (parse_limit_key, "route", "route"),
    (parse_limit_key, "header:X-Api-Key", "header:x-api-key"),
    (parse_address, "127.0.0.1:80", "127.0.0.1:80"),
    (parse_address, "LocalHost:080", "localhost:80"),
    (parse_address, "[::1]:80", "[::1]:80"),
    (parse_address, "[0:0::1]:80", "[::1]:80"),
    (parse_address, "unix:/run/x", "unix:/run/x"),
    (parse_address, "unix:///run/x", "unix:/run/x"),
    (parse_endpoint, "http://a", "http://a"),
    (parse_endpoint, "HTTPS://A:443/", "https://a:443"),
    (parse_endpoint, "http://[::1]", "http://[::1]"),
    (parse_endpoint, "unix:/run/x", "unix:/run/x"),
    (parse_endpoint, "http://a_b.svc.cluster.local.:1", "http://a_b.svc.cluster.local.:1"),
    (parse_url, "http://c:4318/v1/traces", "http://c:4318/v1/traces"),
    (parse_cidr, "10.0.0.0/8", "10.0.0.0/8"),
    (parse_cidr, "::1", "::1/128"),
    (parse_host, "*.A.b", "*.a.b"),
    (parse_host, "[::1]", "[::1]"),
    (parse_path, "/v1/%20x", "/v1/%20x"),
    (parse_header_value, "a b", "a b"),
]
BAD: list[tuple[Callable[[str], object], str]] = [
    *((parse_duration, each) for each in ("", "10", "s", "-1s", "1 s", "1x", "1e3s", "400d")),
    *(
        (parse_duration, each)
        for each in ("\u0661s", "nan", "infs", "1s2", "0.1us", "9" * 30 + "s")
    ),
    *((parse_size, each) for each in ("", "-1", "1k", "64Ki", "1.5", "1.5B", "1 MiB", "9e9", "²")),
    *((parse_size, each) for each in ("99999999999TiB", "1mib")),
    *((parse_share, each) for each in ("", "-1%", "101%", "2", "1e-3", "%", "nan", "1e-10%")),
    *((parse_quantile, each) for each in ("", "p", "95", "95%", "p95%", "P95", "p100", "p 95")),
    *((parse_rate, each) for each in ("", "100", "/s", "100/", "100/ms", "100/w", "-1/s", "1e3/s")),
    *((parse_rate, each) for each in ("0/s", "0.9/d", "1000001/s", "\u0661/s", "1/s ", "nan/s")),
    *((parse_limit_key, each) for each in ("", "header", "header:", "header:a b", "Client", "ip")),
    *((parse_address, each) for each in ("", "80", ":80", "a", "a:", "a:x", "::1:80", "[::1]")),
    *((parse_address, each) for each in ("[::1", "[1.2.3.4]:1", "a:70000", "http://a:1", "a b:1")),
    *((parse_address, each) for each in ("unix:", "unix:x", "unix:/" + "x" * 200, "1.2.3:1")),
    *((parse_address, each) for each in ("[fe80::1%eth0]:80", "a:-1", "a:\u0661", "unix:/a\nb")),
    *((parse_endpoint, each) for each in ("", "a", "http://", "http://a:0", "ws://a", "http:///x")),
    *((parse_endpoint, each) for each in ("http://a/v1", "http://a?x", "http://a#x", "http://u@a")),
    *((parse_endpoint, each) for each in ("http://é.com", "http://a..b", "http://1.2.3.4.5")),
    *(
        (parse_endpoint, each)
        for each in ("http://[::1]x", "http://::1", "http://-a", "http://a b")
    ),
    *((parse_url, each) for each in ("a", "ftp://a", "http://u@a", "http://a/é", "http://a:x/")),
    *((parse_cidr, each) for each in ("", "x", "10.0.0.1/8", "10.0.0.0/33", "localhost")),
    *((parse_host, each) for each in ("", "*", "a*.b", "a:80", "*.", "::1", "[::1]:80")),
    *((parse_path, each) for each in ("", "v1", "/a b", "/é", "/\n")),
    *((parse_header_value, each) for each in (" a", "a\r\nb: c", "é", "\0")),
]


@pytest.mark.parametrize(("parse", "text", "value"), GOOD)
def test_good(parse: Callable[[str], object], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(("parse", "text"), BAD)
def test_bad(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(BadValueError):
        parse(text)


@pytest.mark.parametrize(
    ("parse", "text", "hint"),
    [
        (parse_duration, "10sec", "write 10s"),
        (parse_duration, "2 Minutes", "write 2m"),
        (parse_size, "64K", "write 64KiB"),
        (parse_size, "2g", "write 2GiB"),
        (parse_share, "50", "write 50%"),
        (parse_quantile, "95%", "write p95"),
        (parse_quantile, "99.9", "write p99.9"),
        (parse_quantile, "0.95", "write p95"),
        (parse_quantile, "median", "write p95 or p99.9"),
        (parse_rate, "100", "write 100/s"),
        (parse_rate, "100/sec", "write 100/s"),
        (parse_rate, "100 / s", "write 100/s"),
        (parse_rate, "10r/m", "write 10/m"),
        (parse_rate, "600rpm", "write 600/m"),
        (parse_rate, "5 requests per hour", "write 5/h"),
        (parse_rate, "5/ms", "write 100/s, 600/m"),
        (parse_rate, "0/s", "rate_limit: off"),
        (parse_limit_key, "Authorization", "write header:authorization"),
        (parse_limit_key, "ip", "write client, route"),
        (parse_endpoint, "localhost:8000", "write http://localhost:8000"),
        (parse_endpoint, "http://a:1/v1?x", "write http://a:1,"),
        (parse_cidr, "192.168.1.7/24", "write 192.168.1.0/24"),
    ],
)
def test_hints(parse: Callable[[str], object], text: str, hint: str) -> None:
    with pytest.raises(BadValueError) as raised:
        parse(text)
    assert hint in raised.value.hint


@given(st.floats(min_value=1e-6, max_value=366 * 86400))
def test_every_duration_is_written_back(seconds: float) -> None:
    assert parse_duration(format_unit(seconds, "duration")) == seconds


@given(st.integers(min_value=0, max_value=2**60))
def test_every_size_is_written_back(size: int) -> None:
    assert parse_size(format_unit(size, "size")) == size


@given(st.floats(min_value=1e-9, max_value=1))
def test_every_share_is_written_back(share: float) -> None:
    assert parse_share(format_unit(share, "share")) == share


@given(st.floats(min_value=0.5, max_value=0.999))
def test_every_quantile_is_written_back(quantile: float) -> None:
    assert parse_quantile(format_unit(quantile, "quantile")) == quantile


@given(st.floats(min_value=1 / 86400, max_value=1e6))
def test_every_rate_is_written_back(rate: float) -> None:
    assert parse_rate(format_unit(rate, "rate")) == rate


@given(st.integers(1, 10**6), st.sampled_from("smhd"))
def test_a_rate_written_by_hand_survives(number: int, unit: str) -> None:
    rate = parse_rate(f"{number}/{unit}")
    written = format_unit(rate, "rate")
    assert parse_rate(written) == rate
    assert len(written) <= len(f"{number}/{unit}")


@given(st.integers(0, 10**6), st.sampled_from(["us", "ms", "s", "m", "h", "d"]))
def test_what_is_written_by_hand_survives(number: int, unit: str) -> None:
    try:
        seconds = parse_duration(f"{number}{unit}")
    except BadValueError:
        return
    assert parse_duration(format_unit(seconds, "duration")) == seconds


@given(
    st.sampled_from([parse for parse, _ in BAD]),
    st.text(max_size=40) | st.from_regex(r"[0-9a-z:/.\[\]%@*-]{0,30}"),
)
def test_no_parser_raises_anything_else(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except BadValueError:
        return


@given(st.from_regex(re.compile(r"[a-z0-9.:\[\]/-]{1,30}"), fullmatch=True))
def test_canonical_forms_are_stable(text: str) -> None:
    for parse in (parse_address, parse_endpoint, parse_cidr, parse_host):
        try:
            once = parse(text)
        except BadValueError:
            continue
        assert parse(once) == once
