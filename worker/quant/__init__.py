"""Quantization: grids, observers, rounding, and the simulated network."""
