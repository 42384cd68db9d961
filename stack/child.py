"""Becomes another program that dies with its parent: `python child.py PARENT_PID UID GID SIGNAL NICE COMMAND...`.

A program of its own, standard library only, because what it does between fork and exec (change the user, ask the
kernel for a signal at the parent's death) is not safe in a process with threads. UID -1 means: stay who you are; NICE
above 0: in the background, so much nicer than others.
"""

import ctypes
import errno
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_AUTOGROUP = "/proc/self/autogroup"
_AUTOGROUP_TRIES, _AUTOGROUP_PAUSE_S = 5, 0.1


def main() -> None:
    """Changes the user, arms the signal, then execs. Exit status 127 with a line on stderr if that fails."""
    parent, uid, gid, death_signal, nice = (int(word) for word in sys.argv[1:6])
    command = sys.argv[6:]
    try:
        if nice > 0:
            _go_to_background(nice)
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


def _go_to_background(nice: int) -> None:
    """Takes less of a busy machine than others, and interrupts none of them when it wakes. Children inherit it."""
    os.nice(nice)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # Where Linux shares the CPU among sessions first, which each of these programs is, niceness is one of the session.
    for _ in range(_AUTOGROUP_TRIES):
        try:
            with open(_AUTOGROUP, "w") as autogroup:
                autogroup.write(str(nice))
        except OSError as error:
            if error.errno != errno.EAGAIN:  # there is none
                return
            time.sleep(_AUTOGROUP_PAUSE_S)  # who is not root may say so ten times a second, all together
        else:
            return


main()
