"""Runs one server and ends with the process that started it; executed as a file, it imports nothing of ours.

The kernel's parent-death signal alone does not do: it fires when the *thread* that started the child ends. So the
starter holds the writing end of this process's standard input, and end-of-file, which comes however the starter died,
stops the server and removes its directory. The word `keep` before it leaves the directory, for a restart.

Usage: guard.py DIRECTORY USER LAST_SIGNAL LOG COMMAND...   (USER is `-` for the one who runs this)
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1
TIMEOUT = 5.0


def main() -> None:
    directory, user, last_signal, log, *command = sys.argv[1:]
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # a Ctrl-C is for the tests, which then stop us in order
    server = start(command, user, log)
    print(server.pid, flush=True)
    # Reaped at once, so that the starter sees from the process table alone that its server is gone.
    reaper = threading.Thread(target=server.wait, daemon=True)
    reaper.start()
    keep = b"keep" in sys.stdin.buffer.read()
    end(server, reaper, signal.Signals(int(last_signal)))
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)


def start(command: list[str], user: str, log: str) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)

    def die_with_guard() -> None:
        for restored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(restored, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which would clear it

    other = None if user == "-" else user
    with open(log, "ab") as sink:  # noqa: PTH123 - one import fewer in a process that starts often
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            user=other,
            group=None if other is None else group_of(other),
            extra_groups=None if other is None else [],
            cwd=os.path.dirname(log),  # noqa: PTH120
            preexec_fn=die_with_guard,  # nothing else runs in this process yet
        )


def group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


def end(server: subprocess.Popen[bytes], reaper: threading.Thread, last_signal: signal.Signals) -> None:
    for number in (signal.SIGCONT, last_signal, signal.SIGKILL):
        if reaper.is_alive():
            server.send_signal(number)
            if number is not signal.SIGCONT:
                reaper.join(TIMEOUT)


if __name__ == "__main__":
    main()
