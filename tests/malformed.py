"""Generates image files that are broken, odd or hostile, the same ones every time.

`cases(seed)` gives some 270 of them with what is known of each. Good files come from Pillow; what
it cannot write is put together here from the specifications.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

HTML = b"<!doctype html><html><body><script>alert(1)</script></body></html>"
SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><rect width="9" height="9"/></svg>'
)


@dataclass(frozen=True, slots=True)
class Case:
    """A file; `readable` says whether it is a picture, None where either answer will do."""

    name: str
    contents: bytes
    readable: bool | None


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    """Give the file that Pillow writes."""
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def picture(width: int = 60, height: int = 44) -> Image.Image:
    """Give a colourful RGB picture without noise."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 4 % 256, y * 5 % 256, (x + y) * 2 % 256], -1).astype("u1"))


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Give a PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Give a PNG with this header and these chunks, and one of all 0x40 when there are none."""
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    if not chunks:
        row = b"\0" + b"\x40" * ((width * bits + 7) // 8)
        packer = zlib.compressobj(1)
        data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        chunks = (png_chunk(b"IDAT", data),)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def segment(marker: int, body: bytes) -> bytes:
    """Give a JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def progressive_jpeg(width: int, height: int, scans: int) -> bytes:
    """Give a grey progressive JPEG of one scan, and of so many more that change nothing.

    ITU-T T.81: the first scan has a difference of 0 for every block; every other one passes over
    all blocks in runs of up to 32,767 that have no more coefficients (EOB14), or single ones. They
    refine: a decoder has to look at every coefficient for that.
    """
    blocks = -(-width // 8) * -(-height // 8)
    single, runs = blocks % 2**14, blocks // 2**14
    file = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    file += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    file += segment(0xC4, b"\0\1" + bytes(15) + b"\0")  # `0`: no difference
    file += segment(0xC4, b"\x10\1\1" + bytes(14) + b"\xe0\0")  # `0`: EOB14, `10`: EOB0
    file += segment(0xDA, b"\1\1\0\0\0\1") + _bits("0" * blocks)
    passed = _bits(("0" + "0" * 14) * runs + "10" * single)
    for place in range(scans):
        file += segment(0xDA, b"\1\1\0\1\x3f" + (b"\x10" if place else b"\1")) + passed
    return file + b"\xff\xd9"


def _bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def gif(frames: int, width: int, height: int, canvas: tuple[int, int] | None = None) -> bytes:
    """Give a GIF of so many equal frames, on a canvas that may be another size."""
    one = encoded(Image.new("P", (width, height)), "GIF")
    at = one.index(b",\0\0\0\0")
    size = struct.pack("<HH", *(canvas or (width, height)))
    return one[:6] + size + one[10:at] + one[at:-1] * frames + b";"


def good() -> dict[str, bytes]:
    """Give a sound file of every kind that is to be read."""
    rgb = picture()
    rgba = rgb.copy()
    rgba.putalpha(90)
    more = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    return {
        "jpeg": encoded(rgb, "JPEG"),
        "jpeg-progressive": encoded(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg-grey": encoded(rgb.convert("L"), "JPEG"),
        "png": encoded(rgb, "PNG"),
        "png-rgba": encoded(rgba, "PNG"),
        "png-palette": encoded(rgb.quantize(16), "PNG", transparency=3),
        "png-16-bit": png(31, 17, depth=16, colour=6),
        "png-animated": encoded(rgb, "PNG", **more),
        "gif": encoded(rgb, "GIF"),
        "gif-animated": encoded(rgb, "GIF", **more),
        "bmp": encoded(rgb, "BMP"),
        "bmp-palette": encoded(rgb.quantize(16), "BMP"),
        "webp": encoded(rgb, "WEBP"),
        "webp-lossless": encoded(rgba, "WEBP", lossless=True),
    }


def cases(seed: int = 0) -> list[Case]:
    """Give every case; the seed decides where files are cut and which bits are flipped."""
    rng = random.Random(seed)  # noqa: S311 - nothing is kept secret with it
    files = good()
    found = [Case(name, contents, True) for name, contents in files.items()]
    for name, contents in files.items():
        found += _damaged(name, contents, rng)
    found += [Case(f"shape-{n}", c, True) for n, c in _shapes()]
    found += [Case(f"text-{n}", c, False) for n, c in _not_images()]
    found += [Case(f"size-{n}", c, False) for n, c in _absurd_sizes(files)]
    return found + list(_odd(files)) + list(_bombs())


def _damaged(name: str, contents: bytes, rng: random.Random) -> Iterator[Case]:
    # The first frame of an animated file may be whole where the others are not.
    whole_first = None if name.endswith("animated") else False
    for cut in sorted({8, 16, 40, *(rng.randrange(1, len(contents)) for _ in range(4))}):
        yield Case(f"{name}-cut-{cut}", contents[:cut], whole_first)
    for number in range(4):
        flipped = bytearray(contents)
        for _ in range(rng.randrange(1, 9)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        yield Case(f"{name}-flipped-{number}", bytes(flipped), None)
    at = rng.randrange(12, len(contents) - 40)
    yield Case(f"{name}-zeroed", contents[:at] + bytes(len(contents) - at), None)
    yield Case(f"{name}-spliced", contents[:at] + contents[at + 30 :], None)
    yield Case(f"{name}-followed", contents + HTML, None)


def _shapes() -> Iterator[tuple[str, bytes]]:
    for width, height in ((1, 1), (20000, 2), (2, 20000), (16383, 1)):
        for form in ("JPEG", "PNG", "GIF", "BMP"):
            yield f"{width}x{height}-{form.lower()}", encoded(picture(width, height), form)
    yield "1x1-webp", encoded(picture(1, 1), "WEBP")
    yield "16383x2-webp", encoded(picture(16383, 2), "WEBP")
    yield "1000000x1-png", png(1_000_000, 1)


def _not_images() -> Iterator[tuple[str, bytes]]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("cat.jpg"), encoded(picture(), "JPEG"))
    yield from {
        "empty": b"",
        "zeros": bytes(5000),
        "html": HTML,
        "svg": SVG,
        "zip": packed.getvalue(),
        "plain": b"not found\n" * 100,
        "pdf": b"%PDF-1.7\n" + bytes(100),
        "tiff": encoded(picture(), "TIFF"),
        "ico": encoded(picture(), "ICO"),
        "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "two-bytes": b"\xff\xd8",
        "jpeg-start": b"\xff\xd8\xff",
        "png-start": b"\x89PNG\r\n\x1a\n",
        "gif-start": b"GIF89a",
        "bmp-start": b"BM",
        "webp-start": b"RIFF\xff\xff\xff\xffWEBP",
        "html-after-gif": b"GIF89a/*" + HTML,
        "html-after-jpeg": b"\xff\xd8\xff\xe0" + HTML,
    }.items()


def _absurd_sizes(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    start = files["jpeg"].index(b"\xff\xc0") + 5
    for side in (0, 16384, 65535):
        both = struct.pack(">HH", side, side)
        yield f"jpeg-{side}", files["jpeg"][:start] + both + files["jpeg"][start + 4 :]
        both = struct.pack("<HH", side, side)
        yield f"gif-{side}", files["gif"][:6] + both + files["gif"][10:]
    for side in (0, 2**20, 2**31, 2**32 - 1):
        yield f"png-{side}", png(side, side, png_chunk(b"IDAT", zlib.compress(bytes(99))))
    for width, height in ((0, 0), (-9, 9), (2**31 - 1, 2**31 - 1), (9, -(2**31)), (65535, -65535)):
        size = struct.pack("<ii", width, height)
        yield f"bmp-{width}x{height}", files["bmp"][:18] + size + files["bmp"][26:]
    webp = files["webp"]
    yield "webp", webp[:26] + b"\xff\x3f\xff\x3f" + webp[30:]
    yield "webp-none", webp[:26] + bytes(4) + webp[30:]


def _odd(files: dict[str, bytes]) -> Iterator[Case]:
    jpeg, webp, bmp = files["jpeg"], files["webp"], files["bmp"]
    more = [picture().rotate(90)]
    moving = encoded(picture(), "WEBP", save_all=True, append_images=more)
    yield Case("webp-animated", moving, False)
    yield Case("webp-animated-denied", moving.replace(b"VP8X\n\0\0\0\x02", b"VP8X\n\0\0\0\0"), None)
    for at, number in ((4, 2**32 - 1), (4, 0), (16, 2**32 - 1), (16, 2**31), (16, 1), (16, 0)):
        lying = webp[:at] + struct.pack("<I", number) + webp[at + 4 :]
        yield Case(f"webp-chunk-{at}-{number}", lying, None)
    for at, number in ((10, 2**32 - 1), (10, 0), (14, 2**32 - 1), (28, 16), (28, 1), (30, 1)):
        yield Case(f"bmp-field-{at}-{number}", bmp[:at] + struct.pack("<I", number) + bmp[at + 4 :],
                   None)  # fmt: skip
    loop = b"II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"
    for name, body in {
        "loop": loop,
        "thumbnail-loop": loop[:8] + b"\0\0\x08\0\0\0",
        "orientation-9": b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0",
        "far": b"II*\0\xff\xff\xff\xff",
        "nothing": b"",
    }.items():
        yield Case(f"exif-{name}", jpeg[:2] + segment(0xE1, b"Exif\0\0" + body) + jpeg[2:], True)
    yield Case("jpeg-segments", jpeg[:2] + segment(0xE3, b"") * 200_000 + jpeg[2:], True)
    yield Case("jpeg-fill", jpeg[:2] + b"\xff" * 200_000 + jpeg[2:], True)
    yield Case("jpeg-twice", jpeg + jpeg, None)
    yield Case("gif-outside", gif(1, 50, 50, (10, 10)), None)
    yield Case("gif-far-outside", files["gif"][:6] + b"\1\0\1\0" + files["gif"][10:], None)
    yield Case("gif-no-end", files["gif"][:-1], None)
    yield Case("png-no-data", png(9, 9, png_chunk(b"tEXt", b"a\0b")), False)
    yield Case("png-too-little", png(99, 99, png_chunk(b"IDAT", zlib.compress(b"\0"))), False)
    yield Case("png-no-palette", png(9, 9, colour=3), False)


def _bombs() -> Iterator[Case]:
    bomb = zlib.compress(bytes(200_000_000), 1)
    data = png_chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    yield Case("bomb-png-text", png(1, 1, png_chunk(b"zTXt", b"a\0\0" + bomb), data), None)
    yield Case("bomb-png-profile", png(1, 1, png_chunk(b"iCCP", b"a\0\0" + bomb), data), None)
    yield Case("bomb-png-data", png(9, 9, png_chunk(b"IDAT", bomb)), None)
    yield Case("bomb-png-chunks", png(1, 1, *[png_chunk(b"tEXt", b"a\0")] * 100_000, data), None)
    yield Case("bomb-png-largest", png(8192, 8192), True)
    yield Case("bomb-png-larger", png(8193, 8192, data), False)
    yield Case("bomb-png-16-bit", png(8192, 3072, depth=16, colour=6), True)
    yield Case("bomb-png-16-bit-larger", png(8192, 3073, data, depth=16, colour=6), False)
    yield Case("bomb-png-clear-larger", png(8192, 8192, colour=6), False)
    yield Case("bomb-gif-frames", gif(100_000, 1, 1), True)
    yield Case("bomb-gif-large-frames", gif(200, 2000, 2000), True)
    yield Case("bomb-gif-hidden", gif(1, 16000, 16000, (9, 9)), False)
    yield Case("bomb-gif-pieces", b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\2bb\0" * 30_000, False)
    yield Case("bomb-webp", encoded(Image.new("RGB", (16383, 4096)), "WEBP", lossless=True,
                                    method=0), True)  # fmt: skip
    yield Case("bomb-jpeg-scans", progressive_jpeg(8192, 8192, 1500), False)
    yield Case("bomb-jpeg-scans-small", progressive_jpeg(64, 64, 5000), False)
    yield Case("bomb-jpeg-scans-allowed", progressive_jpeg(8192, 8192, 23), True)
    yield Case("bomb-jpeg-largest", encoded(Image.new("L", (8192, 8192)), "JPEG"), True)
