"""What a sandboxed process may never do again: start processes. A filter in the kernel, for good and inherited.

RLIMIT_NPROC would not do: it counts all processes and threads of a user, of every container with that number, so that
no figure is right; and the kernel does not hold root to it. The filter (seccomp, BPF) looks at nothing but the calls
that start a process or thread: threads are let through, processes answer EAGAIN, as where a limit is reached.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from dataclasses import dataclass

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl(2)
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF, on 32-bit words and constants
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data
_CLONE_THREAD, _X32 = 0x00010000, 0x40000000


@dataclass(frozen=True)
class Calls:
    """Numbers of a kind of machine: of the kind itself (linux/audit.h), and of its system calls."""

    machine: int
    clone: int
    clone3: int
    forks: tuple[int, ...]


CALLS = {
    "x86_64": Calls(0xC000003E, 56, 435, (57, 58)),
    "aarch64": Calls(0xC00000B7, 220, 435, ()),
}
_NONE, _MISSING = _ERRNO | errno.EAGAIN, _ERRNO | errno.ENOSYS
Step = tuple[int, int, int, int]


def program(calls: Calls) -> list[Step]:
    """Return the filter as (code, steps over if true, steps over if not, constant)."""
    one_by_one = [(number, _NONE) for number in calls.forks] + [(calls.clone3, _MISSING)]
    steps: list[Step] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, calls.machine),
        (_RETURN, 0, 0, _MISSING),  # the calls of another kind of machine have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _MISSING),
    ]
    for number, answer in one_by_one:  # clone3 hides its flags behind a pointer: C libraries then use clone
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    steps += [
        (_EQUAL, 1, 0, calls.clone),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NONE),
    ]
    return steps


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def forbid_processes() -> bool:
    """Let this process start none from here on; return False where the kernel or the machine has no such filter."""
    calls = CALLS.get(platform.machine())
    if calls is None or sys.platform != "linux":
        return False
    steps = program(calls)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    found = _Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    if prctl(_NO_NEW_PRIVILEGES, 1, None, 0, 0) != 0:
        return False
    return bool(prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(found), 0, 0) == 0)
