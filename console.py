"""What the scripts print never ends them: neither a console that cannot show it, nor one that is gone."""

import functools
import os
import sys
from contextlib import suppress


class _UnfailingStream:
    """A text stream that replaces what it cannot encode, and drops what it cannot write, as after `| head`."""

    def __init__(self, stream):
        self._stream = stream or open(os.devnull, "w")  # None without a console

    def write(self, text):
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with suppress(OSError, ValueError):  # a pipe, a terminal or a file that is closed; a full disk
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self):
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)


def prints_without_failing(main):
    """Decorator of a function: while it runs, no print can raise, on stdout or stderr."""
    @functools.wraps(main)
    def wrapped(*arguments, **keywords):
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = map(_UnfailingStream, streams)
        try:
            return main(*arguments, **keywords)
        finally:
            sys.stdout, sys.stderr = streams
            for stream in filter(None, streams):
                try:
                    stream.flush()
                # What could not be written is still in the buffer, and would be an error when Python ends.
                except (OSError, ValueError):
                    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                        os.dup2(nowhere.fileno(), stream.fileno())
    return wrapped
