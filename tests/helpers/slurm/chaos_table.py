"""The table of the rounds of chaos, as it is in docs/development/testing.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Row:
    """What the rounds with one fault have shown."""

    ended: set[str] = field(default_factory=set)
    restarts: list[int] = field(default_factory=list)  # by Slurm, before it ended
    repeated: list[int] = field(default_factory=list)  # steps
    seconds: list[float] = field(default_factory=list)
    polls: int = 0  # of ``dfer status``


class Table(defaultdict[str, Row]):
    """The rows by fault."""

    def __init__(self) -> None:
        super().__init__(Row)

    def lines(self) -> Iterator[str]:
        """Yield the table in Markdown."""
        columns = "fault", "rounds", "ended", "restarts", "steps repeated", "seconds", "polls"
        yield f"| {' | '.join(columns)} |"
        yield "|---" * len(columns) + "|"
        for fault, row in sorted(self.items()):
            numbers = [_range(row.restarts), _range(row.repeated), _range(row.seconds)]
            cells = [fault, str(len(row.seconds)), ", ".join(row.ended), *numbers, str(row.polls)]
            yield f"| {' | '.join(cells)} |"


def _range(values: list[int] | list[float]) -> str:
    return " to ".join(dict.fromkeys([f"{min(values):.0f}", f"{max(values):.0f}"]))
