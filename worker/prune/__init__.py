"""Pruning: which channels go, and how their consumers are refitted."""
