"""seccomp: a filter of system calls that a process applies to itself and to all that it starts.

A filter is a program for the kernel's BPF machine (linux/filter.h, linux/seccomp.h). It needs no privilege. libseccomp
would write the same program, but its Python binding is in no package index, and the program has four kinds of lines.
"""

import ctypes
import platform
import struct
from dataclasses import dataclass

from worker.launch.sandbox.kernel import SECCOMP, number_here, syscall

SET_MODE_FILTER, ALL_THREADS = 1, 1
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, ENOSYS = 1, 38
# Offsets in `struct seccomp_data`: number, machine, then six arguments of 64 bits, of which the low half comes first.
NUMBER, MACHINE, ARGUMENT = 0, 4, 16
X32 = 0x40000000
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16
DATAGRAM, PACKETS, TYPE_BITS = 2, 5, 0xF
# linux/sched.h: mount, cgroup, uts, ipc, user, pid and network namespaces.
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
INSERT_INPUT, LINUX_CONSOLE = 0x5412, 0x541C

# (x86_64, aarch64); None where a machine has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # Other processes' memory, descriptors and order of running.
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    **{"pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448)},
    **{"setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119)},
    **{"sched_setattr": (314, 274), "ioprio_set": (251, 30)},
    # Parts of the kernel with a long list of faults, which training does not need.
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "fanotify_init": (300, 262)},
    **{"modify_ldt": (154, None), "uselib": (134, None), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42)},
    # Namespaces, mounts, and files by their handles.
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51)},
    **{"pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442)},
    **{"open_tree_attr": (467, 467), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    # The machine as a whole.
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "reboot": (169, 142)},
    **{"finit_module": (313, 273), "delete_module": (176, 106), "syslog": (103, 116), "acct": (163, 89)},
    **{"swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "quotactl_fd": (443, 443)},
    **{"settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266)},
    **{"sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None)},
    **{"vhangup": (153, 58)},
}


@dataclass(frozen=True)
class Machine:
    """What differs between kinds of machines: the column of `DENIED`, and the calls of which arguments decide."""

    column: int
    audit: int
    socket: int
    clone: int
    clone3: int
    prlimit: int
    ioctl: int


MACHINES = {
    "x86_64": Machine(0, 0xC000003E, socket=41, clone=56, clone3=435, prlimit=302, ioctl=16),
    "aarch64": Machine(1, 0xC00000B7, socket=198, clone=220, clone3=435, prlimit=261, ioctl=29),
}


def restrict(*, gpu: bool) -> None:
    """Takes system calls away from this process and all that it starts. No new privileges must be set.

    Args:
        gpu: whether sockets of the family AF_UNIX may be made that keep the bounds of messages. By datagrams NCCL
            passes handles of GPU memory between the ranks of a host, and CUDA listens on a socket of sequenced packets
            from its first call on. Streams, by which databases, Redis and Docker are reached, are never allowed.

    Raises:
        OSError: the kernel refused, or this kind of machine is not known here.
    """
    code = program(platform.machine(), gpu=gpu)
    buffer = ctypes.create_string_buffer(code, len(code))
    # `struct sock_fprog`: the number of lines, and where they are.
    pointer = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    syscall(number_here(SECCOMP), ctypes.c_uint(SET_MODE_FILTER), ctypes.c_uint(ALL_THREADS), pointer)


def program(name: str, *, gpu: bool) -> bytes:
    """The filter for a kind of machine. A call with another architecture's numbers ends the process.

    Raises:
        OSError: this kind of machine is not known here.
    """
    if name not in MACHINES:
        raise OSError(f"system calls of {name} are not known")
    machine = MACHINES[name]
    lines = [_line(LOAD, MACHINE), _line(JUMP_EQUAL, machine.audit, 1, 0), _line(RETURN, KILL), _line(LOAD, NUMBER)]
    if name == "x86_64":
        # Bit 30 marks calls of x32, which have numbers of their own; -1 is what a debugger makes of a skipped call.
        lines += [_line(JUMP_AT_LEAST, X32, 0, 1), _line(RETURN, ERRNO | ENOSYS)]
    for numbers in DENIED.values():
        number = numbers[machine.column]
        if number is not None:
            lines += [_line(JUMP_EQUAL, number, 0, 1), _line(RETURN, ERRNO | EPERM)]
    # Its flags lie in memory, which a filter cannot read. The C library then uses `clone`.
    lines += [_line(JUMP_EQUAL, machine.clone3, 0, 1), _line(RETURN, ERRNO | ENOSYS)]
    lines += _of_call(machine.clone, [_load(0), _line(JUMP_BITS, NAMESPACES, 0, 1), _line(RETURN, ERRNO | EPERM)])
    # Limits of the process itself alone, which has the id 0.
    lines += _of_call(machine.prlimit, [_load(0), _line(JUMP_EQUAL, 0, 1, 0), _line(RETURN, ERRNO | EPERM)])
    lines += _of_call(
        machine.ioctl,
        [
            _load(1),
            _line(JUMP_EQUAL, INSERT_INPUT, 1, 0),
            _line(JUMP_EQUAL, LINUX_CONSOLE, 0, 1),
            _line(RETURN, ERRNO | EPERM),
        ],
    )
    lines += _of_call(machine.socket, _socket_rules(gpu))
    return b"".join([*lines, _line(RETURN, ALLOW)])


def _socket_rules(gpu: bool) -> list[bytes]:
    """TCP, UDP and netlink. AF_UNIX as `restrict` says; no other family, such as AF_VSOCK, has a namespace."""
    rules = [_load(0)]
    for family in (INET, INET6, NETLINK):
        rules += [_line(JUMP_EQUAL, family, 0, 1), _line(RETURN, ALLOW)]
    if gpu:
        kinds = [_load(1), _line(AND, TYPE_BITS)]
        for kind in (DATAGRAM, PACKETS):
            kinds += [_line(JUMP_EQUAL, kind, 0, 1), _line(RETURN, ALLOW)]
        rules += [_line(JUMP_EQUAL, UNIX, 0, len(kinds)), *kinds]
    return [*rules, _line(RETURN, ERRNO | EPERM)]


def _of_call(number: int, rules: list[bytes]) -> list[bytes]:
    """Rules for one call; a call that they let through is allowed."""
    body = [*rules, _line(RETURN, ALLOW)]
    return [_line(JUMP_EQUAL, number, 0, len(body)), *body]


def _load(argument: int) -> bytes:
    """Loads the low half of an argument, which is all that the kernel reads of an `int`."""
    return _line(LOAD, ARGUMENT + 8 * argument)


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """`struct sock_filter`: how many lines are skipped if a comparison holds, and if it does not."""
    return struct.pack("HBBI", code, if_true, if_false, value)
