"""The compression engine: reads networks, searches assignments, writes and verifies artefacts."""

import os

# ONNX Runtime reports usage unless told not to before its first import; tightfit phones nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
