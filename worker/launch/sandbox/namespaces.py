"""Namespaces of an arm: a network with this host's own address alone, and a root file system with what it needs."""

import ctypes
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from worker.launch.sandbox.kernel import MOUNT_SETATTR, PIVOT_ROOT, check, library, number_here, syscall

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

# What root could set in /proc, whether it has capabilities or not: files of root, which it may write.
KERNEL_SETTINGS = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi")
# Where the new root is put together; any folder that every system has.
BASE = "/tmp"
SKELETON = "mode=0755,size=16m"


def enter(flags: int) -> None:
    """Moves this process to new namespaces: with its privileges, or else with those of a new user namespace.

    Raises:
        OSError: neither is allowed here.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        check(library().unshare(flags))
    except OSError:
        check(library().unshare(CLONE_NEWUSER | flags))
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(line)


def leave_network() -> None:
    """A network with nothing in it but this host's own address, 127.0.0.1."""
    enter(CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(probe, SIOCGIFFLAGS, request))
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def own_root(readable: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path]) -> None:
    """A root file system in which these paths are all that there is, beside /proc and an empty /dev/shm.

    The sockets of the host are not in it, so no server is reached by a path. System V's shared memory, semaphores and
    message queues are this arm's own too, and end with it. Paths that do not exist are left out.

    Raises:
        OSError: this is not allowed here. Then nothing has changed.
    """
    # In a child first: a root that is half built could be neither used nor left again.
    child = os.fork()
    if child == 0:
        try:
            _build_root(readable, writable, devices)
        except OSError as error:
            os._exit(error.errno if error.errno and error.errno < 256 else 255)
        except BaseException:
            os._exit(255)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status, "no root file system of its own can be made")
    _build_root(readable, writable, devices)


def _build_root(readable: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path]) -> None:
    working_folder = os.getcwd()
    links: dict[str, str] = {}
    modes: dict[str, int] = {}
    for paths, mode in ((readable, RDONLY | NOSUID | NODEV), (devices, NOSUID | NOEXEC), (writable, NOSUID | NODEV)):
        for path in paths:
            real = _real(path, links)
            if real is not None:
                modes[real] = mode
    enter(CLONE_NEWNS | CLONE_NEWIPC)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    # Twice: first to a root from which both the old one (/old) and the one to be built (/new) are seen.
    _mount("tmpfs", BASE, "tmpfs", MS_NOSUID | MS_NODEV, SKELETON)
    os.mkdir(f"{BASE}/old")
    os.mkdir(f"{BASE}/new")
    _pivot_root(BASE, f"{BASE}/old")
    os.chdir("/")
    _mount("tmpfs", "/new", "tmpfs", MS_NOSUID | MS_NODEV, SKELETON)
    modes["/proc"] = NOSUID | NODEV | NOEXEC
    # Parents first, so that what lies in a folder of another mode is put on top of it.
    for place in sorted(modes, key=lambda place: place.count("/")):
        _bind(place, modes[place])
    for setting in KERNEL_SETTINGS:
        if os.path.exists(f"/old/proc/{setting}"):
            _bind(f"/proc/{setting}", RDONLY | NOSUID | NODEV | NOEXEC)
    os.makedirs("/new/dev/shm", exist_ok=True)
    _mount("tmpfs", "/new/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for link, target in links.items():
        os.makedirs(os.path.dirname(f"/new{link}"), exist_ok=True)
        if not os.path.lexists(f"/new{link}"):
            os.symlink(target, f"/new{link}")
    os.chdir("/new")
    _pivot_root(".", ".")
    check(library().umount2(b".", MNT_DETACH))
    os.chdir("/")
    _set_attributes("/", RDONLY | NOSUID | NODEV, recursive=False)
    os.chdir(working_folder)


def _real(path: Path, links: dict[str, str]) -> str | None:
    """Where a path leads to in the end, or None if nowhere; the symbolic links on its way are added to `links`."""
    if not os.path.exists(path):
        return None
    done, rest = "/", [part for part in os.path.abspath(path).split("/") if part]
    while rest:
        here = os.path.join(done, rest.pop(0))
        if os.path.islink(here):
            links[here] = os.readlink(here)
            target = os.path.normpath(os.path.join(os.path.realpath(done), links[here]))
            done, rest = "/", [part for part in target.split("/") if part] + rest
        else:
            done = here
    return done


def _bind(path: str, attributes: int) -> None:
    """Shows a path of the old root, with all mounts below it, at the same place of the new one."""
    source, place = f"/old{path}", f"/new{path}"
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        open(place, "x").close()
    _mount(source, place, None, MS_BIND | MS_REC)
    _set_attributes(place, attributes, recursive=True)


def _set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    # `struct mount_attr`: what is set, what is cleared, propagation, a user namespace. Linux 5.12.
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = ctypes.c_uint(AT_RECURSIVE if recursive else 0)
    syscall(MOUNT_SETATTR, ctypes.c_int(AT_FDCWD), path.encode(), flags, wanted, ctypes.c_size_t(len(wanted)))


def _pivot_root(new: str, old: str) -> None:
    syscall(number_here(PIVOT_ROOT), new.encode(), old.encode())


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    check(library().mount(encoded(source), encoded(target), encoded(kind), ctypes.c_ulong(flags), encoded(options)))
