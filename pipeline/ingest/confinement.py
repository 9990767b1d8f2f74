"""Takes the network away from an extraction worker, and from whatever it starts, for good.

Called before the process has threads and before it opens a document. Knows the kernel; knows
no documents. What is used, the strongest that there is first:

    seccomp     Linux on x86-64 and ARM64, without any privilege: no socket of any kind can be made, Unix
                ones included (a database or a container service may listen there); nor is there another
                way to one, through io_uring or another process
    namespace   Linux elsewhere, where the kernel lets us: an empty network of its own
    audit       everywhere: Python code is refused; native code is not
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from contextlib import suppress
from pathlib import Path

SECCOMP, NAMESPACE, AUDIT = "seccomp", "namespace", "audit"

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_AF_UNIX, _AF_INET, _SOCK_STREAM = 1, 2, 1

# (AUDIT_ARCH_*, seccomp's own number, and those of socket, ptrace, process_vm_readv, process_vm_writev,
# io_uring_setup and pidfd_getfd) from the kernel's syscall tables.
_ARCHITECTURES = {
    "x86_64": (0xC000003E, 317, (41, 101, 310, 311, 425, 438)),
    "aarch64": (0xC00000B7, 277, (198, 117, 270, 271, 425, 438)),
}
_X32_CALLS = 0x40000000  # the second numbering that x86-64 kernels may know

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
_ARCHITECTURE_AT, _NUMBER_AT = 4, 0  # offsets in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine() -> tuple[str, ...]:
    """Take the network away; which of the above hold. The first was tried and found to refuse."""
    held = []
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _filtered(libc):
            held.append(SECCOMP)
        elif _own_network(libc):
            held.append(NAMESPACE)
    sys.addaudithook(_refuse)
    return (*held, AUDIT)


def _filtered(libc: ctypes.CDLL) -> bool:
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    audit_arch, seccomp, refused = architecture
    instructions = _instructions(audit_arch, refused)
    program = _Program(len(instructions) // 8, instructions)
    libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program))
    return all(_socket_refused(libc, family) for family in (_AF_INET, _AF_UNIX))


def _instructions(audit_arch: int, refused: tuple[int, ...]) -> bytes:
    """Refuse these calls, and every call of another architecture; allow the rest."""
    checks = [(_IF_AT_LEAST, _X32_CALLS), *((_IF_EQUAL, number) for number in refused)]
    to_refusal = len(checks) + 1
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 0, to_refusal + 1, audit_arch),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((test, to_refusal - 1 - place, 0, number) for place, (test, number) in enumerate(checks)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _socket_refused(libc: ctypes.CDLL, family: int) -> bool:
    descriptor: int = libc.socket(family, _SOCK_STREAM, 0)
    if descriptor < 0:
        return ctypes.get_errno() == errno.EACCES
    os.close(descriptor)
    return False


def _own_network(libc: ctypes.CDLL) -> bool:
    # A new user namespace would take capabilities away that may be what the documents are read with.
    flags = _CLONE_NEWNET if _has_capabilities() else _CLONE_NEWNET | _CLONE_NEWUSER
    return bool(libc.unshare(flags) == 0)


def _has_capabilities() -> bool:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16) != 0
    return os.geteuid() == 0


def _refuse(event: str, _arguments: tuple[object, ...]) -> None:
    if event.startswith("socket."):
        raise PermissionError(errno.EACCES, "extraction workers have no network")
