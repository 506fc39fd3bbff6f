"""`python -m worker.graph.ops` prints docs/operators.md."""

from __future__ import annotations

import sys

from worker.graph.ops.page import page

sys.stdout.write(page())
