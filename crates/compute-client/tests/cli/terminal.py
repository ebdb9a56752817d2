"""Runs a program on a pseudo-terminal and types at it by a script.

Usage: terminal.py SCRIPT PROGRAM [ARGUMENTS...]

SCRIPT is JSON, a list of [what to wait for, what to type then]. What was on the screen goes to standard output; the exit code is the
program's, or 99 if what is waited for does not come.
"""

import json
import os
import pty
import select
import sys
import time

PATIENCE_SECS = 40


def main():
    script = json.loads(sys.argv[1])
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.argv[2], sys.argv[2:])
    screen, seen, deadline = b"", 0, time.monotonic() + PATIENCE_SECS

    def read():
        """Reads what comes next; False at the end."""
        nonlocal screen
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            print(f"nothing more came; the screen:\n{screen.decode(errors='replace')}", file=sys.stderr)
            sys.exit(99)
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other side is closed.
            piece = b""
        screen += piece
        return bool(piece)

    for expected, typed in script:
        while (found := screen.find(expected.encode(), seen)) < 0:
            if not read():
                print(f"it ended before {expected!r}; the screen:\n{screen.decode(errors='replace')}", file=sys.stderr)
                sys.exit(99)
        seen = found + len(expected.encode())
        os.write(terminal, typed.encode())
    while read():
        pass
    sys.stdout.write(screen.decode(errors="replace"))
    _, status = os.waitpid(pid, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


main()
