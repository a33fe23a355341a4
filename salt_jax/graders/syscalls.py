"""The system calls a graded program may not make, as a seccomp filter: default allow, this list denied.

A denied call fails with EPERM and the program goes on; a call by another table (32-bit x86, x32) kills it.
Numbers: Linux's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import errno
import platform
import struct
import sys
from typing import NamedTuple

# name: (x86-64, aarch64); None where there is no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # network; socketpair, whose two ends stay inside, is allowed
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # processes (clone and clone3: below) and what belongs to other processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122), "setrlimit": (160, 164), "move_pages": (279, 239), "migrate_pages": (256, 238),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    # what Landlock does not see: owners, permissions, times and attributes of files anywhere
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469), "mknod": (133, None), "mknodat": (259, 33),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    # mounts, names, identities
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "open_tree_attr": (467, 467), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97),
    "setns": (308, 268), "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "capset": (126, 91),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92), "vhangup": (153, 58),
    "prctl": (157, 167), "seccomp": (317, 277),
}  # fmt: skip


class Machine(NamedTuple):
    """Where a machine's calls are found: its column in ``DENIED``, its name to seccomp, and the calls asked more of."""

    column: int
    audit: int
    clone: int
    kill: int
    tgkill: int
    fcntl: int
    prlimit64: int
    prctl: int
    landlock_create: int = 444
    landlock_add: int = 445
    landlock_restrict: int = 446
    clone3: int = 435


MACHINES = {
    "x86_64": Machine(0, 0xC000003E, clone=56, kill=62, tgkill=234, fcntl=72, prlimit64=302, prctl=157),
    "aarch64": Machine(1, 0xC00000B7, clone=220, kill=129, tgkill=131, fcntl=25, prlimit64=261, prctl=167),
}

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, ABOVE, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF: ld abs, jeq, jge, jset, ret
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
LINE = 8  # bytes of struct sock_filter
CLONE_THREAD = 0x00010000
F_SETOWN, F_SETOWN_EX = 8, 15  # aim SIGIO, or any signal, at another process


def machine() -> Machine | None:
    """This machine's numbers; None where there is no table for it."""
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    return MACHINES.get(platform.machine())


def number(name: str, here: Machine) -> int:
    """The number of one of ``DENIED`` that both machines have."""
    found = DENIED[name][here.column]
    assert found is not None
    return found


def program(here: Machine, pid: int) -> bytes:
    """The filter as classic BPF, an array of struct sock_filter, for the process with that id.

    Besides ``DENIED``: clone makes threads only; clone3, whose flags a filter cannot read, is said not to exist, so
    that libc uses clone; kill and tgkill reach this process only; limits can be read and not set.
    """

    def line(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, k)

    def argument(i: int, high: bool = False) -> bytes:
        return line(LOAD, ARGUMENTS + 8 * i + 4 * high)  # little-endian on both machines

    denied = line(RETURN, ERRNO | errno.EPERM)
    allowed = line(RETURN, ALLOW)

    def only(call: int, *test: bytes) -> bytes:
        """For one call: the test, then nothing falls through."""
        body = b"".join(test)
        return line(EQUAL, call, 0, len(body) // LINE) + body

    itself = (argument(0), line(EQUAL, pid, 0, 1), allowed, denied)
    parts = [
        line(LOAD, ARCHITECTURE), line(EQUAL, here.audit, 1, 0), line(RETURN, KILL),
        line(LOAD, NUMBER), line(ABOVE, 0x40000000, 0, 1), line(RETURN, KILL),  # x32
        only(here.clone, argument(0), line(ANY_BIT, CLONE_THREAD, 0, 1), allowed, denied),
        only(here.clone3, line(RETURN, ERRNO | errno.ENOSYS)),
        only(here.kill, *itself),
        only(here.tgkill, *itself),
        only(here.fcntl, argument(1), line(EQUAL, F_SETOWN, 1, 0), line(EQUAL, F_SETOWN_EX, 0, 1), denied, allowed),
        only(
            here.prlimit64,
            argument(2), line(EQUAL, 0, 0, 3), argument(2, high=True), line(EQUAL, 0, 0, 1), allowed, denied,
        ),
    ]  # fmt: skip
    for numbers in DENIED.values():
        if (call := numbers[here.column]) is not None:
            parts += [line(EQUAL, call, 0, 1), denied]
    return b"".join([*parts, allowed])
