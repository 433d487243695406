"""What the fields of ``batching`` say together: contradictions, and what has no effect."""

from typing import TYPE_CHECKING

from gateway.config import Config, Route
from gateway.config_batching import Batching
from gateway.config_units import format_unit

if TYPE_CHECKING:
    from gateway.config_convert import Converter
    from gateway.config_nodes import Path

MADE = ("mask", "lengths", "offsets")
SHARED = ("system_shared_memory", "cuda_shared_memory")
CREDENTIALS = ("authorization", "x-api-key", "api-key", "cookie")
"""Callers are told apart by these in any case (``gateway.batching``)."""
OWN = frozenset((
    "accept-encoding", "connection", "host", "inference-header-content-length", "te", "trailer",
    "transfer-encoding", "upgrade", "traceparent", "tracestate", "x-request-id",
))  # fmt: skip
"""Headers that a batch has of its own, or that speak of one message only."""


def check_batching(config: Config, found: "Converter") -> None:
    """Add every problem between values to the problems of ``found``."""
    for index, route in enumerate(config.routes):
        path: Path = ("routes", index, "batching")
        if route.batching is not None and found.clean(path):
            _Check(config, route, route.batching, path, found).all()


class _Check:
    """The checks of one route's batching."""

    def __init__(
        self, config: Config, route: Route, batching: Batching, path: "Path", found: "Converter"
    ) -> None:
        self._config = config
        self._route = route
        self._batching = batching
        self._path = path
        self._found = found

    def all(self) -> None:
        self._sizes()
        self._headers()
        self._packing()
        self._runner()
        if self._batching.runner in (*SHARED, "auto"):
            self._shared()

    def _error(self, name: str, message: str, hint: str = "") -> None:
        path = (*self._path, name)
        if path not in self._found.positions:
            path = self._path
        self._found.error(path, self._found.mark(path), message, hint)

    def _warn(self, name: str, message: str, hint: str = "") -> None:
        path = (*self._path, name)
        if path not in self._found.positions:
            path = self._path
        self._found.problems.warning(self._found.mark(path), message, hint)

    def _sizes(self) -> None:
        batching, limits = self._batching, self._config.limits
        if batching.buffer < batching.max_bytes:
            sizes = (format_unit(batching.buffer, "size"), format_unit(batching.max_bytes, "size"))
            self._error("buffer", "buffer {} cannot hold max_bytes {}".format(*sizes))
        if batching.max_request > limits.replay_bytes:
            kept = format_unit(limits.replay_bytes, "size")
            self._error("max_request", f"only {kept} of a body are kept (limits.replay_bytes)")
        if any(rows > batching.max_rows for rows in batching.preferred):
            self._error("preferred", f"no batch has more than max_rows {batching.max_rows} rows")
        if list(batching.preferred) != sorted(set(batching.preferred)):
            self._error("preferred", "expected growing numbers")
        if batching.max_delay > batching.target:
            self._warn("max_delay", "a wait that is longer than the target of a whole batch")

    def _headers(self) -> None:
        cluster = self._config.clusters.get(self._route.cluster or "")
        if cluster is not None and cluster.balance.policy == "consistent_hash":
            name = cluster.balance.hash_by.removeprefix("header:").lower()
            if name not in (*self._batching.headers, *CREDENTIALS):
                message = f"a batch has no {name!r} to choose an endpoint by (balance.hash_by)"
                self._error("headers", message, f"headers: [{name}] joins only equal ones")
        for name in self._batching.headers:
            if name.startswith("content-") or name in OWN:
                self._error("headers", f"the header {name!r} is the batch's own")

    def _packing(self) -> None:
        batching = self._batching
        if batching.format != "kserve_v2":
            for name in ("inputs", "outputs", "buckets"):
                if getattr(batching, name):
                    self._error(name, f"{batching.format} has no tensors to pack")
                    return
        if batching.buckets and batching.pack != "bucket":
            self._warn("buckets", "lengths are padded to these with pack: bucket only")
        self._made()
        for output, name in batching.outputs.items():
            if name not in batching.inputs:
                self._error("outputs", f"{output!r}: there is no input {name!r} under inputs")
        from gateway.batch_wiring import packing  # loads the batcher, so only where it is used

        try:
            packing(batching)
        except ValueError as error:
            text = str(error)
            self._error("buckets" if text.startswith("buckets") else "inputs", text)

    def _made(self) -> None:
        """Inputs that are made here. Two may share a mask, but none is a mask and lengths."""
        inputs = self._batching.inputs.values()
        kinds = [{getattr(each, kind) for each in inputs} - {None} for kind in MADE]
        for name in sorted(kinds[0] & kinds[1] | kinds[0] & kinds[2] | kinds[1] & kinds[2]):
            self._error("inputs", f"{name!r} would have to be two of {', '.join(MADE)}")

    def _runner(self) -> None:
        batching = self._batching
        if batching.runner == "python" and batching.function is None:
            self._error("runner", "runner: python needs a function")
        if batching.runner != "python" and batching.function is not None:
            self._warn("function", "only runner: python calls a function")
        if batching.runner == "cuda_shared_memory" and batching.device == "host":
            self._error("runner", "runner: cuda_shared_memory needs device: cuda (or auto)")
        if batching.runner in ("http", "system_shared_memory") and batching.device == "cuda":
            self._warn("device", f"runner: {batching.runner} packs in host memory")

    def _shared(self) -> None:
        batching = self._batching
        explicit = batching.runner in SHARED
        if batching.format != "kserve_v2" or not batching.binary:
            if explicit:
                self._error("runner", "shared memory is for tensors: kserve_v2 with binary: true")
            return
        cluster = self._config.clusters.get(self._route.cluster or "")
        if cluster is not None and len(cluster.endpoints) > 1:
            message = "shared memory is shared with one server, and the cluster has several"
            if explicit:
                self._error("runner", message)
            else:
                self._warn("runner", message, "batches go by http")
        if explicit and self._route.filters.hedge is not None:
            self._warn("runner", "batches in shared memory are neither hedged nor retried")
