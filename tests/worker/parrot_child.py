"""A child that sends back the very text it is given: what a subverted child could say, without torch's start time."""

from __future__ import annotations

import json
import sys

for line in sys.stdin:
    sys.stdout.write(json.loads(line)["params"]["text"])
    sys.stdout.flush()
