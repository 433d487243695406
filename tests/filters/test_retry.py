"""What may be sent again, when, how often; and that the filter leaves nothing behind."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters import budget, retry
from filters.api import Attempt, Exchange, Kind, Outcome, Reason, Reject
from filters.retry import Config, Policy, Retry, Stop
from tests.filters.doubles import HandClock, WholeBody, exchange

NOW = 1000.0

INFERENCE = """/v1/chat/completions /v1/completions /v1/embeddings /v1/rerank /rerank /classify
/score /generate /generate_stream /embed /predict /team-a/v1/chat/completions /chat/completions
/v1/embeddings?api-version=2 /v1/models/bert:predict /v1/models/m/versions/3:predict
/v2/models/bert/infer /v2/models/bert/versions/2/infer /a/v2/models/bert/infer
/v2/models/llm/generate /v2/models/llm/versions/1/generate_stream"""
OTHERS = """/ * /v1/files /v1/batches /v1/fine_tuning/jobs /v1/responses /v1/responses/r1/cancel
/v2/repository/index /v2/repository/models/bert/load /v2/models/bert/unload /admin/reload
/v1/audio/speech /v1/images/generations /v1/mycompletions /v1/completions/c1 /:predict
/v1/completions/ /v1/completions%2F /infer /v2/infer /v2/models//infer /models/infer
/v2/models/a/b/infer /v1/chat/completions/x /tokenize /?x=/v1/completions
/v1/Completions"""


def failed(reason: Reason, *, sent: bool = True, complete: bool = True) -> Outcome:
    return Outcome(Kind.FAILED, 0, reason, sent=sent, complete=complete)


def status(code: int, retry_after: float | None = None) -> Outcome:
    reason = Reason.UPSTREAM_STATUS if code >= 500 else None
    return Outcome(Kind.FAILED, code, reason, retry_after=retry_after)


UNSENT = failed(Reason.CONNECT_FAILED, sent=False, complete=False)
RESET = failed(Reason.UPSTREAM_RESET)


def decide(
    outcome: Outcome, subject: Exchange | None = None, config: Config | None = None, number: int = 1
) -> float | Stop:
    policy = Policy(config or Config(attempts=3))
    return policy.decide(subject or exchange(), outcome, number, NOW, Random(1))


class TestReplayable:
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
    def test_idempotent_methods_are_on_any_path(self, method: bytes) -> None:
        assert Policy(Config()).replayable(exchange(method, b"/v1/files"))

    @pytest.mark.parametrize("method", [b"POST", b"PATCH", b"BREW"])
    def test_other_methods_need_a_key(self, method: bytes) -> None:
        assert not Policy(Config()).replayable(exchange(method, b"/v1/files"))
        keyed = exchange(method, b"/v1/files", {b"idempotency-key": b"7"})
        assert Policy(Config()).replayable(keyed)

    @pytest.mark.parametrize(
        "target",
        INFERENCE.split(),
    )
    def test_inference_paths_are(self, target: str) -> None:
        assert Policy(Config()).replayable(exchange(target=target.encode()))

    @pytest.mark.parametrize(
        "target",
        OTHERS.split(),
    )
    def test_no_other_post_is(self, target: str) -> None:
        assert not Policy(Config()).replayable(exchange(target=target.encode()))

    def test_always_and_never_mean_it(self) -> None:
        assert Policy(Config(idempotent="always")).replayable(exchange(target=b"/v1/files"))
        assert not Policy(Config(idempotent="never")).replayable(exchange(b"GET", b"/"))

    @pytest.mark.parametrize(
        ("body", "replayable"),
        [
            (b'{"inputs":[]}', True),
            (b'{"inputs":[],"parameters":{"priority":1}}', True),
            (b'{"parameters":{"sequence_id":0},"inputs":[]}', True),
            (b'{"parameters":{"sequence_id":""},"inputs":[]}', True),
            (b'{"inputs":[{"name":"sequence_id","parameters":{"sequence_id":4}}]}', True),
            (b'{"parameters":{"sequence_id":42},"inputs":[]}', False),
            (b'{"parameters": {"sequence_id" : "s1"}}', False),
            (b'{"parameters":{"sequence\\u005fid":42}}', False),
            (b'{"sequence_id":9}', False),
            (b"\x1f\x8b\x08", False),
            (b'{"parameters":[]}', False),
            (b"", False),
            (None, False),
        ],
    )
    def test_a_step_of_a_sequence_is_not(self, body: bytes | None, replayable: bool) -> None:
        subject = exchange(target=b"/v2/models/m/infer", body=WholeBody(body))
        assert Policy(Config()).replayable(subject) is replayable

    @pytest.mark.parametrize(
        ("length", "replayable"),
        [(b"13", True), (b"99", False), (b"x", False), (b"-1", False), (b"9" * 5000, False)],
    )
    def test_binary_tensors_follow_the_json(self, length: bytes, replayable: bool) -> None:
        headers = {b"inference-header-content-length": length}
        body = WholeBody(b'{"inputs":[]}\x00\xff')
        subject = exchange(target=b"/v2/models/m/infer", headers=headers, body=body)
        assert Policy(Config()).replayable(subject) is replayable

    def test_a_very_large_inference_body_is_not_read(self) -> None:
        body = WholeBody(b'{"inputs":[' + b" " * retry.PEEK + b"]}")
        assert not Policy(Config()).replayable(exchange(target=b"/v2/models/m/infer", body=body))

    @given(st.binary(max_size=200))
    def test_no_body_breaks_it(self, data: bytes) -> None:
        subject = exchange(target=b"/v2/models/m/infer", body=WholeBody(data))
        assert Policy(Config()).replayable(subject) in (True, False)


class TestDecide:
    @pytest.mark.parametrize(
        "outcome",
        [
            Outcome(Kind.OK, 200),
            status(500),
            status(429, 0.1),
            failed(Reason.FIRST_BYTE_TIMEOUT),
            failed(Reason.STALL),
            failed(Reason.UPSTREAM_PROTOCOL),
            failed(Reason.UPSTREAM_TRUNCATED),
            Outcome(Kind.IGNORED, 0, Reason.CLIENT_GONE),
            Outcome(Kind.IGNORED, 0, Reason.DEADLINE),
        ],
    )
    def test_what_is_not_listed_is_final(self, outcome: Outcome) -> None:
        assert decide(outcome) is Stop.FINAL

    @pytest.mark.parametrize(
        "outcome",
        [
            UNSENT,
            failed(Reason.CONNECT_TIMEOUT, sent=False),
            failed(Reason.POOL_EXHAUSTED, sent=False),
            RESET,
            status(502),
            status(503),
        ],
    )
    def test_what_is_listed_is_tried_again(self, outcome: Outcome) -> None:
        assert isinstance(decide(outcome), float)

    def test_timeouts_are_retried_when_written(self) -> None:
        config = Config(on=("timeout",))
        assert isinstance(decide(failed(Reason.FIRST_BYTE_TIMEOUT), config=config), float)
        assert isinstance(decide(failed(Reason.STALL), config=config), float)
        assert decide(RESET, config=config) is Stop.FINAL

    def test_a_reset_is_judged_as_a_reset_whatever_the_status(self) -> None:
        broken = Outcome(Kind.FAILED, 503, Reason.UPSTREAM_RESET)
        assert decide(broken, config=Config(on=(503,))) is Stop.FINAL

    def test_attempts_count_the_first(self) -> None:
        assert decide(RESET, number=3) is Stop.ATTEMPTS
        assert isinstance(decide(RESET, number=2), float)
        assert decide(UNSENT, config=Config(attempts=1)) is Stop.ATTEMPTS

    def test_never_after_the_commit_point(self) -> None:
        subject = exchange()
        cast("Any", subject.downstream).committed = True
        assert decide(RESET, subject) is Stop.COMMITTED
        assert decide(UNSENT, subject) is Stop.COMMITTED

    def test_an_unsent_request_is_replayed_whatever_it_is(self) -> None:
        subject = exchange(target=b"/v1/files")
        assert decide(RESET, subject) is Stop.UNSAFE
        assert isinstance(decide(UNSENT, subject), float)
        never = Config(idempotent="never")
        assert isinstance(decide(UNSENT, subject, never), float)

    def test_a_body_that_was_not_kept_cannot_be_sent_again(self) -> None:
        subject = exchange(body=WholeBody(None, replayable=False))
        assert decide(RESET, subject) is Stop.BODY
        assert decide(UNSENT, subject) is Stop.BODY

    def test_a_short_retry_after_is_waited_in_full(self) -> None:
        delay = decide(status(503, 0.7))
        assert isinstance(delay, float)
        assert 0.7 <= delay < 0.7 + retry.BASE

    @pytest.mark.parametrize("seconds", [1.01, 30.0, float("inf"), float("nan")])
    def test_a_long_retry_after_is_the_clients_to_wait(self, seconds: float) -> None:
        assert decide(status(503, seconds)) is Stop.RETRY_AFTER

    def test_nothing_is_tried_past_the_deadline(self) -> None:
        subject = exchange()
        subject.deadline = NOW + 0.5
        assert decide(status(503, 0.6), subject) is Stop.DEADLINE
        assert isinstance(decide(status(503, 0.2), subject), float)

    @given(st.integers(1, 9), st.integers(0, 2**32), st.floats(0, 1))
    def test_the_delay_is_within_its_bounds(self, number: int, seed: int, after: float) -> None:
        policy = Policy(Config(attempts=10))
        delay = policy.decide(exchange(), status(503, after), number, NOW, Random(seed))
        assert isinstance(delay, float)
        assert after <= delay <= after + min(retry.CAP, retry.BASE * 2 ** (number - 1))


class TestPoison:
    def kill(self, policy: Policy, body: bytes, now: float, outcome: Outcome = RESET) -> Any:
        return policy.decide(exchange(body=WholeBody(body)), outcome, 1, now, Random(1))

    def test_two_complete_sends_that_end_in_a_reset_quarantine_the_body(self) -> None:
        policy = Policy(Config())
        assert isinstance(self.kill(policy, b"death", NOW), float)
        assert self.kill(policy, b"death", NOW + 1) is Stop.POISON
        assert self.kill(policy, b"death", NOW + 2, status(503)) is Stop.POISON
        assert isinstance(self.kill(policy, b"life", NOW + 2), float)

    def test_the_quarantine_ends(self) -> None:
        policy = Policy(Config())
        self.kill(policy, b"death", NOW)
        self.kill(policy, b"death", NOW)
        later = NOW + retry.QUARANTINE
        assert self.kill(policy, b"death", later - 0.1, status(503)) is Stop.POISON
        assert isinstance(self.kill(policy, b"death", later, status(503)), float)
        assert isinstance(self.kill(policy, b"death", later), float)

    def test_the_last_permitted_attempt_counts_too(self) -> None:
        policy = Policy(Config(attempts=2))
        subject = exchange(body=WholeBody(b"death"))
        assert isinstance(policy.decide(subject, RESET, 1, NOW, Random(1)), float)
        assert policy.decide(subject, RESET, 2, NOW, Random(1)) is Stop.ATTEMPTS
        assert self.kill(policy, b"death", NOW) is Stop.POISON

    def test_a_reset_during_the_send_says_nothing_about_the_body(self) -> None:
        policy = Policy(Config())
        for _ in range(5):
            cut = failed(Reason.UPSTREAM_RESET, complete=False)
            assert isinstance(self.kill(policy, b"x", NOW, cut), float)

    @pytest.mark.parametrize("body", [b"", None])
    def test_requests_without_a_kept_body_share_no_fate(self, body: bytes | None) -> None:
        policy = Policy(Config())
        for _ in range(5):
            subject = exchange(b"GET", b"/", body=WholeBody(body))
            assert isinstance(policy.decide(subject, RESET, 1, NOW, Random(1)), float)

    def test_a_suspect_body_that_was_not_sent_may_still_be(self) -> None:
        policy = Policy(Config())
        self.kill(policy, b"death", NOW)
        self.kill(policy, b"death", NOW)
        assert isinstance(self.kill(policy, b"death", NOW, UNSENT), float)

    def test_the_table_is_bounded_and_forgets_the_oldest(self) -> None:
        policy = Policy(Config())
        self.kill(policy, b"first", NOW)
        self.kill(policy, b"first", NOW)
        for n in range(retry.SUSPECTS):
            self.kill(policy, b"%d" % n, NOW)
        assert len(policy._resets) == retry.SUSPECTS
        assert isinstance(self.kill(policy, b"first", NOW, status(503)), float)


class Held:
    """An answer and its permit: both must be let go exactly once when the outcome is discarded."""

    def __init__(self) -> None:
        self.discarded = 0
        self.released = 0

    def discard(self) -> None:
        self.discarded += 1

    def release(self, outcome: Outcome) -> None:
        self.released += 1


class Upstream:
    def __init__(self, *outcomes: Outcome | Reject) -> None:
        self.outcomes = list(outcomes)
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    async def __call__(self, attempt: Attempt) -> Outcome:
        self.seen.append((attempt.number, attempt.tried))
        attempt.endpoint = f"e{len(self.seen)}"
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Reject):
            raise outcome
        return outcome


class TestFilter:
    def make(self, attempts: int = 3, reserve: float = 1) -> tuple[Retry, list[float]]:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        purse = budget.Budget(budget.Config(ratio=0, hedges=0, min_per_second=reserve))
        policy = Policy(Config(attempts=attempts))
        return Retry(policy, purse, HandClock(), Random(1), sleep), slept

    async def test_another_endpoint_is_tried_and_the_first_answer_let_go(self) -> None:
        held = Held()
        answer = cast("Any", held)
        first = Outcome(Kind.FAILED, 503, answer=answer, permit=answer)
        upstream = Upstream(first, RESET, Outcome(Kind.OK, 200))
        filter_, slept = self.make()
        subject = exchange()
        outcome = await filter_(Attempt(subject, 1, ()), upstream)
        assert outcome.status == 200
        assert upstream.seen == [(1, ()), (2, ("e1",)), (3, ("e1", "e2"))]
        assert (held.discarded, held.released) == (1, 1)
        assert (filter_.retries, len(slept)) == (2, 2)

    async def test_an_answer_passes_untouched(self) -> None:
        held = cast("Any", Held())
        good = Outcome(Kind.OK, 200, answer=held, permit=held)
        filter_, slept = self.make()
        assert await filter_(Attempt(exchange(), 1, ()), Upstream(good)) is good
        assert (held.discarded, held.released, slept) == (0, 0, [])

    async def test_when_the_budget_is_spent_the_outcome_is_given_back_whole(self) -> None:
        held = cast("Any", Held())
        bad = Outcome(Kind.FAILED, 503, answer=held, permit=held)
        filter_, slept = self.make(reserve=0)
        assert await filter_(Attempt(exchange(), 1, ()), Upstream(bad)) is bad
        assert (held.discarded, filter_.refused, filter_.retries, slept) == (0, 1, 0, [])

    async def test_a_reject_of_ours_is_not_retried(self) -> None:
        filter_, _ = self.make()
        upstream = Upstream(UNSENT, Reject(Reason.NO_ENDPOINT))
        with pytest.raises(Reject):
            await filter_(Attempt(exchange(), 1, ()), upstream)
        assert len(upstream.seen) == 2

    async def test_a_query_of_death_is_counted_and_kills_no_third_server(self) -> None:
        filter_, _ = self.make(attempts=10)
        upstream = Upstream(*[RESET] * 10)
        outcome = await filter_(Attempt(exchange(), 1, ()), upstream)
        assert outcome.reason is Reason.POISON
        assert (len(upstream.seen), filter_.poison) == (2, 1)

    async def test_extra_attempts_stay_within_the_budget_while_everything_fails(self) -> None:
        clock = HandClock()
        purse = budget.Budget(budget.Config(ratio=0.1, min_per_second=1))
        filter_ = Retry(Policy(Config(attempts=10)), purse, clock, Random(1), lambda _: nothing())
        upstream = Upstream(*[status(503)] * 2000)
        for _ in range(500):
            clock.advance(0.01)
            await filter_(Attempt(exchange(), 1, ()), upstream)
        assert len(upstream.seen) - 500 == filter_.retries == 500 * 0.1 + 10


async def nothing() -> None:
    pass
