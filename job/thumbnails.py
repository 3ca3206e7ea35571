"""Small pictures of test images, as the job itself reads them, for the report."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from job.images import shrink

# The longer side in pixels: shown at about 130, so that sharp screens have some to spare.
SIDE = 176

# Reading waits for the store; decoding is done one at a time, as a large one takes 1 GB.
_READERS = 8


def thumbnails(
    names: Iterable[str], read_image: Callable[[str], bytes | None]
) -> dict[str, str | None]:
    """Give each name's picture as a `data:image/jpeg` URI, at most SIDE pixels wide and high.

    A name has None where `read_image`, which is called from several threads, gives None or what
    is no readable image.
    """
    one_at_a_time = threading.Lock()

    def make(name: str) -> str | None:
        contents = read_image(name)
        if contents is None:
            return None
        with one_at_a_time:
            return _picture(contents)

    unique = list(dict.fromkeys(names))
    with ThreadPoolExecutor(_READERS, "thumbnails") as pool:
        return dict(zip(unique, pool.map(make, unique), strict=True))


def _picture(contents: bytes) -> str | None:
    with tf.device("CPU:0"):
        try:
            image = shrink(contents, SIDE)
        except tf.errors.InvalidArgumentError:
            return None
        pixels = tf.cast(tf.round(image * 255.0), tf.uint8)
        jpeg = tf.io.encode_jpeg(pixels, quality=80, optimize_size=True).numpy()
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
