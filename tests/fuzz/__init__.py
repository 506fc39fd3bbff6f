"""Mutation fuzzing of the readers: `python -m tests.fuzz`."""
