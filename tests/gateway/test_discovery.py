"""Names are asked again, last good answers stay, and no lookup holds anything up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.discovery import Names, Resolver, expand, is_address


class Dns:
    """A resolver's answers, set by the test. None hangs until ``release``."""

    def __init__(self, **answers: Sequence[str] | Exception | None) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.release = asyncio.Event()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answer = self.answers[host]
        if answer is None:
            await self.release.wait()
            return ["10.9.9.9"]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Rounds:
    """A sleep that ends when the test says so, and tells how long it was meant to be."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.go = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.asked.put_nowait(seconds)
        await self.go.acquire()


NXDOMAIN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class TestResolver:
    async def test_addresses_are_distinct_and_in_order(self) -> None:
        dns = Dns(a=["10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1"])
        assert await Resolver(1, dns).resolve("a", 80) == ("10.0.0.2", "10.0.0.1", "fd00::1")

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::1%eth0"])
    async def test_an_address_needs_no_lookup(self, address: str) -> None:
        dns = Dns()
        assert await Resolver(1, dns).resolve(address, 80) == (address,)
        assert dns.asked == []

    @pytest.mark.parametrize("answer", [NXDOMAIN, [], UnicodeError("label too long")])
    async def test_every_failure_is_an_os_error(self, answer: Sequence[str] | Exception) -> None:
        with pytest.raises(OSError):  # noqa: PT011
            await Resolver(1, Dns(a=answer)).resolve("a", 80)

    async def test_a_hanging_lookup_ends_at_the_limit_and_is_joined_not_repeated(self) -> None:
        dns = Dns(a=None)
        resolver = Resolver(0.01, dns)
        for _ in range(3):
            with pytest.raises(TimeoutError, match="no answer for a"):
                await resolver.resolve("a", 80)
        assert dns.asked == ["a"]
        dns.release.set()
        assert await Resolver(10, dns).resolve("a", 80) == ("10.9.9.9",)
        assert await resolver.resolve("a", 80) == ("10.9.9.9",)

    async def test_after_an_answer_it_is_asked_anew(self) -> None:
        dns = Dns(a=["10.0.0.1"])
        resolver = Resolver(1, dns)
        await resolver.resolve("a", 80)
        dns.answers["a"] = ["10.0.0.2"]
        assert await resolver.resolve("a", 80) == ("10.0.0.2",)

    async def test_one_who_gives_up_does_not_take_the_answer_from_another(self) -> None:
        dns = Dns(a=None)
        resolver = Resolver(10, dns)
        impatient = asyncio.create_task(resolver.resolve("a", 80))
        patient = asyncio.create_task(resolver.resolve("a", 80))
        await asyncio.sleep(0)
        impatient.cancel()
        dns.release.set()
        assert await patient == ("10.9.9.9",)
        assert impatient.cancelled()

    async def test_the_systems_own_resolver_knows_localhost(self) -> None:
        addresses = await Resolver(10).resolve("localhost", 80)
        assert set(addresses) & {"127.0.0.1", "::1"}


class TestNames:
    def make(self, dns: Dns) -> tuple[Names, list[tuple[str, tuple[str, ...]]], Rounds]:
        changes: list[tuple[str, tuple[str, ...]]] = []
        rounds = Rounds()
        names = Names(
            Resolver(5, dns),
            10,
            lambda host, addresses: changes.append((host, addresses)),
            Random(1),
            rounds,
        )
        return names, changes, rounds

    async def test_changes_are_told_and_mere_rotation_is_not(self) -> None:
        dns = Dns(a=["10.0.0.1", "10.0.0.2"])
        names, changes, _ = self.make(dns)
        names.add("a", 80)
        await names.refresh()
        dns.answers["a"] = ["10.0.0.2", "10.0.0.1"]
        await names.refresh()
        dns.answers["a"] = ["10.0.0.2"]
        await names.refresh()
        assert changes == [("a", ("10.0.0.1", "10.0.0.2")), ("a", ("10.0.0.2",))]
        assert names.addresses("a") == ("10.0.0.2",)

    @pytest.mark.parametrize("failure", [NXDOMAIN, []])
    async def test_a_failure_keeps_the_last_good_answer(
        self, failure: Sequence[str] | Exception
    ) -> None:
        dns = Dns(a=["10.0.0.1"], b=["10.0.1.1"])
        names, changes, _ = self.make(dns)
        names.add("a", 80)
        names.add("b", 80)
        await names.refresh()
        dns.answers["a"], dns.answers["b"] = failure, ["10.0.1.2"]
        await names.refresh()
        assert await names.get("a") == ("10.0.0.1",)
        assert list(names.errors) == ["a"]
        assert changes[2:] == [("b", ("10.0.1.2",))]
        dns.answers["a"] = ["10.0.0.1"]
        await names.refresh()
        assert names.errors == {}
        assert len(changes) == 3

    async def test_the_first_get_asks_and_the_second_knows(self) -> None:
        dns = Dns(a=NXDOMAIN)
        names, _, _ = self.make(dns)
        names.add("a", 80)
        assert names.addresses("a") == ()
        with pytest.raises(socket.gaierror):
            await names.get("a")
        dns.answers["a"] = ["10.0.0.1"]
        assert await names.get("a") == ("10.0.0.1",)
        assert await names.get("a") == ("10.0.0.1",)
        assert dns.asked == ["a", "a"]

    async def test_an_address_is_known_at_once_and_never_asked(self) -> None:
        dns = Dns()
        names, changes, _ = self.make(dns)
        names.add("127.0.0.1", 80)
        assert names.addresses("127.0.0.1") == ("127.0.0.1",)
        await names.refresh()
        assert (dns.asked, changes) == ([], [])

    async def test_it_refreshes_at_once_and_then_at_the_jittered_interval(self) -> None:
        dns = Dns(a=["10.0.0.1"])
        names, changes, rounds = self.make(dns)
        names.add("a", 80)
        names.start()
        names.start()
        first = await rounds.asked.get()
        assert names.addresses("a") == ("10.0.0.1",)
        dns.answers["a"] = NXDOMAIN
        rounds.go.release()
        second = await rounds.asked.get()
        dns.answers["a"] = ["10.0.0.7"]
        rounds.go.release()
        await rounds.asked.get()
        assert len(changes) == 2
        assert dns.asked == ["a", "a", "a"]
        assert first != second
        assert all(9 <= pause <= 11 for pause in (first, second))
        await names.stop()
        await names.stop()

    async def test_starting_waits_for_no_answer(self) -> None:
        dns = Dns(a=None)
        names, changes, _ = self.make(dns)
        names.add("a", 80)
        names.start()
        await asyncio.sleep(0)
        assert names.addresses("a") == ()
        await names.stop()
        dns.release.set()
        assert changes == []


@pytest.mark.parametrize(
    ("url", "addresses", "urls"),
    [
        (
            "http://m:8000",
            ["10.0.0.2", "10.0.0.1"],
            ("http://10.0.0.1:8000", "http://10.0.0.2:8000"),
        ),
        ("https://m", ["fd00::1"], ("https://[fd00::1]",)),
        ("http://m:8000/v1", ["10.0.0.1"], ("http://10.0.0.1:8000/v1",)),
        ("http://m:8000", [], ()),
    ],
)
def test_a_name_expands_to_its_addresses(
    url: str, addresses: list[str], urls: tuple[str, ...]
) -> None:
    assert expand(url, addresses) == urls


@given(st.lists(st.ip_addresses().map(str), unique=True))
def test_expansion_is_one_to_one_and_blind_to_order(addresses: list[str]) -> None:
    urls = expand("http://m:8000", addresses)
    assert len(set(urls)) == len(addresses)
    assert urls == expand("http://m:8000", addresses[::-1])


@pytest.mark.parametrize("host", ["localhost", "10.0.0", "10.0.0.256", "[::1]", "", "1"])
def test_a_name_is_no_address(host: str) -> None:
    assert not is_address(host)
