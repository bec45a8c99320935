"""The process that `sandbox` starts: it limits itself, gives up its system calls, and runs the source it is given.

Run by path under ``python -I``, so it imports nothing of the project.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types

EPERM, ENOSYS = 1, 38
ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CLONE_THREAD = 0x00010000

# Numbers of Linux on x86_64, in the order of the kernel's table (arch/x86/entry/syscalls/syscall_64.tbl).
DENIED = (
    *(29, 30, 31),  # shmget, shmat, shmctl
    *range(41, 56),  # socket ... getsockopt
    *(57, 58, 59, 62),  # fork, vfork, execve, kill
    *(64, 68, 69),  # semget, msgget, msgsnd
    *(76, 77, 82, 83, 84, 85, 86, 87, 88),  # truncate, ftruncate, rename, mkdir, rmdir, creat, link, unlink, symlink
    *(90, 91, 92, 93, 94),  # chmod, fchmod, chown, fchown, lchown
    *(101, 129, 132, 133, 155, 161, 165, 166, 169),  # ptrace, rt_sigqueueinfo, utime, mknod, pivot_root, chroot, mount,
    # umount2, reboot
    *(188, 189, 190, 197, 198, 199),  # setxattr and removexattr, in three forms
    *(200, 234, 235, 297),  # tkill, tgkill, utimes, rt_tgsigqueueinfo
    *(240, 248, 249, 250),  # mq_open, add_key, request_key, keyctl
    *range(
        258, 267
    ),  # mkdirat, mknodat, fchownat, futimesat, newfstatat (allowed below), unlinkat, renameat, linkat, ...
    *(268, 272, 280, 285, 288, 298, 299, 302),  # fchmodat, unshare, utimensat, fallocate, accept4, perf_event_open,
    # recvmmsg, prlimit64 (allowed below for itself)
    *(303, 304, 307, 308, 310, 311, 316, 317, 319),  # name_to_handle_at, open_by_handle_at, sendmmsg, setns,
    # process_vm_readv, process_vm_writev, renameat2, seccomp, memfd_create
    *(321, 322, 323, 424, 425, 426, 427),  # bpf, execveat, userfaultfd, pidfd_send_signal, io_uring
    *(
        428,
        429,
        430,
        431,
        432,
        433,
        434,
        438,
        452,
    ),  # open_tree, move_mount, fsopen ... fspick, pidfd_open, pidfd_getfd,
    # fchmodat2
)
ALLOWED = (262,)  # newfstatat: what a running interpreter asks for
MISSING = (435, 437)  # clone3, openat2: their flags lie behind a pointer, so libraries are to take the older call
OPEN, OPENAT, CLONE, PRLIMIT64 = 2, 257, 56, 302

LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
KILL, ALLOW, ERROR = 0x80000000, 0x7FFF0000, 0x00050000


def filter_program() -> bytes:
    """The system calls that are left, as a BPF program."""

    def op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    def argument(i: int) -> int:
        return 16 + 8 * i

    def on(number: int, *then: bytes) -> list[bytes]:
        return [op(JUMP_EQUAL, number, 0, len(then)), *then]

    deny, allow = op(RETURN, ERROR | EPERM), op(RETURN, ALLOW)
    program = [op(LOAD, 4), op(JUMP_EQUAL, ARCHITECTURE, 1, 0), op(RETURN, KILL), op(LOAD, 0)]
    program += [op(JUMP_GREATER, 0x3FFFFFFF, 0, 1), deny]  # the x32 table
    program += on(OPEN, op(LOAD, argument(1)), op(JUMP_ANY_BIT, WRITING, 0, 1), deny, allow)
    program += on(OPENAT, op(LOAD, argument(2)), op(JUMP_ANY_BIT, WRITING, 0, 1), deny, allow)
    program += on(CLONE, op(LOAD, argument(0)), op(JUMP_ANY_BIT, CLONE_THREAD, 1, 0), deny, allow)
    program += on(PRLIMIT64, op(LOAD, argument(0)), op(JUMP_EQUAL, 0, 0, 1), allow, deny)  # 0 is the caller itself
    for number in MISSING:
        program += on(number, op(RETURN, ERROR | ENOSYS))
    for number in sorted(set(DENIED) - set(ALLOWED)):
        program += on(number, deny)
    return b"".join([*program, allow])


def limit(seconds: float, memory: int, said: int) -> None:
    """Bound time, memory and files, of which the open one takes ``said`` bytes; end with the parent; and give up system
    calls. There is no way back."""
    for what, value in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, said),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))
    program = filter_program()
    code = ctypes.create_string_buffer(program, len(program))
    loaded = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    death_signal, no_new_privileges, set_seccomp, filter_mode = 1, 38, 22, 2
    libc.prctl(death_signal, signal.SIGKILL, 0, 0, 0)  # no terminal interrupts a session of its own
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, loaded, 0, 0):
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Run the source from standard input as a module that is not ``__main__``, and say so if it comes to its end.

    Under ``if __name__ == "__main__"`` programs read their input or exit, so that part must not run.
    """
    task = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, flags), descriptor)
    limit(task["seconds"], task["memory"], len(task["passed"]))
    program = sys.modules["program"] = types.ModuleType("program")  # dataclasses look for their module there
    exec(compile(task["source"], "program", "exec"), program.__dict__)
    os.write(out, task["passed"].encode())


if __name__ == "__main__":
    main()
