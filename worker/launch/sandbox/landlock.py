"""Linux' Landlock: a process gives up, for itself and all that it starts, every file but those it names.

It needs no privilege, and it holds for root too. The interface is that of linux/landlock.h, by numbers, because the C
library has no functions for it.
"""

import ctypes
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from worker.launch.sandbox.kernel import syscall

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
VERSION_FLAG, PATH_BENEATH, NET_PORT = 1, 1, 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_SYM = 1 << 9, 1 << 10, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1 << 0, 1 << 1

LIST = READ_DIR
READ = EXECUTE | READ_FILE | READ_DIR
DEVICE = READ_FILE | WRITE_FILE | READ_DIR | IOCTL_DEV
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
WRITE |= REFER | TRUNCATE
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


class Ruleset(ctypes.Structure):
    """`struct landlock_ruleset_attr`."""

    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class Beneath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class Port(ctypes.Structure):
    """`struct landlock_net_port_attr`."""

    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def version() -> int:
    """The version of Landlock's interface that the kernel has; 0 for none."""
    try:
        return syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))
    except OSError:
        return 0


def restrict(rules: Mapping[int, Iterable[Path]]) -> None:
    """Allows this process and its children nothing but `rules`: rights, and the paths that they hold for and beneath.

    Paths that do not exist are left out. The kernel must know Landlock, and no new privileges must be set.

    Raises:
        OSError: the kernel refused.
    """
    known = version()
    handled = _handled(known)
    ruleset = Ruleset(handled, 0, SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS if known >= 6 else 0)
    size = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(known, 24)
    descriptor = syscall(CREATE, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for rights, paths in rules.items():
            for path in paths:
                _allow(descriptor, rights & handled, path)
        syscall(RESTRICT, ctypes.c_int(descriptor), ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def restrict_ports(ports: Iterable[int]) -> None:
    """Allows this process and its children to bind and connect TCP sockets to `ports` alone; 0 is any free port.

    The kernel's Landlock must be of version 4, and no new privileges must be set. Files are left as they are: a
    ruleset that says nothing of moving a file to another folder forbids it, so this one allows it everywhere.

    Raises:
        OSError: the kernel refused.
    """
    both = BIND_TCP | CONNECT_TCP
    descriptor = syscall(CREATE, ctypes.byref(Ruleset(REFER, both, 0)), ctypes.c_size_t(16), ctypes.c_uint32(0))
    try:
        _allow(descriptor, REFER, Path("/"))
        for port in ports:
            rule = Port(both, port)
            syscall(ADD_RULE, ctypes.c_int(descriptor), ctypes.c_int(NET_PORT), ctypes.byref(rule), ctypes.c_uint32(0))
        syscall(RESTRICT, ctypes.c_int(descriptor), ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def _handled(known: int) -> int:
    everything = (1 << 13) - 1
    return (
        everything | (REFER if known >= 2 else 0) | (TRUNCATE if known >= 3 else 0) | (IOCTL_DEV if known >= 5 else 0)
    )


def _allow(ruleset: int, rights: int, path: Path) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return
    try:
        beneath = Beneath(rights if path.is_dir() else rights & OF_FILES, parent)
        syscall(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), ctypes.byref(beneath), ctypes.c_uint32(0))
    finally:
        os.close(parent)
