"""The command line.

The only place that knows exit codes:

0  done (single documents may have failed: they are listed)
1  it failed, and the message says why
2  it was asked for wrongly, or a setting is wrong; nothing was done
3  stopped before the end; the next run goes on
"""

from __future__ import annotations

import gc
import sys

EXIT_STOPPED = 3


def main() -> None:
    """Run the command line, and end the process."""
    # What is imported stays: to look it through as often as Python does by itself is a tenth of each command's start.
    gc.set_threshold(20_000)
    try:
        # Here, so that Ctrl-C while this is read is no traceback either.
        from pipeline.cli.app import run

        code = run()
    except KeyboardInterrupt:
        sys.stderr.write("nightshift: stopped\n")
        code = EXIT_STOPPED
    sys.exit(code)
