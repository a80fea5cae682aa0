"""A filter for system calls that labs don't need but attacks on the kernel or neighbors do.

Some calls are refused. Calls for file locks and socket buffer sizes do nothing and report success:
other processes would see a lock on the machine's files, and libraries that lock their own files
(sqlite, filelock) have to go on. A submission's processes therefore do not exclude each other.
"""

import ctypes
import errno
import platform
import struct

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
PRETEND = REFUSE  # error number 0: the call is skipped and returns 0
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
NAMESPACES = 0x7E020000 | 0x00000080  # the CLONE_NEW* flags
X32 = 0x40000000
FAMILIES = {  # of sockets: only local ones; others get the usual error
    1: ALLOW,  # AF_UNIX
    2: REFUSE | errno.ENETUNREACH,  # AF_INET
    10: REFUSE | errno.ENETUNREACH,  # AF_INET6
}
SOL_SOCKET, SO_SNDBUF, SO_RCVBUF = 1, 7, 8
AF_NETLINK, NETLINK_ROUTE = 16, 0  # lists the network's interfaces
# of fcntl: copies and flags of a descriptor, F_GETLK, pipes, seals; others reach the inode
COMMANDS = dict.fromkeys((0, 1, 2, 3, 4, 5, 36, 1030, 1031, 1032, 1033, 1034), ALLOW)
COMMANDS |= dict.fromkeys((6, 7, 37, 38), PRETEND)  # F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW

# name -> its numbers on x86_64 and aarch64; the first two lines are handled separately
CALLS = dict(
    clone=(56, 220), clone3=(435, 435), socket=(41, 198), socketpair=(53, 199),
    setsockopt=(54, 208), fcntl=(72, 25), flock=(73, 32),
    unshare=(272, 97), setns=(308, 268), ptrace=(101, 117), process_vm_readv=(310, 270),
    process_vm_writev=(311, 271), process_madvise=(440, 440), kcmp=(312, 272),
    pidfd_getfd=(438, 438), mount=(165, 40), umount2=(166, 39), pivot_root=(155, 41),
    chroot=(161, 51), open_tree=(428, 428), move_mount=(429, 429), fsopen=(430, 430),
    fsconfig=(431, 431), fsmount=(432, 432), fspick=(433, 433), mount_setattr=(442, 442),
    keyctl=(250, 219), add_key=(248, 217), request_key=(249, 218), bpf=(321, 280),
    perf_event_open=(298, 241), userfaultfd=(323, 282), io_uring_setup=(425, 425),
    io_uring_enter=(426, 426), io_uring_register=(427, 427), init_module=(175, 105),
    finit_module=(313, 273), delete_module=(176, 106), kexec_load=(246, 104),
    kexec_file_load=(320, 294), reboot=(169, 142), swapon=(167, 224), swapoff=(168, 225),
    acct=(163, 89), syslog=(103, 116), quotactl=(179, 60), settimeofday=(164, 170),
    clock_settime=(227, 112), adjtimex=(159, 171), sethostname=(170, 161), setdomainname=(171, 162),
    open_by_handle_at=(304, 265), name_to_handle_at=(303, 264), fanotify_init=(300, 262),
    sched_setaffinity=(203, 122), sched_setscheduler=(144, 119), sched_setattr=(314, 274),
    vmsplice=(278, 75), personality=(135, 92), memfd_create=(319, 279), memfd_secret=(447, 447),
    shmget=(29, 194), semget=(64, 190), msgget=(68, 186), mq_open=(240, 180), io_setup=(206, 0),
    inotify_init1=(294, 26), landlock_create_ruleset=(444, 444), cachestat=(451, 451),
    iopl=(172, None), ioperm=(173, None), inotify_init=(253, None),
)  # fmt: skip
X86_64, AARCH64 = (
    {name: numbers[i] for name, numbers in CALLS.items() if numbers[i] is not None} for i in (0, 1)
)
MACHINES = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, AARCH64)}


def _step(code, yes, no, value):
    return struct.pack("<HBBI", code, yes, no, value)


def _when(number, steps):
    """`steps`, ending in a return, for one system call; others skip them."""
    return [_step(EQUAL, 0, len(steps), number), *steps]


def _by(argument, verdicts, other):
    """The verdict on an argument's value, `other` for unlisted values."""
    steps = [_step(LOAD, 0, 0, ARGUMENTS + 8 * argument)]
    for value, verdict in verdicts.items():
        steps += [_step(EQUAL, 0, 1, value), _step(RETURN, 0, 0, verdict)]
    return [*steps, _step(RETURN, 0, 0, other)]


def _sockets(numbers):
    """The steps for sockets: allowed families, and fixed buffer sizes."""
    netlink = _by(2, {NETLINK_ROUTE: ALLOW}, REFUSE | errno.EAFNOSUPPORT)
    family = _by(0, FAMILIES, REFUSE | errno.EAFNOSUPPORT)
    family[1:1] = _when(AF_NETLINK, netlink)
    size = _by(2, {SO_SNDBUF: PRETEND, SO_RCVBUF: PRETEND}, ALLOW)
    level = [_step(LOAD, 0, 0, ARGUMENTS + 8), *_when(SOL_SOCKET, size), _step(RETURN, 0, 0, ALLOW)]
    return [
        *_when(numbers.pop("socket"), family),
        *_when(numbers.pop("socketpair"), family),
        *_when(numbers.pop("setsockopt"), level),
    ]


def program(machine: str) -> bytes:
    """The filter as BPF instructions for a machine; b"" for an unknown one."""
    if machine not in MACHINES:
        return b""
    audit, numbers = MACHINES[machine]
    numbers = dict(numbers)
    clone, clone3 = numbers.pop("clone"), numbers.pop("clone3")
    apart = _sockets(numbers)
    # locks, and other access to a file through a descriptor
    apart += _when(numbers.pop("flock"), [_step(RETURN, 0, 0, PRETEND)])
    apart += _when(numbers.pop("fcntl"), _by(1, COMMANDS, REFUSE | errno.EINVAL))
    steps = [_step(LOAD, 0, 0, ARCHITECTURE), _step(EQUAL, 1, 0, audit), _step(RETURN, 0, 0, KILL)]
    steps.append(_step(LOAD, 0, 0, NUMBER))
    if machine == "x86_64":
        steps += [_step(ANY_BIT, 0, 1, X32), _step(RETURN, 0, 0, KILL)]
    for number in numbers.values():
        steps += [_step(EQUAL, 0, 1, number), _step(RETURN, 0, 0, REFUSE | errno.EPERM)]
    steps += apart
    # glibc falls back from clone3, whose flags a filter can't see, to clone
    steps += [_step(EQUAL, 0, 1, clone3), _step(RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    steps += [_step(EQUAL, 0, 3, clone), _step(LOAD, 0, 0, ARGUMENTS)]
    steps += [_step(ANY_BIT, 0, 1, NAMESPACES), _step(RETURN, 0, 0, REFUSE | errno.EPERM)]
    return b"".join([*steps, _step(RETURN, 0, 0, ALLOW)])


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def install() -> None:
    """Filter this process and its children from now on; no_new_privs must be set."""
    steps = program(platform.machine())
    if steps:
        libc = ctypes.CDLL(None, use_errno=True)
        filter = _Program(len(steps) // 8, steps)
        if libc.prctl(22, 2, ctypes.byref(filter), 0, 0):
            raise OSError(ctypes.get_errno(), "the filter for system calls was refused")
