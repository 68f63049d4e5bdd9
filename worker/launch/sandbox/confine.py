"""What an arm may touch: files, network, other processes. It runs code nobody has reviewed.

`plan` says it where the arm is launched, as JSON; `confine` does it in the process that the arm then runs in.
"""

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from worker.launch.protocol import Isolation, ResourceLimits
from worker.launch.sandbox import landlock

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITY_VERSION = 0x20080522
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
KERNEL_SETTINGS = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi")
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

LAYERS = ("network", "privileges", "files")

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix", "/proc", "/sys")
# Of /etc what programs need to start and to find names; not what only root may read, for a worker may be root.
ETC = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "nsswitch.conf",
    "hosts",
    "host.conf",
    "resolv.conf",
    "passwd",
    "group",
    "localtime",
    "ssl",
    "alternatives",
    "protocols",
    "services",
    "OpenCL",
    "nvidia",
    "python3",
    "mime.types",
)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "dri", "kfd")
DEVICE_PATTERNS = ("nvidia*",)


@dataclass(frozen=True)
class SandboxPlan:
    """Folders as strings: `readable` and `writable` with all that is in them, `listable` by name alone.

    `port`: where an arm of several hosts meets. It cannot have a network of its own; all that it may speak TCP with are
    this port and those that the system hands out by itself.

    `around` names the layers that are there already, put around this process by whoever started it.
    """

    isolation: str
    limits: dict[str, int]
    readable: list[str] = field(default_factory=list)
    listable: list[str] = field(default_factory=list)
    writable: list[str] = field(default_factory=list)
    gpu: bool = False
    port: int | None = None
    around: list[str] = field(default_factory=list)


def plan(
    isolation: Isolation,
    limits: ResourceLimits,
    path: Iterable[Path],
    readable: Iterable[Path],
    writable: Iterable[Path],
    gpu: bool,
    port: int | None = None,
) -> SandboxPlan:
    """The plan for an arm that imports from the folders of `path`.

    Of those only what can be imported is readable: the data of the service may lie in one of them.
    """
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)} | {Path(sys.prefix)}
    entries = list(path)
    packages = [package for entry in entries for package in _importable(entry)]
    return SandboxPlan(
        isolation.value,
        asdict(limits),
        [str(each) for each in (*prefixes, *packages, *readable)],
        [str(entry) for entry in entries],
        [str(each) for each in writable],
        gpu,
        port,
    )


def confine(given: SandboxPlan) -> tuple[list[str], list[str]]:
    """Confines this process and all that it starts, as far as this system can. What was done, and what could not be."""
    _limit(given.limits)
    if given.around:
        return ["limits", *given.around], [name for name in LAYERS if name not in given.around]
    if given.isolation == Isolation.OFF or sys.platform != "linux":
        return ["limits"], list(LAYERS)
    done, failed = ["limits"], []
    # In this order: a network of one's own needs privileges, and Landlock that none can be had.
    port = given.port
    layers: list[tuple[str, Callable[[], None]]] = [] if port else [("network", _leave_network)]
    if given.gpu:
        layers.append(("kernel settings", _keep_kernel_settings))
    layers.append(("privileges", _drop_privileges))
    if port:
        layers.append(("ports", lambda: _ports(port)))
    layers.append(("files", lambda: _files(given)))
    for name, layer in layers:
        try:
            layer()
        except OSError:
            failed.append(name)
        else:
            done.append(name)
    return done, failed


def _importable(entry: Path) -> list[Path]:
    if not entry.is_dir():
        return []
    kinds = (".py", ".so", ".pth", ".dist-info", ".egg-info")
    return [each for each in entry.iterdir() if each.suffix in kinds or (each / "__init__.py").is_file()]


def _limit(limits: dict[str, int]) -> None:
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: limits["disk"]}
    if os.getuid() != 0:  # of root's processes Linux counts none
        wanted[resource.RLIMIT_NPROC] = limits["processes"] * limits["threads"]
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _leave_network() -> None:
    """A network with nothing in it but this host's own address, 127.0.0.1."""
    uid, gid = os.getuid(), os.getgid()
    try:
        _unshare(CLONE_NEWNET)
    except OSError:
        _unshare(CLONE_NEWUSER | CLONE_NEWNET)
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(line)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(probe, SIOCGIFFLAGS, request))
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _unshare(flags: int) -> None:
    _check(ctypes.CDLL(None, use_errno=True).unshare(flags))


def _keep_kernel_settings() -> None:
    """What root could set in /proc, read-only: CUDA names its threads by writing there, so an arm must be let in.

    Whoever is not root cannot set it anyway.
    """
    try:
        _unshare(CLONE_NEWNS)
        _mount(None, "/", MS_REC | MS_PRIVATE)
        for path in KERNEL_SETTINGS:
            if os.path.exists(path):
                _mount(path, path, MS_BIND | MS_REC)
                _mount(None, path, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        if os.getuid() == 0:
            raise


def _mount(source: str | None, target: str, flags: int) -> None:
    encoded = None if source is None else source.encode()
    _check(ctypes.CDLL(None, use_errno=True).mount(encoded, target.encode(), None, ctypes.c_ulong(flags), None))


def _drop_privileges() -> None:
    """No capability, none to be had from a program that is started, even for root."""
    library = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        if library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the last one that this kernel knows, or we have no right to: then there is none to lose
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    _check(library.capset(header, bytes(24)))
    _check(library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _ports(port: int) -> None:
    """TCP with the port where the hosts meet and with ports that nobody chose: no database, broker or shell has one."""
    if landlock.version() < 4:
        raise OSError("this kernel's Landlock knows no ports")
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    landlock.restrict_ports([0, port, *range(int(first), int(last) + 1)])


def _files(given: SandboxPlan) -> None:
    if not landlock.version():
        raise OSError("this kernel has no Landlock")
    devices = [Path("/dev", name) for name in DEVICES]
    devices += [path for pattern in DEVICE_PATTERNS for path in Path("/dev").glob(pattern)]
    readable = [*SYSTEM, *(f"/etc/{name}" for name in ETC), *given.readable]
    landlock.restrict(
        {
            landlock.READ: map(Path, readable),
            landlock.LIST: map(Path, given.listable),
            landlock.DEVICE: devices,
            landlock.WRITE: map(Path, ["/dev/shm", *given.writable]),
            landlock.READ | landlock.WRITE_FILE | landlock.TRUNCATE: [Path("/proc")] if given.gpu else [],
        }
    )


def _check(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def private_folders(folder: Path) -> dict[str, str]:
    """Makes an arm's home and its folder for temporary files in its own; the variables that name them."""
    places = {"HOME": folder / "home", "TMPDIR": folder / "tmp"}
    for place in places.values():
        place.mkdir(exist_ok=True)
    return {name: str(place) for name, place in places.items()}


def size_of(folder: Path) -> int:
    """Bytes of the files in and below a folder."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(top, name)).st_blocks * 512
    return total
