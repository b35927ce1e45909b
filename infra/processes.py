"""Child processes that do not outlive the process that started them."""

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1

# Loaded before any fork: between fork and exec only what is already there may be touched.
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signal_number: int = signal.SIGTERM) -> Callable[[], None]:
    """A ``preexec_fn``: the kernel sends the child the signal once its parent is gone.

    The kernel watches the *thread* that forked, so start such children from a thread that lives
    as long as they should: the main thread or the one of the event loop, not a pool's.
    """
    parent_pid = os.getpid()

    def arm() -> None:
        if _LIBC.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
            os._exit(126)
        if os.getppid() != parent_pid:  # it died before the call above
            os._exit(125)

    return arm
