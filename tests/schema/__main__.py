"""`make schema`: thousands of generated requests, and a tally of what came back."""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.schema.run import Sender, service


def main() -> None:
    """Send requests until there are enough; leave with 1 if an answer was a fault or is not in the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    begun, rounds = time.monotonic(), 0
    with service() as (application, key):
        sender = Sender(application, key, asked.seed)
        tally = sender.tally
        while tally.requests < asked.requests:
            sender.reseed(asked.seed + rounds)
            sender.each(10)
            sender.linked(20)
            rounds += 1
            print(f"{tally.requests} requests in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    faults = sum(count for status, count in tally.statuses.items() if status >= 500)
    figures = {
        "requests": tally.requests,
        "seconds": round(time.monotonic() - begun),
        "operations": len(tally.operations),
        "faults": faults,
        "not_in_the_document": tally.failures,
        "statuses": dict(sorted(tally.statuses.items())),
        "problems": dict(tally.problems.most_common()),
    }
    print(json.dumps(figures, indent=2))
    sys.exit(bool(faults or tally.failures))


if __name__ == "__main__":
    main()
