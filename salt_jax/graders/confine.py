"""Confinement of a process that is about to run a program nobody trusts (Linux).

``confine`` is irrevocable and holds for every thread of the process. What it does, with sandbox 'full':

- limits: processor seconds, address space, size of each file, open files, no core file;
- no capabilities and no way to gain privileges (``no_new_privs``), also where the caller is root;
- Landlock: files can be written below the program's own folder only, and read there and below what Python needs
  (its prefixes, /usr, /lib); no TCP, no signals to other processes, where the kernel's Landlock knows them;
- seccomp: the calls of ``syscalls.DENIED`` fail: no sockets, no new processes or programs, no signals to others.

With 'limits', only the limits and ``no_new_privs``: against accidents, not against intent.

What is not hidden, also with 'full': names, sizes and existence of files anywhere (Landlock lets a path be looked
up); what the machine's own Python and /usr hold; the time, and how busy the machine is. The total of many small
files is bounded by processor time alone. A fault of the kernel is a way out: where that matters, use a virtual machine.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import signal
import struct
import sys
import sysconfig

from salt_jax.graders import syscalls
from salt_jax.graders.verdict import GraderError

SANDBOXES = ("full", "limits")
FILE_BYTES = 1 << 24  # of one file that a program writes
OPEN_FILES = 64
LEAST_ABI = 3  # Linux 6.2: truncation of files is seen
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
CAPABILITY_VERSION = 0x20080522
RULE_PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK, IOCTL_DEV = 1 << 6, 1 << 9, 1 << 11, 1 << 15
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # Landlock's ABI: how many kinds of access to files it knows
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone")


def _syscall(name: str, number: int, *arguments: int | bytes | None) -> int:
    """A system call by number; OSError with its name where it fails."""
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *values)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def landlock_abi() -> int:
    """The version of Landlock this kernel has; 0 where there is none."""
    here = syscalls.machine()
    if here is None:
        return 0
    try:
        return _syscall("landlock_create_ruleset", here.landlock_create, None, 0, 1)
    except OSError:
        return 0


def missing() -> list[str]:
    """The protections of sandbox 'full' that this machine lacks, in words; empty where it has all.

    Example:
      >>> isinstance(missing(), list)
      True
    """
    here = syscalls.machine()
    if here is None:
        return [f"a table of system calls (Linux on {' or '.join(syscalls.MACHINES)})", "Landlock", "seccomp"]
    lacking = []
    if (abi := landlock_abi()) < LEAST_ABI:
        lacking.append(f"Landlock {LEAST_ABI} (Linux 6.2 or newer, and enabled; here {abi or 'none'})")
    try:
        # Without a filter: EFAULT from a kernel that would take one, EINVAL from one that does not know them.
        _syscall("prctl", here.prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            lacking.append("seccomp filters")
    return lacking


def check(sandbox: str) -> None:
    """GraderError where a sandbox is unknown, or this machine cannot make it."""
    if sandbox not in SANDBOXES:
        raise GraderError(f"sandbox = {sandbox!r} is unknown; allowed: {', '.join(SANDBOXES)}")
    if sandbox == "full" and (lacking := missing()):
        raise GraderError(
            f"programs cannot be confined on this machine, which lacks {'; '.join(lacking)}: "
            "grade them on another, or set sandbox='limits' if they can be trusted not to mean harm"
        )


def readable() -> list[str]:
    """The folders and files that Python needs for its own modules and the installed packages."""
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *SYSTEM}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return sorted(path for path in paths - {"/", os.path.expanduser("~")} if os.path.exists(path))


def limits(*, cpu_seconds: float, memory_mib: int) -> None:
    """The limits of both sandboxes; whole seconds, rounded up."""
    seconds = max(1, math.ceil(cpu_seconds))
    wanted = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU, then SIGKILL for who ignores it
        resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
    }
    if sys.platform == "linux":
        wanted[resource.RLIMIT_AS] = (memory_mib << 20, memory_mib << 20)
    for kind, (soft, hard) in wanted.items():
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def _landlock(here: syscalls.Machine, folder: str, paths: list[str]) -> None:
    abi = landlock_abi()
    every = (1 << RIGHTS[min(abi, max(RIGHTS))]) - 1
    handled = struct.pack("=QQQ", every, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)  # files, TCP, scopes
    handled = handled[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _syscall("landlock_create_ruleset", here.landlock_create, handled, len(handled), 0)
    own = every & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK | MAKE_SOCK | IOCTL_DEV)
    rules = [(folder, own), *((path, READ_FILE | READ_DIR) for path in paths)]
    rules += [(path, READ_FILE | WRITE_FILE) for path in DEVICES if os.path.exists(path)]
    for path, access in rules:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            access &= READ_FILE | WRITE_FILE
        rule = struct.pack("=Qi", access, opened)
        _syscall("landlock_add_rule", here.landlock_add, ruleset, RULE_PATH_BENEATH, rule, 0)
        os.close(opened)
    _syscall("landlock_restrict_self", here.landlock_restrict, ruleset, 0)
    os.close(ruleset)


def confine(
    folder: str, *, sandbox: str = "full", cpu_seconds: float = 6.0, memory_mib: int = 1024, paths: list[str]
) -> None:
    """Confines this process, for good.

    Args:
      folder: the one place it may write to.
      sandbox: 'full' or 'limits'.
      cpu_seconds: of the processor, rounded up to whole seconds.
      memory_mib: address space, MiB.
      paths: what it may read besides, see ``readable``.

    Raises:
      OSError: if the kernel refuses; the process must not go on.
    """
    here = syscalls.machine()
    if here is not None:
        _syscall("prctl", here.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _syscall("prctl", here.prctl, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if sandbox == "full":
        assert here is not None  # see check
        _landlock(here, folder, paths)
        nothing = struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24)
        _syscall("capset", syscalls.number("capset", here), *nothing)
    limits(cpu_seconds=cpu_seconds, memory_mib=memory_mib)
    if sandbox == "full":
        assert here is not None
        program = syscalls.program(here, os.getpid())
        buffer = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("@HP", len(program) // syscalls.LINE, ctypes.addressof(buffer))
        _syscall("prctl", here.prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # no new processes, nor threads; root is not bound by it
