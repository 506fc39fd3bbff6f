"""The filter of system calls, stepped through for both kinds of machine; tests of the sandbox run it in the kernel."""

from __future__ import annotations

import errno

import pytest

from worker.confine import CALLS, program

ALLOW, NONE, MISSING = 0x7FFF0000, 0x00050000 | errno.EAGAIN, 0x00050000 | errno.ENOSYS
THREAD, SIGCHLD = 0x00010F00, 17


def answer(kind: str, number: int, first: int = 0, machine: int | None = None) -> int:
    """Return what the filter says of a call."""
    seen = {0: number, 4: CALLS[kind].machine if machine is None else machine, 16: first}
    steps, at, value = program(CALLS[kind]), 0, 0
    while True:
        code, yes, no, constant = steps[at]
        if code == 0x06:
            return constant
        if code == 0x20:
            value = seen[constant]
            at += 1
            continue
        holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[code]
        at += 1 + (yes if holds else no)


@pytest.mark.parametrize("kind", CALLS)
def test_filter_when_a_thread_is_started_then_let_through_and_a_process_is_not(kind: str) -> None:
    calls = CALLS[kind]
    assert answer(kind, calls.clone, THREAD) == ALLOW
    assert answer(kind, calls.clone, SIGCHLD) == NONE
    assert answer(kind, calls.clone3) == MISSING  # C libraries then start their threads by clone
    assert [answer(kind, number) for number in calls.forks] == [NONE] * len(calls.forks)
    assert {
        answer(kind, number) for number in range(600) if number not in (calls.clone, calls.clone3, *calls.forks)
    } == {ALLOW}


def test_filter_when_the_call_is_of_another_kind_of_machine_then_it_is_missing() -> None:
    assert answer("x86_64", 2, machine=0x40000003) == MISSING  # 32-bit x86: 2 is its fork
    assert answer("x86_64", 0x40000000 | 57) == MISSING  # the x32 numbers
