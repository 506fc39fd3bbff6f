"""The order in which searches are served: priorities first, then fair turns between owners.

Fair queueing by start tags (Goyal, Vin and Cheng 1996): a turn is one slice of a search. A new search begins at the
turn that is being served, or behind what its owner has queued already; each slice moves it on by one turn. So owners
alternate however much each of them asks for, an owner's own searches follow one another, and nobody waits for ever.
"""

from __future__ import annotations

FIRST, NORMAL, LAST = 1, 3, 5
"""Priorities: 1 is served first."""
SPACING = 400_000_000
"""Turns per priority; five priorities fit into the durable engine's 31 bits."""


def first_turn(served: int, reserved: int | None) -> int:
    """Return a new search's turn: `served` is the smallest of live searches, `reserved` the end of its owner's."""
    return served if reserved is None else max(served, reserved)


def place(priority: int, turn: int) -> int:
    """Return the number by which the durable engine orders slices, smallest first. Raises ValueError outside 1 to 5."""
    if not FIRST <= priority <= LAST:
        raise ValueError(f"priority {priority}; {FIRST} to {LAST}")
    return 1 + (priority - FIRST) * SPACING + min(max(turn, 0), SPACING - 1)
