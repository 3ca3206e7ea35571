"""A fresh process that checks a version: it shares nothing with the one that trained it.

To import TensorFlow takes seconds, so the process is started while the model is still being made.
It waits for the folder on its standard input; where that ends without one, so does the process,
which therefore outlives nobody who was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from job.errors import ConfigError, PublishError
from job.progress import import_tensorflow, set_up_logging

# Reads the folder from its standard input; the last line that it prints is {"problems": [...]}.
COMMAND = (sys.executable, "-m", "job.verifier")
TIMEOUT = 600.0  # seconds


class Verifier:
    """The process that waits; to be used once."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def check(self, folder: Path, *, timeout: float = TIMEOUT) -> None:
        """Check a version as `verify.find_problems` does.

        Raises PublishError with the problems, or when the process has crashed or takes longer than
        `timeout` seconds, and ConfigError when it was killed.
        """
        hint = "nothing was published; run again, and report it if it happens again"
        asked = os.fsencode(folder.resolve()) + b"\n"
        try:
            output, errors = self._process.communicate(asked, timeout)
        except subprocess.TimeoutExpired as error:
            raise PublishError(
                f"{folder}: the export was not verified within {timeout:g} seconds", hint=hint
            ) from error
        problems = _reported(output)
        if problems:
            raise PublishError(f"{folder}: the export is broken: {'; '.join(problems)}", hint=hint)
        if self._process.returncode == -signal.SIGKILL:
            raise ConfigError(
                f"{folder}: the process that verifies the export was killed, most likely because "
                "there was no memory left",
                hint="raise resources.limits.memory; nothing was published",
            )
        if problems is None or self._process.returncode:
            raise PublishError(
                f"{folder}: the process that verifies the export ended with "
                f"{self._process.returncode}, expected 0 and a list of problems: "
                f"{errors.decode(errors='replace')[-500:].strip()}",
                hint=hint,
            )


@contextlib.contextmanager
def standby(
    image_size: tuple[int, int], exact: bool, max_pixels: int, command: Sequence[str] = COMMAND
) -> Iterator[Verifier]:
    """Start a process that will check one version; it is gone when the context ends.

    `image_size`, `exact` and `max_pixels`, as in `images.preprocess`, let it prepare for the images
    that it will decode.
    """
    # Options of this run are not for that process, and this one holds all of a GPU's memory.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REGRAFT_")}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    process = subprocess.Popen(  # noqa: S603 - no shell, and a command of our own
        [*command, *map(str, (*image_size, int(exact), max_pixels))],
        cwd=Path(__file__).parent.parent,  # where `-m job.verifier` is this very package
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield Verifier(process)
        finally:
            process.kill()  # it has answered, or will not be asked


def _reported(output: bytes) -> list[str] | None:
    with contextlib.suppress(ValueError, IndexError, KeyError, TypeError):
        return [str(problem) for problem in json.loads(output.splitlines()[-1])["problems"]]
    return None


def main(height: int, width: int, exact: bool, max_pixels: int) -> None:
    """Get ready, wait for a folder on the standard input, and print what is wrong with it."""
    set_up_logging("json")
    import_tensorflow()
    import tensorflow as tf

    from job.images import loader
    from job.verify import find_problems

    # The first image takes a second, whichever it is: the graph is built and optimised.
    load = loader((height, width), exact=exact, max_pixels=max_pixels)
    load(tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8)).numpy())
    if asked := sys.stdin.buffer.readline():
        problems = find_problems(Path(os.fsdecode(asked.removesuffix(b"\n"))))
        print(json.dumps({"problems": problems}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", int(sys.argv[4]))
