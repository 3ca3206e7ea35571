"""Files as people have them, made with Pillow or by hand, against what Pillow reads from them."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import malformed
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from job import exif, images
from job.config import RunConfig
from job.formats import MAX_PIXELS

HEIGHT, WIDTH = 30, 40
# Half an 8-bit step is 0.002: what is left is the rounding of float32.
EXACT = 1e-6

_x, _y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
RGB = np.stack([_x * 6, _y * 8, (_x + _y) * 3], -1).astype(np.uint8)
ALPHA = (_x * 6 + 10).astype(np.uint8)
PICTURE = Image.fromarray(RGB)
CUTOUT = Image.fromarray(np.dstack([RGB, ALPHA]))
KEY = tuple(int(value) for value in RGB[5, 5])


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    """The file Pillow writes."""
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def adobe_ycck() -> bytes:
    """A CMYK file declared YCCK: odd colours, but the same ones in every reader."""
    file = encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)
    flag = file.index(b"Adobe") + 11
    return file[:flag] + b"\x02" + file[flag + 1 :]


def palette_bmp_top_down() -> bytes:
    """An 8-bit BMP of 4 colours, one of them not given, whose first row comes first."""
    palette = b"".join(bytes([10 * i, 20 * i, 30 * i, 0]) for i in range(1, 4))
    info = struct.pack("<IiiHHIIiiII", 40, 4, -2, 1, 8, 0, 8, 0, 0, 3, 0)
    return struct.pack("<2sIHHI", b"BM", 74, 0, 0, 66) + info + palette + bytes([0, 1, 2, 3] * 2)


def png(pixels: np.ndarray, depth: int, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A PNG of [h,w,1..4] samples, written from the specification: Pillow cannot write all."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    height, width, channels = pixels.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
    rows = bytearray()
    for y, x, dy, dx in passes:
        for row in pixels[y::dy, x::dx]:
            bits = np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
            rows += b"\0" + np.packbits(bits[:, 16 - depth :]).tobytes()
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    data = chunk(b"IDAT", zlib.compress(bytes(rows)))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + (chunk(b"tRNS", extra) if extra else b"") + data + chunk(b"IEND", b"")


def bit_fields_bmp(*masks: int) -> bytes:
    """A 32-bit BMP that says which bits are red, green and blue."""
    info = struct.pack("<IiiHHIIiiIIIII", 52, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0, *masks)
    return struct.pack("<2sIHHI", b"BM", 74, 0, 0, 66) + info + bytes(range(10, 90, 10))


def animated(form: str) -> bytes:
    """Three frames."""
    frames = [PICTURE.rotate(90), PICTURE.rotate(180)]
    return encoded(PICTURE, form, save_all=True, append_images=frames)


FILES = {
    "jpeg-rgb": encoded(PICTURE, "JPEG", quality=95),
    "jpeg-subsampled": encoded(PICTURE, "JPEG", quality=60, subsampling="4:2:0"),
    "jpeg-grey": encoded(PICTURE.convert("L"), "JPEG"),
    "jpeg-progressive": encoded(PICTURE, "JPEG", progressive=True),
    "jpeg-cmyk": encoded(PICTURE.convert("CMYK"), "JPEG", quality=95),
    "jpeg-ycck": adobe_ycck(),
    "png-rgb": encoded(PICTURE, "PNG"),
    "png-rgb-key": encoded(PICTURE, "PNG", transparency=KEY),
    "png-rgba": encoded(CUTOUT, "PNG"),
    "png-rgba-opaque": encoded(PICTURE.convert("RGBA"), "PNG"),
    "png-grey": encoded(PICTURE.convert("L"), "PNG"),
    "png-grey-key": encoded(Image.fromarray(RGB[:, :, 0]), "PNG", transparency=KEY[0]),
    "png-grey-alpha": encoded(CUTOUT.convert("LA"), "PNG"),
    "png-1-bit": encoded(PICTURE.convert("1"), "PNG"),
    "png-2-bit": png(RGB[:, :, :1] >> 6, 2),
    "png-4-bit": png(RGB[:, :, :1] >> 4, 4),
    "png-interlaced": png(RGB, 8, interlaced=True),
    "png-palette-1-bit": encoded(PICTURE.quantize(2), "PNG"),
    "png-palette-2-bit-key": encoded(PICTURE.quantize(4), "PNG", transparency=1),
    "png-palette-4-bit": encoded(PICTURE.quantize(9), "PNG"),
    "png-palette-alpha": encoded(PICTURE.quantize(32), "PNG", transparency=bytes(range(0, 256, 8))),
    "gif": encoded(PICTURE, "GIF"),
    "gif-animated": animated("GIF"),
    "bmp-24": encoded(PICTURE, "BMP"),
    "bmp-32": encoded(PICTURE.convert("RGBA"), "BMP"),
    "bmp-32-bit-fields": bit_fields_bmp(0xFF0000, 0xFF00, 0xFF),
    "bmp-grey": encoded(PICTURE.convert("L"), "BMP"),
    "bmp-palette": encoded(PICTURE.quantize(32), "BMP"),
    "bmp-palette-top-down": palette_bmp_top_down(),
    "webp-lossy": encoded(PICTURE, "WEBP"),
    "webp-lossless": encoded(PICTURE, "WEBP", lossless=True),
    "webp-lossy-alpha": encoded(CUTOUT, "WEBP"),
    "webp-lossless-alpha": encoded(CUTOUT, "WEBP", lossless=True, exact=True),
}
# One of each decoder, small, for the tests that try many variants.
SAMPLES = {
    name: FILES[name]
    for name in (
        "jpeg-rgb",
        "jpeg-progressive",
        "png-rgba",
        "png-palette-2-bit-key",
        "gif-animated",
        "bmp-palette",
        "webp-lossy",
        "webp-lossless-alpha",
    )
}


def on_white(pixels: np.ndarray, full: float) -> np.ndarray:
    """Lay integer samples whose last channel is alpha on white."""
    share = pixels.astype(np.float64) / full
    colour, alpha = share[:, :, :-1], share[:, :, -1:]
    return np.broadcast_to(colour * alpha + 1 - alpha, (*pixels.shape[:2], 3))


def by_pillow(file: bytes) -> np.ndarray:
    """Read a file the independent way: upright, on white, in [0,1]."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    if picture.mode in ("LA", "RGBA") or "transparency" in picture.info:
        return on_white(np.asarray(picture.convert("RGBA")), 255)
    return np.asarray(picture.convert("RGB")) / 255


@pytest.fixture(scope="module")
def load():
    """Share one compiled loader."""
    return images.loader((8, 6))


@pytest.fixture(scope="module")
def decode():
    """Share one compiled `decode`."""
    return tf.function(
        images.decode, autograph=False, input_signature=[tf.TensorSpec([], tf.string)]
    )


def reason(load, file: bytes) -> str:
    """Say why a file is unreadable; one that is not fails the test."""
    with pytest.raises(images.UnreadableImage) as caught:
        load(file)
    return caught.value.reason


@pytest.mark.parametrize("name", FILES)
def test_every_format_reads_as_pillow_reads_it(name, decode):
    """Every format and mode gives Pillow's pixels, transparency laid on white."""
    got = decode(FILES[name]).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, by_pillow(FILES[name]), atol=EXACT)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_sixteen_bits_are_not_cut_to_eight(channels, interlaced, decode):
    """A 16-bit PNG keeps all its bits, and its alpha too is taken at 16 bits."""
    samples = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels))
    pixels = samples if channels % 2 == 0 else np.dstack([samples, np.full((9, 7), 2**16 - 1)])
    got = decode(png(samples, 16, interlaced=interlaced)).numpy()
    np.testing.assert_allclose(got, on_white(pixels, 2**16 - 1), atol=EXACT)


def test_a_key_colour_below_eight_bits_is_transparent(decode):
    """A grey PNG of 4 bits names its transparent shade in 4 bits (Pillow overlooks it)."""
    shades = RGB[:, :, :1] >> 4
    expected = np.where(shades == 3, 1, shades / 15)
    got = decode(png(shades, 4, extra=b"\0\3")).numpy()
    np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=EXACT)


def test_decode_runs_eagerly():
    """Outside a graph the same functions give the same pixels, and refuse the same files."""
    np.testing.assert_allclose(images.decode(FILES["png-rgb"]).numpy(), RGB / 255, atol=EXACT)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG"):
        images.decode(b"<html>")


def tiff(orientation: int, order: str) -> bytes:
    """EXIF whose first directory lies 20 bytes in, with a tag before the orientation and after."""
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 20) + b"?" * 12
    rows = struct.pack(order + "HHII", 0x0100, 3, 1, 7)
    rows += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    rows += struct.pack(order + "HHII", 0x0128, 3, 1, 2)
    return start + struct.pack(order + "H", 3) + rows + bytes(4)


def segment(marker: int, body: bytes) -> bytes:
    """Build one JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(*segments: bytes) -> bytes:
    """Put segments before everything else in a good JPEG."""
    return b"\xff\xd8" + b"".join(segments) + FILES["jpeg-rgb"][2:]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, order, decode):
    """All eight orientations come out upright, in both byte orders."""
    file = with_segments(segment(0xE1, b"Exif\0\0" + tiff(orientation, order)))
    got = decode(file).numpy()
    assert got.shape == ((WIDTH, HEIGHT, 3) if orientation > 4 else (HEIGHT, WIDTH, 3))
    np.testing.assert_allclose(got, by_pillow(file), atol=EXACT)


def test_exif_is_found_behind_other_segments(decode):
    """JFIF, comments, profiles, another APP1 and fill bytes before EXIF do not hide it."""
    file = with_segments(
        segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        segment(0xFE, b"a comment"),
        *[segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))] * 3,
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        b"\xff\xff",
        segment(0xE1, b"Exif\0\0" + tiff(6, ">")),
    )
    assert decode(file).shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_allclose(decode(file).numpy(), by_pillow(file), atol=EXACT)


EXIF = tiff(6, "<")
NONSENSE = {
    "value 0": tiff(0, "<"),
    "value 9": tiff(9, ">"),
    "byte order": b"XX" + EXIF[2:],
    "magic number": EXIF[:2] + b"\x2b" + EXIF[3:],
    "offset behind the end": EXIF[:4] + struct.pack("<I", 2**32 - 1) + EXIF[8:],
    "offset at the end": EXIF[:4] + struct.pack("<I", len(EXIF)) + EXIF[8:],
    "empty": b"",
    "only a byte order": b"II",
    "no entries": EXIF[:20] + b"\0\0" + EXIF[22:],
    "cut before the tag": EXIF[:40],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_exif_means_as_it_stands(name, decode):
    """Whatever EXIF holds that makes no sense, the picture is read as stored."""
    file = with_segments(segment(0xE1, b"Exif\0\0" + NONSENSE[name]))
    assert exif.orientation(file) == 1
    np.testing.assert_array_equal(decode(file), decode(FILES["jpeg-rgb"]))


def test_more_entries_claimed_than_there_are(decode):
    """A directory that claims 65,535 entries is read as far as it goes."""
    exif = EXIF[:20] + b"\xff\xff" + EXIF[22:]
    got = decode(with_segments(segment(0xE1, b"Exif\0\0" + exif)))
    assert got.shape == (WIDTH, HEIGHT, 3)


def test_the_search_for_exif_ends(decode):
    """Thousands of empty segments are not all walked, and the picture is read."""
    late = segment(0xE1, b"Exif\0\0" + EXIF)
    assert decode(with_segments(*[segment(0xE3, b"")] * 9000, late)).shape == (HEIGHT, WIDTH, 3)


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from([b"", b"II*\0", b"MM\0*", EXIF[:8], EXIF[:22]]),
    body=st.binary(max_size=120),
)
def test_any_exif_leaves_the_picture_readable(load, start, body):
    """No EXIF content whatever makes a good JPEG unreadable."""
    assert load(with_segments(segment(0xE1, b"Exif\0\0" + start + body))).shape == (8, 6, 3)


def triangle(size: int, target: int) -> np.ndarray:
    """Weights [target,size] of an antialiased bilinear resize, from its definition."""
    scale = size / target
    centres = (np.arange(target)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(size)[None] + 0.5 - centres) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(8, 6), (15, 91), (64, 64), (1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_is_the_antialiased_triangle(size, dtype):
    """Shrinking and stretching, from bytes and from floats, follow the filter's definition."""
    image = RGB if dtype == np.uint8 else (RGB / 255).astype(np.float32)
    rows, columns = triangle(HEIGHT, size[0]), triangle(WIDTH, size[1])
    expected = np.einsum("ah,hwc,bw->abc", rows, RGB / 255, columns)
    np.testing.assert_allclose(images.resize(image, size), expected, atol=1e-5)


def test_loader_gives_what_decode_and_resize_give():
    """The compiled path in full, which resizes bytes, agrees with decode followed by resize."""
    load = images.loader((8, 6), exact=True)
    for file in FILES.values():
        expected = images.resize(images.decode(file), (8, 6)).numpy()
        np.testing.assert_allclose(load(file), expected, atol=EXACT)


class Server(tf.Module):
    """The string signature of an export, and nothing else."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Files in, pixels out."""
        return {"image": images.preprocess_batch(image_bytes, (8, 6))}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Save and reload the signature."""
    folder = tmp_path_factory.mktemp("served")
    module = Server()
    tf.saved_model.save(module, folder, signatures={"serve_bytes": module.serve_bytes})
    return tf.saved_model.load(folder).signatures["serve_bytes"]


def test_training_and_serving_see_the_same_pixels(load, served):
    """A saved and reloaded signature gives the loader's pixels to the last bit."""
    turned = with_segments(segment(0xE1, b"Exif\0\0" + tiff(8, ">")))
    files = [*FILES.values(), turned]
    got = served(image_bytes=tf.constant(files))["image"].numpy()
    np.testing.assert_array_equal(got, np.stack([load(file) for file in files]))


def test_an_empty_batch_is_served(served):
    """No images in, no images out, with the shape a model expects."""
    assert served(image_bytes=tf.constant([], tf.string))["image"].shape == (0, 8, 6, 3)


def test_serving_refuses_a_bad_image_by_name(served):
    """One unreadable file fails the request, and the message says why."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG, PNG, GIF"):
        served(image_bytes=tf.constant([FILES["gif"], b"%PDF-1.7"]))


REASONS = {
    "empty file": [b""],
    "not a JPEG, PNG, GIF, BMP or WebP image": [b"\0", b"<svg/>", b"II*\0", b"RIFF\4\0\0\0WAVE"],
    "JPEG is truncated": [FILES["jpeg-rgb"][:-2], b"\xff\xd8\xff\xe0"],
    "JPEG is damaged": [FILES["jpeg-rgb"][:20] + FILES["jpeg-rgb"][-300:]],
    "PNG is truncated": [FILES["png-rgb"][:-20]],
    "PNG is damaged": [FILES["png-rgb"].replace(b"IDAT", b"IDAX")],
    "GIF is truncated": [FILES["gif"][:-20]],
    "BMP is truncated": [FILES["bmp-24"][:-1], FILES["bmp-palette"][:31]],
    "BMP is damaged": [FILES["bmp-24"] + b"\0\0"],
    "WebP is truncated": [FILES["webp-lossy"][:-1]],
    "animated WebP, which TensorFlow cannot read": [animated("WEBP")],
    "BMP that is not uncompressed 8-bit, 24-bit or 32-bit": [
        encoded(PICTURE.convert("1"), "BMP"),
        bit_fields_bmp(0xFF, 0xFF00, 0xFF0000),
        FILES["bmp-palette"][:17] + b"\xff" + FILES["bmp-palette"][18:],
        FILES["bmp-palette"][:30] + b"\1" + FILES["bmp-palette"][31:],
    ],
}


@pytest.mark.parametrize("why", REASONS)
def test_the_reason_is_told(why, load):
    """An unreadable file is refused with a reason a person can act on."""
    assert [reason(load, file) for file in REASONS[why]] == [why] * len(REASONS[why])


def jpeg_claiming(height: int, width: int) -> bytes:
    """Change the size in a JPEG header, and nothing else."""
    file = FILES["jpeg-rgb"]
    at = file.index(b"\xff\xc0") + 5
    return file[:at] + struct.pack(">HH", height, width) + file[at + 4 :]


@pytest.mark.parametrize("side", [0, 16383])
def test_absurd_sizes_are_refused_from_the_header(side, load):
    """A file of a few bytes that claims no pixels, or hundreds of millions, is not decoded."""
    gif, bmp, lossy = FILES["gif"], FILES["bmp-24"], FILES["webp-lossy"]
    lossless, extended = FILES["webp-lossless"], FILES["webp-lossy-alpha"]
    three = struct.pack("<I", max(side, 1) - 1)[:3]
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(
        ">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0
    )
    crc = struct.pack(">I", zlib.crc32(header[12:]))
    files = [
        header + crc + FILES["png-rgb"][33:],
        gif[:6] + struct.pack("<HH", side, side) + gif[10:],
        bmp[:18] + struct.pack("<ii", side, -side) + bmp[26:],
        lossy[:26] + struct.pack("<HH", side, side) + lossy[30:],
    ]
    if side:
        # These two cannot say zero; libjpeg refuses it before the size is asked for.
        files += [
            jpeg_claiming(side, side),
            lossless[:21] + struct.pack("<I", (side - 1) * (2**14 + 1)) + lossless[25:],
            extended[:24] + three + three + extended[30:],
        ]
    said = f"the header claims {side}x{side} pixels, expected 1 to 67108864 (--max-pixels)"
    assert {reason(load, file) for file in files} == {said}


def test_the_limit_of_pixels_is_that_of_the_command_line():
    """The default of --max-pixels and of these functions, written in two places, is one number."""
    (spec,) = (spec for spec in fields(RunConfig) if spec.name == "max_pixels")
    assert spec.default == MAX_PIXELS


# Opaque and of 8 bits; the others may have 3/8 of the pixels.
PLAIN = ["jpeg-rgb", "jpeg-progressive", "png-rgb", "gif-animated", "bmp-palette", "webp-lossy"]
COSTLY = ["png-rgba", "png-palette-alpha", "webp-lossless-alpha", "webp-lossy-alpha"]


@pytest.mark.parametrize(("names", "share"), [(PLAIN, 1), (COSTLY, 3 / 8)])
def test_no_more_pixels_are_decoded_than_allowed(names, share):
    """At the limit every format is read, in training and in serving, and below it by neither."""
    least = int(HEIGHT * WIDTH / share)
    for max_pixels, is_read in ((least, True), (least - 1, False)):
        load = images.loader((8, 6), max_pixels=max_pixels)
        for name in names:
            one = tf.constant([FILES[name]])
            if is_read:
                batch = images.preprocess_batch(one, (8, 6), max_pixels=max_pixels)
                np.testing.assert_array_equal(batch[0], load(FILES[name]))
                assert max(images.shrink(FILES[name], 9, max_pixels=max_pixels).shape) == 9
                continue
            assert "(--max-pixels)" in reason(load, FILES[name]).replace("3/8 of ", "")
            for refuse in (
                lambda one=one, most=max_pixels: images.preprocess_batch(
                    one, (8, 6), max_pixels=most
                ),
                lambda one=one, most=max_pixels: images.decode(one[0], max_pixels=most),
            ):
                with pytest.raises(tf.errors.InvalidArgumentError, match="--max-pixels"):
                    refuse()


def test_sixteen_bits_are_refused_from_the_header(load):
    """A 16-bit PNG of more pixels than fit into memory is refused before it is decoded."""
    told = reason(load, malformed.png(8192, 3073, malformed.png_chunk(b"IDAT", b""), depth=16))
    assert told.startswith("25174016 pixels, transparent or of 16 bits, expected at most 25165824")


def test_a_file_of_too_many_bytes_is_refused():
    """A file may have 4 bytes for every pixel allowed, and 16 MiB."""
    load, most = images.loader((8, 6), max_pixels=2000), 4 * 2000 + 2**24
    padded = FILES["jpeg-rgb"] + bytes(most - len(FILES["jpeg-rgb"]) - 2) + b"\xff\xd9"
    assert load(padded).shape == (8, 6, 3)
    said = f"a file of {most + 1} bytes, expected at most {most} (--max-pixels 2000)"
    assert reason(load, padded + b"\0") == said


def test_the_scans_of_a_jpeg_are_bounded():
    """A progressive JPEG may have 24 scans at the most pixels, more of fewer, never a thousand."""
    load = images.loader((8, 6), max_pixels=2**12)
    for side, scans in ((64, 24), (32, 96), (8, 999)):
        file = malformed.progressive_jpeg(side, side, scans)
        said = f"{scans + 1} scans of {side**2} pixels, expected at most {scans}"
        assert reason(load, file) == said
        assert load(malformed.progressive_jpeg(side, side, scans - 1)).shape == (8, 6, 3)


def test_nothing_behind_the_first_frame_of_a_gif_is_decoded(load):
    """An animated GIF gives the pixels of its first frame, whatever comes after it."""
    first = load(FILES["gif"])
    at = FILES["gif"].rindex(b";")
    np.testing.assert_array_equal(load(FILES["gif"][:at] + b"," + b"\xff" * 99 + b";"), first)
    np.testing.assert_array_equal(load(FILES["gif"][:at] + malformed.HTML), first)
    np.testing.assert_array_equal(load(FILES["gif-animated"]), first)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 255), min_size=1, max_size=9), comments=st.integers(0, 3))
def test_a_gif_in_any_pieces_is_the_same_picture(load, lengths, comments):
    """However an encoder cuts its data into sub-blocks, and whatever it says before, it is read."""
    file = FILES["gif"]
    start = file.index(b",\0\0\0\0")
    data, at = b"", start + 11 + (3 << (file[start + 9] % 8 + 1) if file[start + 9] > 127 else 0)
    behind = at
    while file[behind]:
        data += file[behind + 1 : behind + 1 + file[behind]]
        behind += 1 + file[behind]
    pieces, place = b"", 0
    for length in itertools.cycle(lengths):
        piece = data[place : place + length]
        pieces += bytes([len(piece)]) + piece
        if not piece:
            break
        place += length
    said = b"!\xfe\x03abc\x01;\0" * comments
    other = file[:start] + said + file[start:at] + pieces + b";"
    np.testing.assert_array_equal(load(other), load(file))


@pytest.mark.parametrize("name", ["png-rgb", "png-rgba", "gif", "jpeg-rgb", "webp-lossless-alpha"])
@pytest.mark.parametrize("side", [7, 500])
def test_a_small_picture_is_what_resizing_gives(name, side):
    """`shrink` gives `resize` of `decode`, in proportion and never larger than the picture is."""
    full = images.decode(FILES[name])
    size = (round(HEIGHT * 7 / WIDTH), 7) if side == 7 else (HEIGHT, WIDTH)
    small = images.shrink(FILES[name], side)
    # A JPEG is decoded at a part of its size, each pixel the mean of those it stands for.
    atol = 0.06 if name == "jpeg-rgb" and side == 7 else EXACT
    np.testing.assert_allclose(small, images.resize(full, size), atol=atol)


def test_a_jpeg_of_no_width_is_refused(load):
    """A JPEG frame of zero size is unreadable like any other damage."""
    assert reason(load, jpeg_claiming(0, 0)) == "JPEG is damaged"


def test_animated_webp_is_kept_from_the_decoder_without_assertions():
    """Even where an optimizer strips assertions, what would crash TensorFlow is refused."""
    tf.config.optimizer.set_experimental_options({"debug_stripper": True})
    try:
        load = images.loader((4, 4))
        assert load(FILES["webp-lossy"]).shape == (4, 4, 3)
        assert reason(load, animated("WEBP")) == "WebP is damaged"
    finally:
        tf.config.optimizer.set_experimental_options({"debug_stripper": False})


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "gif-animated"])
def test_a_part_of_a_file_is_never_an_image(name, load):
    """A file cut anywhere is unreadable, not a picture with its lower part missing."""
    file = SAMPLES[name]
    for length in range(0, len(file), 7):
        reason(load, file[:length])
    reason(load, file[:-1])


def readable(load, file: bytes) -> bool:
    """Whether the file loads; anything but a sound picture or UnreadableImage fails the test."""
    try:
        pixels = load(file)
    except images.UnreadableImage:
        return False
    assert pixels.shape == (8, 6, 3)
    assert pixels.dtype == np.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    return True


MAGIC = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8"]


@settings(max_examples=200, deadline=None)
@given(magic=st.sampled_from(MAGIC), body=st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(load, magic, body):
    """Bytes of any kind, with a known beginning or not, give a picture or UnreadableImage."""
    readable(load, magic + body)


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 4000),
)
def test_damaged_files_are_refused_or_read(load, name, flips, cut):
    """A good file with bytes changed and cut short gives a picture or UnreadableImage."""
    file = bytearray(SAMPLES[name])
    for at, change in flips:
        file[at % len(file)] ^= change
    readable(load, bytes(file))
    readable(load, bytes(file[: cut % len(file)]))


def test_many_threads_share_one_loader(load):
    """Eight threads with good and bad files each get their own file's answer."""
    files = [*FILES.values(), b"", b"no image"] * 6
    alone = [load(file) if readable(load, file) else None for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: load(file) if readable(load, file) else None, files))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
