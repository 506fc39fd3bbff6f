"""Benchmarks: every figure tightfit quotes is printed by one of these, one JSON result per cell."""
