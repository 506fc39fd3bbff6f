"""Owners: whose a row is. Every API key acts for one owner, and what it makes is that owner's alone.

A sight says what somebody may see: an owner's name, or None for administrators, who see every owner's.
"""

from __future__ import annotations

DEFAULT = "default"
"""Whose everything is where nobody asked for owners."""
PATTERN = r"^[a-z0-9][a-z0-9._-]{0,39}$"
ME = "me"
"""Stands in a list's filter for the owner who asks; no owner has this name."""

Sight = str | None
