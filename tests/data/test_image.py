"""One path from bytes to pixels: what every kind of JPEG and PNG becomes, and what every bad file is called."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image, ImageOps

from data import image as image_module
from data.errors import InputError
from data.image import MAX_PIXELS, MAX_SCANS, ImageError, decode, describe, fingerprint, load

Pixels = npt.NDArray[np.uint8]


def smooth(width: int = 60, height: int = 44) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 90 * np.sin(x / 9), 128 + 80 * np.cos(y / 7), 2 * x + y]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encode(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return stream.getvalue()


def gap(one: Pixels, other: object) -> int:
    """The largest difference in levels."""
    assert one.shape == np.asarray(other).shape
    return int(np.abs(one.astype(int) - np.asarray(other).astype(int)).max())


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(e[:4], e[4:]) for e in extra)]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_load__shape_type_and_squash() -> None:
    pixels = load(encode(smooth(60, 44)), 24)
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert gap(pixels, smooth(60, 44).resize((24, 24), Image.Resampling.BILINEAR)) <= 6


def test_load__antialiased() -> None:
    """Lines of one pixel become even grey when made six times smaller; without antialias they alias."""
    lines = np.zeros((240, 240, 3), dtype=np.uint8)
    lines[:, ::2] = 255
    inner = load(encode(Image.fromarray(lines), "PNG"), 40)[:, 2:-2]
    assert inner.min() >= 120
    assert inner.max() <= 135


def test_load__size_below_one() -> None:
    with pytest.raises(InputError, match="at least 1 pixel, got 0"):
        load(encode(smooth()), 0)


def test_decode__jpeg_is_what_pillow_reads() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"keep_rgb": True}):
        data = encode(smooth(), **options)
        assert gap(decode(data), Image.open(io.BytesIO(data)).convert("RGB")) <= 1


def test_decode__png_exact() -> None:
    assert gap(decode(encode(smooth(), "PNG")), smooth()) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode__exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(smooth(), kind, exif=exif)
    assert gap(decode(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data)))) <= 1


def test_decode__broken_exif_counts_as_upright() -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"):
        assert decode(encode(smooth(), exif=exif)).shape == (44, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode__grey(kind: str) -> None:
    grey = smooth().convert("L")
    assert gap(decode(encode(grey, kind)), np.stack([np.asarray(grey)] * 3, axis=-1)) <= 3


def test_decode__cmyk_and_ycck() -> None:
    cmyk = encode(smooth().convert("CMYK"))
    assert gap(decode(cmyk), smooth()) <= 12
    # The transform byte of Adobe's marker says how the four planes are coded: 0 = CMYK, 2 = YCCK.
    at = cmyk.index(b"Adobe") + 11
    assert cmyk[at] == 0
    ycck = cmyk[:at] + b"\x02" + cmyk[at + 1 :]
    assert gap(decode(ycck), Image.open(io.BytesIO(ycck)).convert("RGB")) <= 1


def test_decode__16_bit_png_takes_the_high_byte() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", *(row * 9000 + x * 300 for x in range(3))) for row in range(4))
    want = [[(row * 9000 + x * 300) >> 8 for x in range(3)] for row in range(4)]
    assert decode(png(3, 4, 16, 0, rows))[..., 1].tolist() == want
    colour = b"\0" + struct.pack(">6H", 0x1234, 0x8001, 0xFFFF, 0, 0x00FF, 0x0100)
    assert decode(png(2, 1, 16, 2, colour)).tolist() == [[[0x12, 0x80, 0xFF], [0, 0, 1]]]


def test_decode__alpha_over_white() -> None:
    picture = Image.new("RGBA", (3, 1), (200, 0, 100, 255))
    picture.putpixel((1, 0), (200, 0, 100, 0))
    picture.putpixel((2, 0), (200, 0, 100, 128))
    got = decode(encode(picture, "PNG"))[0].tolist()
    assert got[:2] == [[200, 0, 100], [255, 255, 255]]
    assert got[2] == pytest.approx([227, 127, 177], abs=1)


def test_decode__grey_alpha_over_white() -> None:
    picture = Image.new("LA", (2, 1), (90, 255))
    picture.putpixel((1, 0), (90, 0))
    assert decode(encode(picture, "PNG"))[0].tolist() == [[90] * 3, [255] * 3]


def test_decode__palette_with_and_without_a_transparent_entry() -> None:
    palette = b"PLTE" + bytes([10, 20, 30, 200, 100, 50])
    rows = b"\0\x00\x01"
    assert decode(png(2, 1, 8, 3, rows, palette)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    faded = png(2, 1, 8, 3, rows, palette, b"tRNS\x00")
    assert decode(faded).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_decode__one_transparent_colour() -> None:
    rgb = png(2, 1, 8, 2, b"\0\x01\x02\x03\x04\x05\x06", b"tRNS\0\x01\0\x02\0\x03")
    assert decode(rgb).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    deep = png(2, 1, 16, 0, b"\0\x12\x34\x12\x35", b"tRNS\x12\x34")
    assert decode(deep).tolist() == [[[255] * 3, [0x12] * 3]]


def test_decode__bilevel_png() -> None:
    assert decode(png(2, 1, 1, 0, b"\0\x40")).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("progressive", [False, True])
def test_decode__truncated_anywhere_is_an_error(kind: str, progressive: bool) -> None:
    data = encode(smooth(200, 150), kind, **({"progressive": progressive} if kind == "JPEG" else {}))
    end = len(data) - 1
    for length in (*range(8, 700, 23), *range(700, end, 411), end):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_decode__damage_in_the_middle_of_a_jpeg_is_an_error() -> None:
    """Pillow reads this as a picture that is wrong from there on."""
    data = bytearray(encode(smooth(200, 150)))
    middle = len(data) // 2
    data[middle : middle + 6] = b"\xff\x00\x12\x99\xff\xd9"
    Image.open(io.BytesIO(data)).convert("RGB")
    with pytest.raises(ImageError, match="damaged JPEG"):
        decode(bytes(data))


def test_decode__damage_anywhere_in_a_png_is_an_error() -> None:
    """Pillow gives wrong pixels for about a quarter of these."""
    whole = encode(smooth(200, 150), "PNG")
    for at in range(8, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 0x55
        with pytest.raises(ImageError):
            decode(bytes(data))


def test_decode__a_png_whose_parts_pillow_does_not_expect_is_an_error() -> None:
    """More transparent entries than a palette can have; no palette at all; an empty profile behind the pixels."""
    crowded = png(2, 1, 8, 3, b"\0\x00\x01", b"PLTE" + bytes(768), b"tRNS" + bytes(300))
    with pytest.raises(ImageError, match="damaged PNG: palette index out of range"):
        decode(crowded)
    with pytest.raises(
        ImageError, match="damaged PNG: its pixels are numbers of a palette that is not there"
    ):
        decode(png(2, 1, 8, 3, b"\0\x00\x01"))
    whole = png(1, 1, 8, 0, b"\0\x00")
    empty = struct.pack(">I", 0) + b"iCCP" + struct.pack(">I", zlib.crc32(b"iCCP"))
    with pytest.raises(ImageError, match="damaged PNG: "):
        decode(whole[:-12] + empty + whole[-12:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode__a_library_without_memory_is_no_damage(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        if kind == "PNG":
            raise OSError("out of memory error when reading image file")
        raise ValueError("Insufficient memory (case 4)")

    monkeypatch.setattr(*((Image, "open") if kind == "PNG" else (simplejpeg, "decode_jpeg")), fail)
    with pytest.raises(MemoryError, match="memory"):
        decode(encode(smooth(20, 10), kind))


def test_decode__padding_before_the_end_marker_is_let_through() -> None:
    data = encode(smooth())
    padded = data[:-2] + b"\0\0\0\0" + data[-2:]
    assert gap(decode(padded), decode(data)) <= 1
    assert gap(decode(data + b"trailing bytes"), decode(data)) == 0


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", r"an empty file \(0 bytes\)"),
        (b"this is no picture\n", "text, starting with 'this is no picture'"),
        (b"GIF89a" + bytes(20), "a GIF file"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP file"),
        (b"BM" + bytes(20), "a BMP file"),
        (b"II*\0" + bytes(20), "a TIFF file"),
        (b"\0\0\0\x20ftypavif", "an AVIF file"),
        (b"\0\0\0\x20ftypheic", "a HEIC file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\0\x01\x02\x03", "of an unknown kind, starting with the bytes 00 01 02 03"),
    ],
)
def test_decode__other_files_named(data: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=f"^it is {what}; only JPEG and PNG are read$"):
        decode(data)


def test_decode__gif_written_by_pillow_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match="a GIF file"):
        decode(encode(smooth(), "GIF"))


def test_decode__start_of_a_jpeg_and_no_more() -> None:
    for data in (
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0hello",
        b"\xff\xd8\xff\xd9",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xda\0\0",
    ):
        with pytest.raises(ImageError, match="end before the picture starts"):
            decode(data)


def test_decode__bomb_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("decoded before the size was checked")

    monkeypatch.setattr(image_module.simplejpeg, "decode_jpeg", never)
    monkeypatch.setattr(Image, "open", never)
    jpeg = bytearray(encode(smooth()))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60000, 50000)
    for data in (png(50000, 60000, 8, 2, b""), bytes(jpeg)):
        with pytest.raises(
            ImageError, match=r"50000 x 60000 pixels is more than the limit of 67,108,864 pixels"
        ):
            decode(data)


def test_decode__limit_is_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PIXELS == 67_108_864
    monkeypatch.setattr(image_module, "MAX_PIXELS", 60 * 44)
    assert decode(encode(smooth(60, 44))).shape == (44, 60, 3)
    with pytest.raises(ImageError, match="61 x 44"):
        decode(encode(smooth(61, 44)))


def test_decode__no_pixels() -> None:
    with pytest.raises(ImageError, match="0 x 5"):
        decode(png(0, 5, 8, 2, b""))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode__random_damage_is_a_picture_or_an_image_error(kind: str) -> None:
    """Whatever the bytes, the only exception is `ImageError`: the server must answer one image, not fall."""
    rng = np.random.default_rng(3)
    whole = np.frombuffer(encode(smooth(), kind, exif=Image.Exif()), dtype=np.uint8)
    refused = 0
    for _ in range(600):
        data = whole.copy()
        where = rng.integers(3 if kind == "JPEG" else 8, len(data), rng.integers(1, 5))
        data[where] = rng.integers(0, 256, len(where))
        try:
            assert decode(data.tobytes()).ndim == 3
        except ImageError:
            refused += 1
    assert refused > 60


def test_fingerprint__stable_and_of_the_size() -> None:
    assert fingerprint(64) == fingerprint(64)
    assert len(fingerprint(64)) == 16
    assert int(fingerprint(64), 16) >= 0
    assert fingerprint(64) != fingerprint(65)


def test_fingerprint__changes_with_pixels_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(32)
    fingerprint.cache_clear()
    monkeypatch.setattr(image_module, "_FILTER", Image.Resampling.BICUBIC)
    bicubic = fingerprint(32)
    monkeypatch.undo()
    fingerprint.cache_clear()
    real = image_module.load
    monkeypatch.setattr(image_module, "load", lambda data, size: real(data, size) ^ 1)
    other_pixels = fingerprint(32)
    monkeypatch.undo()
    fingerprint.cache_clear()
    monkeypatch.setattr(image_module, "version", lambda name: "99")
    other_version = fingerprint(32)
    fingerprint.cache_clear()
    assert len({before, bicubic, other_pixels, other_version}) == 4


def test_describe__names_every_part() -> None:
    parts = describe(48)
    assert parts["size"].startswith("48x48")
    assert parts["jpeg"].startswith("simplejpeg ")
    assert "bilinear, antialias" in parts["resize"]
    assert len(parts["golden"]) == 16


def test_load__golden_pixels() -> None:
    """The pixels that every version must give: a change here changes every trained model's input.

    Means, since a library may move a pixel by a level; the fingerprint holds the exact ones.
    """
    jpeg = load(image_module._GOLDEN_JPEG, 16)
    png_pixels = load(image_module._GOLDEN_PNG, 16)
    assert jpeg.mean(axis=(0, 1)).tolist() == pytest.approx(GOLDEN_MEANS[0], abs=0.6)
    assert png_pixels.mean(axis=(0, 1)).tolist() == pytest.approx(GOLDEN_MEANS[1], abs=0.6)
    assert jpeg[0].mean() == pytest.approx(
        GOLDEN_MEANS[2][0], abs=1.0
    )  # rotated: the first row is its left side


GOLDEN_MEANS = ([134.5, 138.3, 126.1], [229.9, 230.5, 235.8], [158.2])


def _scans(count: int, beside: bytes = b"") -> bytes:
    """A valid progressive grey JPEG of 64 x 64 pixels with so many scans; `beside` stands in a comment before them."""

    def table(kind: int, *symbols: int) -> bytes:
        body = bytes([kind, 0, 0, 0, len(symbols), *[0] * 12, *symbols])
        return b"\xff\xc4" + struct.pack(">H", 2 + len(body)) + body

    def scan(band: int, before: int, after: int, bits: bytes) -> bytes:
        return b"\xff\xda\0\x08\1\1\0" + bytes([band, band, before << 4 | after]) + bits

    levels = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    frame = b"\xff\xc2\0\x0b\x08" + struct.pack(">HH", 64, 64) + b"\1\1\x11\0"
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(beside)) + beside
    # 64 blocks: each with a first coefficient of 0 (code 0000); then all of them to the end of the band in one code.
    empty = bytes([0x00, 0x0F])
    scans = [scan(0, 0, 0, bytes(32))]
    for band in range(1, 64):
        scans += [scan(band, 0, 13, empty)]
        scans += [scan(band, level + 1, level, empty) for level in range(12, -1, -1)]
    tables = table(0x00, 0) + table(0x10, 0x60)
    return b"\xff\xd8" + levels + frame + comment + tables + b"".join(scans[:count]) + b"\xff\xd9"


def test_decode__more_scans_than_any_encoder_writes_are_refused() -> None:
    """Each goes over the whole picture for a few bytes."""
    for count in (1, MAX_SCANS):
        assert (decode(_scans(count)) == 128).all()
    for count in (MAX_SCANS + 1, 800):
        with pytest.raises(ImageError, match=f"{count} scans are more than the limit of {MAX_SCANS}"):
            decode(_scans(count))
    # What only looks like scans does not count, and an end marker in a comment does not end the count.
    beside = b"\xff\xd9" + b"\xff\xda" * 100
    assert (decode(_scans(MAX_SCANS, beside)) == 128).all()
    with pytest.raises(ImageError, match=f"{MAX_SCANS + 1} scans"):
        decode(_scans(MAX_SCANS + 1, beside))


def test_decode__the_scans_of_what_pillow_reads_are_counted_too() -> None:
    """With an odd number in its scan header a sequential file goes to Pillow, which reads scans without a byte."""
    plain = encode(smooth())
    at = plain.index(b"\xff\xda")
    data = at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big")
    odd = plain[at : data - 3] + b"\1" + plain[data - 2 : data]
    assert decode(plain[:at] + odd + plain[data:]).shape == (44, 60, 3)
    alone = b"\xff\xda\0\x08\1\1\0" + odd[-3:]  # of one component, or there could be no other scan
    with pytest.raises(ImageError, match=f"101 scans are more than the limit of {MAX_SCANS}"):
        decode(plain[:at] + alone + plain[data:-2] + alone * 100 + plain[-2:])
