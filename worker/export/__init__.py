"""Artefacts: the packed checkpoint, the quantized ONNX file, and the proof that both compute what was simulated."""
