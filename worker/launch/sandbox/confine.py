"""What an arm may touch: files, network, other processes, system calls. It runs code that nobody has reviewed.

`plan` writes it down where the arm is launched, as JSON; `confine` applies it in the process that the arm then runs in.
"""

import contextlib
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from worker.launch.protocol import Isolation, ResourceLimits
from worker.launch.sandbox import landlock, namespaces, seccomp
from worker.launch.sandbox.kernel import check, library

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITY_VERSION = 0x20080522

LAYERS = ("network", "mounts", "privileges", "files", "system calls")
# The layers that a container is, whoever starts it.
CONTAINER = ("network", "mounts", "privileges", "files")

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix", "/sys")
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

    `port`: where the hosts of an arm meet. Such an arm cannot have a network of its own; it may speak TCP with this
    port and with those that the system assigns by itself.

    `around` names the layers that this process has already: whoever started it applied them.
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
    entries = [*path, *_installed_elsewhere(prefixes)]
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
    """Confines this process and all that it starts, as far as this system can.

    Returns:
        The names of the layers that were applied, and of those that this system lacks.
    """
    _limit(given.limits)
    if given.isolation == Isolation.OFF or sys.platform != "linux":
        return ["limits", *given.around], [name for name in LAYERS if name not in given.around]
    done, failed = ["limits"], []
    for name, layer in _layers(given):
        if name in given.around:
            done.append(name)
            continue
        try:
            layer()
        except OSError:
            failed.append(name)
        else:
            done.append(name)
    return done, failed


def _layers(given: SandboxPlan) -> list[tuple[str, Callable[[], None]]]:
    """The layers in their order: namespaces need privileges, Landlock allows no mounts, and seccomp neither of them."""
    port = given.port
    layers: list[tuple[str, Callable[[], None]]] = [] if port else [("network", namespaces.leave_network)]
    layers += [("mounts", lambda: _mounts(given)), ("privileges", _drop_privileges)]
    if port:
        layers.append(("ports", lambda: _ports(port)))
    layers.append(("files", lambda: _files(given)))
    layers.append(("system calls", lambda: seccomp.restrict(gpu=given.gpu)))
    return layers


def _installed_elsewhere(prefixes: Iterable[Path]) -> list[Path]:
    """Folders outside of the interpreter that its `.pth` files name, as those of editable installs do."""
    # The first entry is the folder of this program, or the working directory.
    entries = [Path(entry) for entry in sys.path[1:] if os.path.isdir(entry)]
    return [entry for entry in entries if not any(entry.is_relative_to(prefix) for prefix in prefixes)]


def _importable(entry: Path) -> list[Path]:
    if not entry.is_dir():
        return []
    if entry.name in ("site-packages", "dist-packages"):
        return [entry]
    kinds = (".py", ".so", ".pth", ".dist-info", ".egg-info")
    return [each for each in entry.iterdir() if each.suffix in kinds or (each / "__init__.py").is_file()]


def _limit(limits: dict[str, int]) -> None:
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: limits["disk"]}
    if os.getuid() != 0:  # Linux does not count the processes of root
        wanted[resource.RLIMIT_NPROC] = limits["processes"] * limits["threads"]
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _mounts(given: SandboxPlan) -> None:
    namespaces.own_root(_readable(given), map(Path, given.writable), _devices())


def _drop_privileges() -> None:
    """Drops every capability. No program that is started can give one back, not for root either."""
    for capability in range(64):
        if library().prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # this kernel knows no more, or this process may not drop any: then it has none
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    check(library().capset(header, bytes(24)))
    check(library().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _ports(port: int) -> None:
    """TCP with the port where the hosts meet, and with ports that the system assigns: servers have others."""
    if landlock.version() < 4:
        raise OSError("this kernel's Landlock knows no ports")
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    landlock.restrict_ports([0, port, *range(int(first), int(last) + 1)])


def _files(given: SandboxPlan) -> None:
    if not landlock.version():
        raise OSError("this kernel has no Landlock")
    landlock.restrict(
        {
            landlock.READ: [Path("/proc"), *_readable(given)],
            landlock.LIST: map(Path, given.listable),
            landlock.DEVICE: _devices(),
            landlock.WRITE: map(Path, ["/dev/shm", *given.writable]),
            # CUDA names its threads by writing below /proc.
            landlock.READ | landlock.WRITE_FILE | landlock.TRUNCATE: [Path("/proc")] if given.gpu else [],
        }
    )


def _readable(given: SandboxPlan) -> list[Path]:
    return [Path(path) for path in (*SYSTEM, *(f"/etc/{name}" for name in ETC), *given.readable)]


def _devices() -> list[Path]:
    found = [Path("/dev", name) for name in DEVICES]
    return found + [path for pattern in DEVICE_PATTERNS for path in Path("/dev").glob(pattern)]


def private_folders(folder: Path) -> dict[str, str]:
    """Makes an arm's home and its folder for temporary files below its own; the variables that name them."""
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
