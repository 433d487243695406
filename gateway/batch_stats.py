"""What is counted of batches: plain numbers, as in ``metrics.py``, for whoever scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.metrics import Histogram

if TYPE_CHECKING:
    from gpu_batcher.flight import Flight

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0,
)  # fmt: skip


class BatchStats:
    """Of one route: ``rows`` of batches, ``waits`` of their members in the plan, ``times`` of
    batches from the plan to the answer (seconds), and the sums that make the share of padding."""

    def __init__(self) -> None:
        self.rows = Histogram(ROWS)
        self.waits = Histogram(SECONDS)
        self.times = Histogram(SECONDS)
        self.padding = 0.0

    def ended(self, flight: Flight, now: float) -> None:
        """O(members)."""
        self.rows.add(flight.batch.rows)
        self.times.add(now - flight.started)
        self.padding += flight.padding
        for member in flight.members:
            self.waits.add(flight.started - member.arrived)
