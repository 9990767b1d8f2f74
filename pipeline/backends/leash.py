"""Runs a server that would outlive us: `python leash.py PARENT PROGRAM ARGUMENT...` becomes that program.

The kernel is told first to kill this process when the one that started it dies. That survives the
change of program, so that a server that knows nothing of its parent ends with it. Imports the
standard library only, and little of it: it is run without site-packages, on the way of every start.

Linux only; elsewhere the program is run all the same. The signal comes when the *thread* that
started this process ends: start it from one that lives as long as the process.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_FOUND = 127


def leashed(argv: list[str]) -> list[str]:
    """The command line that makes the kernel kill `argv` when this process dies."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), *argv]  # noqa: PTH100  as above


def main(parent: int, argv: list[str]) -> int:
    """Become `argv`; returns only where that cannot be done."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            return 1
    try:
        os.execvp(argv[0], argv)  # noqa: S606  without a shell is the point
    except OSError as error:
        sys.stderr.write(f"{argv[0]} cannot be run: {error.strerror}\n")
    return NOT_FOUND


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
