"""``routes[].batching`` -> running objects. Imported only where a route has batching.

Chain order, outside in: the exchange filter ``Batching`` stands behind the arrival checks and in
front of admission, so what goes on alone takes a permit as ever, and what is joined takes a place
in the plan instead; ``Deaths`` is the innermost attempt filter, so it sees every attempt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from gateway.batch_control import ControlCalls
from gateway.batch_send import BatchSend, Deaths
from gateway.batching import Batching
from gpu_batcher.api import SIZES
from gpu_batcher.buffers import Pool
from gpu_batcher.choice import ChosenRunner, Parts, choose
from gpu_batcher.coalescer import Coalescer
from gpu_batcher.codecs.registry import is_tensor_codec, make
from gpu_batcher.contain import Containment
from gpu_batcher.device import open_device
from gpu_batcher.pacing import UNBOUNDED, Bounds
from gpu_batcher.packing import Extra, Packing, Rule
from gpu_batcher.python_runner import PythonRunner
from gpu_batcher.quarantine import Quarantine

if TYPE_CHECKING:
    from filters.api import Attempt, Clock, Outcome, Service
    from gateway.config_batching import Batching as Config
    from gateway.config_batching import Input
    from gateway.endpoint import Endpoint
    from gateway.router import BoundRoute
    from gateway.telemetry import Telemetry
    from gpu_batcher.api import Codec, Send

_KEY = os.urandom(32)
SWITCH_S = 0.0005
"""Instead of 5 ms. Measured with a function of 20 ms of plain Python always under way: the p50 of
requests that pass through goes from 11 ms to 2 ms."""
MODES = {"owner": 0o600, "group": 0o660, "everyone": 0o666}


class BatchLine:
    """A route's batching with its way upstream. ``config`` is what it was made by. ``sole``: there
    is no cluster to send anything else to."""

    def __init__(
        self, config: Config, clock: Clock, rng: Random, seen: Telemetry, *, sole: bool = False
    ) -> None:
        self.config = config
        self.deaths = Deaths(clock, self._killed)
        self.send = BatchSend(clock, config.answer, lambda: b"%032x" % rng.getrandbits(128), seen)
        self.control = ControlCalls()
        codec = make(config.format, variable(config), config.binary, sole)
        rules = packing(config)
        quarantine = Quarantine(refuse=config.quarantine == "refuse")
        self._quarantine = quarantine
        self.batching = Batching(
            config,
            codec,
            rules,
            Coalescer(
                runner(config, codec, rules, self.send, self.control),
                bounds(config),
                clock,
                containment=Containment(config.bisection.share, float(config.bisection.burst)),
                quarantine=quarantine,
            ),
            clock,
            _KEY,
            seen,
            sole=sole,
        )

        if config.runner != "python":
            self.batching.failure = lambda: self.send.failure

    def serve(self, route: BoundRoute, fair_by: bytes | None) -> None:
        """Go on for another configuration's route, from the next request on. ``fair_by``: the
        header that names the tenant."""
        self.batching.rewrite = route.rewrite
        self.batching.name = route.name
        self.batching.fair_by = fair_by

    def use(
        self,
        route: BoundRoute,
        attempts: Service[Attempt, Outcome],
        once: Service[Attempt, Outcome],
        endpoints: Callable[[], Mapping[str, Endpoint]],
        headers: Mapping[str, str],
    ) -> None:
        """Go on with its chains."""
        self.control.use(endpoints, headers)
        self.send.use(route, attempts, once)

    @property
    def failed(self) -> bool:
        """It will never work as it is, so a reload makes it anew even if nothing has changed."""
        runner = self.batching.coalescer.runner
        return isinstance(runner, PythonRunner) and runner.failed

    def _killed(self, marks: Sequence[bytes], now: float) -> None:
        self._quarantine.killed(marks, now)


def runner(
    config: Config, codec: Codec, rules: Packing, send: Send, control: ControlCalls
) -> PythonRunner | ChosenRunner:
    """Allocates the buffers. Raises DeviceError for ``device: cuda`` without a GPU."""
    if config.runner == "python":
        device = open_device(config.device, config.gpu, config.copiers)
        pool: Pool[Any] | None = None
        if is_tensor_codec(codec):
            pool = Pool([device.allocate(config.buffer) for _ in range(config.max_in_flight)])
        # A function that holds Python's lock lets it go only so often, and whoever serves requests
        # on the event loop meanwhile waits for that, several times for each.
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        function = config.function or ""
        return PythonRunner(codec, rules, pool, device, function, config.threads, config.outputs)
    parts = Parts(
        codec,
        rules,
        send,
        control,
        slots=config.max_in_flight,
        inputs=config.buffer,
        outputs=config.buffer,
        follows=config.outputs,
        device=config.device,
        gpu=config.gpu,
        copiers=config.copiers,
        mode=MODES[config.share_with],
    )
    return choose(config.runner, parts)


def bounds(config: Config) -> Bounds:
    pads = config.pack != "ragged" and bool(variable(config))
    return Bounds(
        max_rows=config.max_rows,
        max_items=config.max_items or UNBOUNDED,
        max_bytes=config.max_bytes,
        max_padded=config.max_tokens or UNBOUNDED,
        max_padded_bytes=config.buffer * 15 // 16 if pads else UNBOUNDED,  # the rest aligns them
        mask_bytes=sum(SIZES[each.extra_datatype] for each in config.inputs.values() if each.mask),
        max_delay=config.max_delay,
        target=config.target,
        max_in_flight=config.max_in_flight,
        max_waiting=config.queue,
        preferred=config.preferred,
        buckets=config.buckets,
    )


def variable(config: Config) -> dict[str, tuple[int, ...]]:
    """The axes that may differ within a batch, by input."""
    return {name: each.axes for name, each in config.inputs.items() if each.axes}


def packing(config: Config) -> Packing:
    """Raises ValueError where its parts contradict each other."""
    rules = {name: _rule(each) for name, each in config.inputs.items()}
    return Packing(config.pack, config.buckets if config.pack == "bucket" else (), rules)


def _rule(each: Input) -> Rule:
    def extra(name: str | None) -> Extra | None:
        return None if name is None else Extra(name, each.extra_datatype)

    return Rule(
        each.axes,
        each.value,
        each.side,
        extra(each.mask),
        extra(each.lengths),
        extra(each.offsets),
    )
