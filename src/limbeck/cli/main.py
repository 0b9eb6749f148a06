"""The entry point: from here on every failure ends in one line and an exit status.

The top of this module imports only what Python has loaded already. So Ctrl-C during the first imports, which take most
of a short command's time, arrives inside `main`.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
# Both before torch is loaded. Threads that wait for each other by spinning cost 100 steps of a tiny network 29 s
# instead of 0.3 s where other processes want the same cores (docs/LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit: status 0, 2 for a user's mistake, 1 for ours or the machine's, 130 after Ctrl-C.

    After another signal that asks it to stop, the status is 128 and the signal's number.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        from limbeck.cli.interrupt import exit_on_interrupt

        if argv is None:  # a process of its own
            exit_on_interrupt()
            if isinstance(sys.stdout, TextIOWrapper):  # which may lack the characters of a class name
                sys.stdout.reconfigure(errors="backslashreplace")
        from limbeck.cli.commands import run

        status = run(arguments)
    except KeyboardInterrupt as error:
        from limbeck.cli.processes import label_failure
        from limbeck.core.interrupts import SENTENCE

        status = _fail(SENTENCE, getattr(error, "status", 130), arguments, label_failure(error))
    except BrokenPipeError:  # `limbeck info --help | head -1`: nobody reads on, and Python is not to flush at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        from limbeck.cli.failures import explain, explain_interrupt
        from limbeck.cli.processes import label_failure

        failure = explain(error) or explain_interrupt()
        if failure is None:  # a defect of limbeck, which needs its traceback
            raise
        status = _fail(failure.sentence, failure.status, arguments, label_failure(error))
        if failure.ends_at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def _fail(sentence: str, status: int, arguments: list[str], label: str | None = "limbeck") -> int:
    if "--debug" in arguments:
        import traceback

        traceback.print_exc()
    if label is not None:
        print(f"{label}: {sentence}", file=sys.stderr)
    return status
