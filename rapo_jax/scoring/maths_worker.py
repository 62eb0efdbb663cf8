"""The worker process of `maths.py`: compares answers with math-verify, one JSON line each way.

math-verify's time-outs are switched off: they raise from a signal handler, only in the main thread,
and sympy and math-verify swallow the exception. Here the kernel's alarm keeps its default action,
which ends the process: no code in it can catch that. This script is run by path, so that it imports
nothing of the package (and no jax).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys


def main() -> None:
    deadline_s, memory_mb = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        prediction, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        try:
            parsed = [
                parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, prediction)
            ]
            equal = bool(verify(*parsed, timeout_seconds=None))
        except MemoryError:
            os._exit(1)  # a process short of memory is not used again
        except Exception:
            equal = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(equal), file=replies, flush=True)


if __name__ == "__main__":
    main()
