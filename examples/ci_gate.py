"""A gate for a build pipeline: push a network, search inside the budget, fail the build unless it fits.

    python examples/ci_gate.py net.onnx DATASET DEVICE 'bops<=1/16' 'weight_bytes<=60kB' --min-accuracy 0.9

Reads TIGHTFIT_URL and TIGHTFIT_KEY. Exit codes: 0 fits, 3 does not fit, 1 error. The ONNX file lies beside the input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.client import ApiProblem, Client
from app.commands.limits import parse_limits


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("device")
    parser.add_argument("limits", nargs="+")
    parser.add_argument("--min-accuracy", type=float, default=0.0, help="least hold-out accuracy (0..1)")
    parser.add_argument("--trials", type=int, default=60)
    return parser.parse_args()


def gate(client: Client, wanted: argparse.Namespace) -> int:
    """Run the search and return the exit code."""
    model = client.push_model(wanted.network)
    search = client.run_search(
        {
            "name": f"gate {wanted.network.stem}",
            "model_id": model["id"],
            "dataset": {"all": client.find("datasets", wanted.dataset)["id"]},
            "device_id": client.find("devices", wanted.device)["id"],
            "limits": parse_limits(wanted.limits),
            "search": {"trials": wanted.trials, "seed": 0},
            "export_top": 1,
        }
    )
    found = client.candidates(search["id"])
    if search["outcome"] != "feasible" or not found:
        print(f"{search['id']}: {search['state']}, outcome {search['outcome']}", file=sys.stderr)
        return 3
    candidate = client.get(f"/v1/candidates/{found[0]['id']}")
    accuracy = candidate["metrics"]["holdout"].get("accuracy", 0.0)
    for artefact in candidate["artefacts"]:
        if artefact["kind"] == "onnx":
            print(client.download(artefact["id"], wanted.network.with_suffix(".compressed.onnx")))
    good = candidate["verification"] == "verified" and accuracy >= wanted.min_accuracy
    print(f"hold-out accuracy {accuracy:.4f}, verification {candidate['verification']}")
    return 0 if good else 3


if __name__ == "__main__":
    try:
        sys.exit(gate(Client(), arguments()))
    except (ApiProblem, TimeoutError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
