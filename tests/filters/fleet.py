"""Standings held by a test: endpoints whose attempts end as it says, at a time of its own."""

from __future__ import annotations

from filters.api import Kind
from filters.outlier import Act, Config, Effect, Policy
from filters.standing import ANSWERED, IGNORED, TIMED, Phase, Sample, Standing


class Fleet:
    """``n`` endpoints under one policy. ``now`` moves by hand, or by what ``serve`` takes."""

    def __init__(self, n: int, config: Config | None = Config(), *, latency: bool = True) -> None:  # noqa: B008
        self.now = 1000.0
        self.policy = Policy(config, latency=latency)
        self.all = [Standing(f"e{k}", self.now) for k in range(n)]
        self.effects: list[Effect] = []

    def start(self, s: Standing) -> Sample:
        """An attempt leaves. It is the probe if it may be."""
        sample = Sample(self.now)
        s.keep(sample, 0)
        if s.phase is Phase.PROBING and s.probe is None:
            s.probe = sample
        return sample

    def good(self, s: Standing, sample: Sample, seconds: float, *, timed: bool = True) -> None:
        """Answered in full, the first byte after ``seconds``. ``now`` is left as it is."""
        sample.verdict = TIMED if timed else ANSWERED
        sample.seconds = seconds
        s.failures.length = s.refusals = s.breaks.length = s.pushes.length = 0
        if s.probe is sample:
            self.effects += self.policy.probed(s, Kind.OK, self.now, ended=True)

    def bad(
        self, s: Standing, sample: Sample, *, refused: bool = False, late: bool = False
    ) -> None:
        if self.policy.failed(s, sample, "status 503", self.now, refused=refused, late=late):
            self.look()
        if s.probe is sample:
            self.effects += self.policy.probed(s, Kind.FAILED, self.now, ended=True)

    def dropped(self, s: Standing, sample: Sample) -> None:
        """Its client left."""
        sample.verdict = IGNORED
        sample.seconds = self.now - sample.started
        if s.probe is sample:
            self.effects += self.policy.probed(s, Kind.IGNORED, self.now, ended=True)

    def serve(self, s: Standing, seconds: float = 0.02, times: int = 1) -> None:
        for _ in range(times):
            self.good(s, self.start(s), seconds)

    def fail(self, s: Standing, times: int = 1, *, refused: bool = False) -> None:
        for _ in range(times):
            self.bad(s, self.start(s), refused=refused)

    def look(self) -> None:
        self.effects += self.policy.evaluate(self.all, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.look()

    def busy(self, seconds: float, *slow: tuple[Standing, float], rate: float = 50.0) -> None:
        """So many seconds in which everybody answers within 20 ms, but for those who are slow."""
        times = dict(slow)
        for _ in range(int(seconds * rate)):
            self.now += 1 / rate
            for s in self.all:
                if s.phase is Phase.HEALTHY:
                    self.serve(s, times.get(s, 0.02))
            self.look()

    @property
    def out(self) -> list[str]:
        return [s.name for s in self.all if s.phase is not Phase.HEALTHY]

    def acts(self, act: Act) -> int:
        return sum(each.act is act for each in self.effects)
