"""Progress as the phases report it: one event, one callable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class PhaseProgress:
    """Where a run stands.

    Attributes:
        phase: Name of the phase, ``done`` or ``failed``.
        phase_index: Its place, 1-based.
        phase_total: How many phases the run has.
        items_done: What is done of it.
        items_total: How much there is; 0 where it is not known.
        message: One line for people.
    """

    phase: str
    phase_index: int
    phase_total: int
    items_done: int = 0
    items_total: int = 0
    message: str = ""

    @property
    def fraction(self) -> float:
        """Share of the phase that is done, 0..1."""
        return min(self.items_done / self.items_total, 1.0) if self.items_total else 0.0


class ReportProgress(Protocol):
    """Takes progress events; called often, so it has to be cheap."""

    def __call__(self, event: PhaseProgress) -> None:
        """Takes one event."""


class ReportItems(Protocol):
    """Takes counts inside one phase."""

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Takes counts and one line for people."""


def ignore_items(done: int, total: int, message: str = "") -> None:
    """Reports nothing."""
