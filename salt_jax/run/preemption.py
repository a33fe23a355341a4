"""Signals that ask a run to stop: remembered, polled between pieces of work, and agreed on by all processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

# What schedulers send before they take a machine away, Ctrl-C, and a terminal that is closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop.

    Attributes:
      signum: of the signal; the command ends with status 128 + signum.

    Example:
      >>> Interrupted(signal.SIGTERM).status
      143
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def status(self) -> int:
        """The exit status that shells give to a process ended by the signal."""
        return 128 + self.signum


class Watch:
    """Remembers SIGTERM, SIGINT and SIGHUP until ``check`` is called.

    Args:
      agree: (signal number or 0) → the signal number that all processes stop for, or 0; each calls it equally often.

    Example:
      >>> watch = Watch()
      >>> watch.check()
      >>> watch.request(signal.SIGTERM)
      >>> try:
      ...     watch.check()
      ... except Interrupted as interrupted:
      ...     print(interrupted)
      SIGTERM
    """

    def __init__(self, agree: Callable[[int], int] = lambda signum: signum) -> None:
        self._agree, self._asked = agree, 0

    def request(self, signum: int) -> None:
        """Asks for a stop at the next ``check``."""
        self._asked = self._asked or signum

    def check(self) -> None:
        """Goes on, or stops every process at the same place.

        Raises:
          Interrupted: a process was asked to stop.
        """
        if signum := self._agree(self._asked):
            raise Interrupted(signum)


@contextlib.contextmanager
def watching(agree: Callable[[int], int] = lambda signum: signum) -> Iterator[Watch]:
    """A ``Watch`` that hears ``SIGNALS`` while the block runs; a second one ends the process at once.

    Python runs its handlers between bytecodes only, and the main thread may wait for a device for minutes. So the
    interpreter's C handler writes each signal into a pipe, and a thread of its own reads them. Outside the main thread
    Python allows no handlers: there the block runs with the process's own.
    """
    watch = Watch(agree)
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    ours = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]  # nohup and '&' stay so
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {signum: signal.signal(signum, lambda *_: None) for signum in ours}
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(read, watch), name="signals", daemon=True)
    listener.start()
    try:
        yield watch
    finally:
        signal.set_wakeup_fd(previous)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(write)  # ends the listener
        listener.join()
        os.close(read)


def _listen(read: int, watch: Watch) -> None:
    first = True
    while numbers := os.read(read, 64):
        for signum in numbers:
            if signum not in SIGNALS:
                continue
            if not first:
                os._exit(128 + signum)
            first = False
            watch.request(signum)
            name = signal.Signals(signum).name
            text = f"{name}: the run saves and ends after the work in hand; a second signal ends it at once\n"
            with contextlib.suppress(OSError):  # nobody reads any more
                os.write(2, text.encode())
