"""What a hostile arm tries against the kernel and the servers of its host.

One argument has its targets as JSON. It writes what it reached and what it failed in to `reached.json` in its working
directory.

Every attempt is bounded and harmless where it succeeds.
"""

import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys

SCHED_IDLE, SIGCHLD, NEWUSER, PTRACE_ATTACH = 5, 17, 0x10000000, 16
libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, act):
    try:
        reached[name] = repr(act())[:200]
    except OSError as error:
        failed[name] = type(error).__name__


def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def connect(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.settimeout(2)
        client.connect(path)


def fork_by(number, *arguments):
    """A child by a bare system call; it ends at once."""
    pid = call(number, *arguments)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def in_child(act):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError("the child was ended")


def trace():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        return call(101, ctypes.c_long(PTRACE_ATTACH), ctypes.c_long(pid), None, None)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def old_interrupt():
    """`getpid` of 32-bit programs, whose numbers are others: mov eax, 20; int 0x80; ret."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def own_memory():
    text = ctypes.create_string_buffer(b"secret")
    to = ctypes.create_string_buffer(6)
    local, remote = (struct.pack("PN", ctypes.addressof(each), 6) for each in (to, text))
    return call(310, os.getpid(), local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), ctypes.c_ulong(0))


def calls(targets):
    buffer = ctypes.create_string_buffer(256)
    attempt("io_uring_setup", lambda: call(425, 1, buffer))
    attempt("keyctl", lambda: call(250, ctypes.c_long(0), ctypes.c_long(-3), ctypes.c_long(1)))
    attempt("add_key", lambda: call(248, b"user", b"clipwatch", b"x", ctypes.c_size_t(1), ctypes.c_long(-2)))
    attempt("clone", lambda: fork_by(56, ctypes.c_ulong(NEWUSER | SIGCHLD), None, None, None, None))
    attempt(
        "clone3", lambda: fork_by(435, struct.pack("11Q", NEWUSER, 0, 0, 0, SIGCHLD, *[0] * 6), ctypes.c_size_t(88))
    )
    attempt("unshare", lambda: in_child(lambda: call(272, ctypes.c_long(NEWUSER))))
    attempt("prlimit", lambda: call(302, targets["worker"], 0, None, buffer))
    attempt("ptrace", trace)
    attempt("process_vm_readv", own_memory)
    attempt("userfaultfd", lambda: call(323, 1))
    attempt(
        "perf_event_open", lambda: call(298, struct.pack("IIQ", 1, 112, 0) + bytes(96), 0, -1, -1, ctypes.c_ulong(0))
    )
    attempt("pidfd_getfd", lambda: call(438, os.pidfd_open(os.getpid()), 0, 0))
    attempt("name_to_handle_at", lambda: call(303, -100, b"/usr", struct.pack("Ii", 128, 0) + bytes(128), buffer, 0))
    attempt("idle class", lambda: os.sched_setscheduler(0, SCHED_IDLE, os.sched_param(0)))
    attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0)))
    attempt("32-bit calls", lambda: in_child(old_interrupt))
    attempt("x32", lambda: call(0x40000000 | 39))
    attempt("AF_VSOCK", lambda: socket.socket(40, socket.SOCK_STREAM).close())
    attempt("AF_ALG", lambda: socket.socket(38, socket.SOCK_SEQPACKET).close())
    attempt("shared memory", lambda: call(29, targets["shared"], ctypes.c_size_t(0), 0))


reached, failed = {}, {}


def main():
    targets = json.loads(next(argument for argument in sys.argv if '"streams"' in argument))
    for path in targets["streams"]:
        attempt(f"stream {path}", lambda path=path: connect(path, socket.SOCK_STREAM))
    for path in targets["datagrams"]:
        attempt(f"datagram {path}", lambda path=path: connect(path, socket.SOCK_DGRAM))
    for path in targets["packets"]:
        attempt(f"packets {path}", lambda path=path: connect(path, socket.SOCK_SEQPACKET))
    calls(targets)
    with open("reached.json", "w") as file:
        json.dump({"reached": reached, "failed": failed}, file)
