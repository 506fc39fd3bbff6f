"""Everything the pages read."""

from __future__ import annotations

from typing import Any

from fastapi import Request

Json = dict[str, Any]


class Reader:
    def __init__(self, request: Request) -> None: ...


def reader(request: Request) -> Reader:
    return Reader(request)
