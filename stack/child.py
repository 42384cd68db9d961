"""Becomes another program that dies with its parent: `python child.py PARENT_PID UID GID SIGNAL BATCH COMMAND...`.

A program of its own, standard library only, because what it does between fork and exec (change the user, ask the
kernel for a signal at the parent's death) is not safe in a process with threads. UID -1 means: stay who you are; BATCH
1: be scheduled by SCHED_BATCH.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Changes the user, arms the signal, then execs. Exit status 127 with a line on stderr if that fails."""
    parent, uid, gid, death_signal, batch = (int(word) for word in sys.argv[1:6])
    command = sys.argv[6:]
    try:
        if batch:
            with contextlib.suppress(OSError):  # a sandbox may forbid it, and all works without
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # its threads and children inherit it
        if uid >= 0:
            os.setgroups([gid])
            os.setgid(gid)
            os.setuid(uid)
        # After the change of user, which clears it.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # died before the signal was armed
            os._exit(127)
        # Python ignores these, and an ignored signal stays ignored across exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execv(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)


main()
