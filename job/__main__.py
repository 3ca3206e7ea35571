"""`python -m job`."""

import os
import signal

if __name__ == "__main__":
    # Process 1 of a container is deaf to a signal that it has no handler for, and the command line
    # takes a while to import; there is nothing to save yet.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))

    from job.cli import main
    from job.guard import leave

    main(end=leave)
