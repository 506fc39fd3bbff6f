"""The safetensors laws: which files pass, by which name the others are refused, at what cost."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from tests.security.tensors import HOSTILE, LEGAL, sound
from worker.safetensors_laws import SafetensorsRefused, check_safetensors

MAX_S = 0.1
MAX_BYTES = 32 << 20


def cost(data: bytes) -> tuple[str, float, int]:
    """Return the answer, the CPU seconds (the better of two) and the peak of memory that Python took for it."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        slug = answer(data)
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    answer(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return slug, min(seconds), peak


def answer(data: bytes) -> str:
    try:
        check_safetensors(data)
    except SafetensorsRefused as refusal:
        assert 0 < len(refusal.detail) < 500
        return refusal.slug
    return "legal"


@pytest.mark.parametrize("name", HOSTILE)
def test_file_when_it_breaks_a_law_then_refused_by_name_within_100_ms_and_32_mib(name: str) -> None:
    made, wanted = HOSTILE[name]
    slug, seconds, peak = cost(made())
    assert slug == wanted
    assert seconds < MAX_S
    assert peak < MAX_BYTES


@pytest.mark.parametrize("name", LEGAL)
def test_file_when_it_keeps_the_laws_then_it_passes_within_32_mib(name: str) -> None:
    slug, _, peak = cost(LEGAL[name]())
    assert slug == "legal"
    assert peak < MAX_BYTES


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2],
)  # fmt: skip
def test_file_when_the_library_wrote_it_then_it_passes(dtype: torch.dtype) -> None:
    held = {"b": torch.zeros(3, 5).to(dtype), "a": torch.ones(7).to(dtype), "none": torch.zeros(0, 2).to(dtype)}
    assert answer(save_torch(held, {"format": "pt"})) == "legal"


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(sound()) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_file_when_a_byte_differs_then_what_passes_the_library_can_load(place: int, value: int, cut: bool) -> None:
    data = bytearray(sound())
    data[place] = value
    damaged = bytes(data[:place] if cut else data)
    if answer(damaged) == "legal":
        assert all(isinstance(array, np.ndarray) for array in load(damaged).values())


def test_file_when_numpy_wrote_thousands_of_tensors_then_it_passes() -> None:
    held = {f"layer.{number}.weight": np.zeros((2, 3), np.float32) for number in range(5000)}
    assert answer(save(held)) == "legal"
