"""What the entry files share: exit codes. 0 done, 2 wrong usage or bad input, 1 anything else."""

import logging
import os
import sys
from collections.abc import Callable

from data.errors import InputError


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Call `main(arguments)` and turn what it raises into an exit code and one line on stderr.

    Args:
        main: the body of an entry file; returns an exit code, or None for 0.
        argv: the command-line arguments without the program's name; None: this process's own.

    Set TAILACC_DEBUG=1 to see the traceback of an unexpected error.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our stdout (`| head`) has gone: nothing is left to say to anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("TAILACC_DEBUG"):
            logging.exception("unexpected error")
        print(f"error: {type(error).__name__}: {error} (TAILACC_DEBUG=1 shows where)", file=sys.stderr)
        return 1
