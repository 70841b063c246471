"""Errors that say that this host lacks something now, and nothing about the file that was being read.

Who looks for damage must not take them for it: a repair would remove what is whole.
"""

from __future__ import annotations

import errno
import os
import signal

from obuild.errors import ProcessError
from obuild.host.process import ending

#: Too many open files, in this process and on this host; no memory; no process can be started.
_CODES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


def is_shortage(error: Exception) -> bool:
    """Whether an error, also one of another program, comes from a lack of descriptors, memory or processes.

    A program that was killed counts, too: the kernel kills some when there is no memory.
    """
    if isinstance(error, ProcessError):
        killed = ending(-signal.SIGKILL) in error.message
        return killed or any(os.strerror(code) in error.message for code in _CODES)
    return isinstance(error, OSError) and error.errno in _CODES


def see(error: Exception) -> None:
    """Raise the error again if it is a shortage, and no damage."""
    if is_shortage(error):
        raise error
