"""Calls of the Linux kernel for which Python has no functions, through the C library."""

import ctypes
import os
import platform
from functools import lru_cache

# Numbers of system calls by machine; newer calls have one number on all machines.
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SECCOMP = {"x86_64": 317, "aarch64": 277}
MOUNT_SETATTR = 442


def syscall(number: int, *arguments: object) -> int:
    """A system call by its number.

    Raises:
        OSError: the kernel refused.
    """
    return check(library().syscall(ctypes.c_long(number), *arguments))


def number_here(numbers: dict[str, int]) -> int:
    """The number of a system call on this machine.

    Raises:
        OSError: its number on this kind of machine is not known here.
    """
    machine = platform.machine()
    if machine not in numbers:
        raise OSError(f"system calls of {machine} are not known")
    return numbers[machine]


def check(result: int) -> int:
    """The result of a function of the C library.

    Raises:
        OSError: it is negative.
    """
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)
