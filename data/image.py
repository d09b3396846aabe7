"""Bytes of a photograph -> uint8 pixels, by one path for training, the cache, the server and the client.

    load(data, size) = resize(decode(data))     uint8[size, size, 3], RGB, squashed to a square

What each input becomes:

    which file      decided by its first bytes, never by its name. JPEG and PNG are read; any other is an
                    error that names what it is (GIF, WebP, text, empty ...)
    JPEG            libjpeg-turbo through simplejpeg: full size (no DCT scaling), accurate DCT, smooth
                    upsampling; strict: any sign of damage is an error, so a truncated file is never a
                    half-grey picture. Two complaints that change no pixel are let through (`_HARMLESS`)
    PNG             Pillow, after a check of every checksum and of the end marker; of an animated PNG the
                    first frame
    orientation     EXIF tag 274 is applied, in JPEG and in PNG; a broken EXIF block counts as upright
    grey            the value three times
    CMYK, YCCK      ink to RGB by (255 - ink) * (255 - black) / 255, where the file stores 255 - ink as Adobe
                    does; with or without Adobe's marker, as browsers and Pillow do
    16 bits (PNG)   the high byte
    palette         looked up
    alpha           composed over white, a palette's and a single transparent colour too
    colour profile  not applied
    size            above MAX_PIXELS (checked in the header, before decoding) is an error
    scans           a progressive JPEG of more than MAX_SCANS is an error
    resize          Pillow's antialiased bilinear, to size x size whatever the aspect

Why these two libraries: `python benchmarks/decode.py --images DIR` on two quiet cores of an AMD EPYC, 150 VOC
photographs of 44 KB, images/s on 1 and on 2 threads, and the largest and mean difference in levels of 255 from
torchvision's decoder and antialiased resize:

    decode alone       simplejpeg 1145, 2564 | OpenCV 1042, 1946 | torchvision 949, 2013 | Pillow 732, 1460
    decode + resize    simplejpeg + Pillow           558, 1045     1      0.01     chosen
    to 224             Pillow + Pillow               504,  984     1      0.01
                       torchvision + torchvision     968, 1784     0      0
                       simplejpeg + OpenCV area      641, 1247    43      1.42
                       simplejpeg + OpenCV linear   1333, 2306   118      3.80     no antialias

torchvision's resize is the fastest of the faithful ones, but needs torch, which serving does not carry; OpenCV's
are not faithful. simplejpeg gains little over Pillow's decoder once the resize is added: it is here because it is
strict, where Pillow gives wrong pixels for damage in the middle of a file. Both let go of the GIL.
"""

import base64
import hashlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, features

from data.errors import InputError

Pixels = npt.NDArray[np.uint8]

# 8192 x 8192: above any photograph of a telephone but for its "full sensor" modes, and at most 0.5 GB of
# memory for each decoding thread. A PNG of 30 KB can claim to be 100 times this.
MAX_PIXELS = 8192 * 8192
# Each scan of a progressive JPEG goes over all of its blocks, and may have a few bytes: 883 scans in 0.6 MB took 30 s.
# Encoders write 6 to 20.
MAX_SCANS = 64
_BACKGROUND = (255, 255, 255)
_FILTER = Image.Resampling.BILINEAR
_PNG = b"\x89PNG\r\n\x1a\n"
# libjpeg's words for two faults that leave every pixel right: padding before the end marker, and a scan
# header with odd numbers that a sequential decoder never uses. Pillow, which ignores both, reads these.
_HARMLESS = ("extraneous bytes before marker 0xd9", "Invalid SOS parameters for sequential JPEG")
# Chroma sampling that simplejpeg's interface has no name for, such as 4:1:0. Pillow reads these too.
_UNUSUAL = "Could not determine subsampling"
# What Pillow raises for damaged bytes; fuzzing found them.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    EOFError,
    AssertionError,
    struct.error,
    Image.DecompressionBombError,
)
# How Pillow's decoders and libjpeg say it.
_NO_MEMORY = ("out of memory", "nsufficient memory")
# Of a segment; within a scan 0xFF is followed by 0 or by a restart marker, which has no length.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)


class ImageError(InputError):
    """Bytes that are not a whole JPEG or PNG picture within the limits: the message says why."""


def load(data: bytes, size: int) -> Pixels:
    """Decode a JPEG or PNG and squash it to a square: uint8[size, size, 3] RGB, writable.

    Raises:
        ImageError: where the bytes are not a whole JPEG or PNG picture; the message says why.
        MemoryError: there is no memory for it.
    """
    if size < 1:
        raise InputError(f"the image size must be at least 1 pixel, got {size}")
    picture = Image.fromarray(decode(data))
    return np.array(picture.resize((size, size), _FILTER))


def decode(data: bytes) -> Pixels:
    """Decode a JPEG or PNG at its full size: uint8[H, W, 3] RGB, upright. Errors as in `load`."""
    if data.startswith(b"\xff\xd8\xff"):
        return _decode_jpeg(data)
    if data.startswith(_PNG):
        return _decode_png(data)
    raise ImageError(f"it is {_what_is(data)}; only JPEG and PNG are read")


@cache
def fingerprint(size: int) -> str:
    """16 hex digits that differ wherever `load` at this size could give other pixels.

    They cover `describe(size)`: the libraries with their versions, the rules, and the pixels that `load`
    really gives here on two small pictures.
    """
    text = "\n".join(f"{key}={value}" for key, value in sorted(describe(size).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(size: int) -> dict[str, str]:
    """What `fingerprint(size)` stands for, in words, for metadata and for telling two apart."""
    golden = hashlib.sha256(load(_GOLDEN_JPEG, size).tobytes() + load(_GOLDEN_PNG, size).tobytes())
    return {
        "size": f"{size}x{size} squashed",
        "jpeg": f"simplejpeg {version('simplejpeg')}, accurate DCT, smooth upsampling",
        "png": f"Pillow {version('pillow')}",
        "jpeg_fallback": f"Pillow {version('pillow')} with libjpeg-turbo {features.version('libjpeg_turbo')}",
        "resize": f"Pillow {version('pillow')} {_FILTER.name.lower()}, antialias",
        "orientation": "EXIF",
        "background": ",".join(str(level) for level in _BACKGROUND),
        "golden": golden.hexdigest()[:16],
    }


def _decode_jpeg(data: bytes) -> Pixels:
    width, height, progressive, exif = _jpeg_header(data)
    _check_pixels(width, height)
    if progressive:
        _check_scans(data)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        _check_memory(error)
        if not any(words in str(error) for words in (*_HARMLESS, _UNUSUAL)):
            raise ImageError(f"damaged JPEG: {error}") from error
        _check_scans(data)  # scans without a byte too, which Pillow reads
        with _damage("JPEG"):
            pixels = np.asarray(_open(data, "JPEG").convert("RGB"))
    return _upright(pixels, _orientation(exif))


def _jpeg_header(data: bytes) -> tuple[int, int, bool, bytes]:
    """Width, height, whether progressive, EXIF block ("" where none), from the segments before the first scan."""
    exif, progressive = b"", False
    frame: tuple[int, int] | None = None
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF):  # no marker: a stuffed byte, or fill
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xDA and frame:
            return frame[1], frame[0], progressive, exif
        if marker in (0xDA, 0xD9):
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            frame, progressive = struct.unpack(">HH", body[1:5]), marker & 3 == 2
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        at += 2 + max(length, 2)
    raise ImageError(f"damaged JPEG: its {len(data):,} bytes end before the picture starts")


def _decode_png(data: bytes) -> Pixels:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageError(f"damaged PNG: its {len(data):,} bytes end before the picture starts")
    _check_pixels(*struct.unpack(">II", data[16:24]))
    _check_chunks(data)
    with _damage("PNG"):
        picture = _open(data, "PNG")
        orientation = _orientation(picture.info.get("exif", b"").removeprefix(b"Exif\0\0"))
        if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
            picture = _high_byte(picture)
        if picture.mode == "P" and picture.palette is None:
            raise ImageError("damaged PNG: its pixels are numbers of a palette that is not there")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            background = Image.new("RGBA", picture.size, (*_BACKGROUND, 255))
            picture = Image.alpha_composite(background, picture)
        pixels = np.asarray(picture.convert("RGB"))
    return _upright(pixels, orientation)


def _check_chunks(data: bytes) -> None:
    """Compare every chunk's checksum, to the end marker: Pillow takes damaged pixels as they come."""
    view, at = memoryview(data), len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big") or end + 4 > len(
            data
        ):
            raise ImageError(f"damaged PNG: the checksum of its part {kind!r} at byte {at:,} is wrong")
        if kind == b"IEND":
            return
        at = end + 4
    raise ImageError(f"damaged PNG: its {len(data):,} bytes end before the end marker")


def _high_byte(picture: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey, with an alpha channel where one grey value is marked transparent."""
    deep = np.asarray(picture)
    grey = Image.fromarray((deep >> 8).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _open(data: bytes, kind: str) -> Image.Image:
    """Decode with Pillow, all of it."""
    picture = Image.open(io.BytesIO(data), formats=(kind,))
    picture.load()
    return picture


@contextmanager
def _damage(kind: str) -> Iterator[None]:
    """Whatever goes wrong inside Pillow, which finds some of the damage only when it looks a palette up."""
    try:
        yield
    except _PILLOW_ERRORS as error:
        _check_memory(error)
        raise ImageError(f"damaged {kind}: {str(error) or type(error).__name__}") from error


def _check_memory(error: Exception) -> None:
    """Raise `MemoryError` where that is what a library means: the bytes may be a good picture."""
    if any(words in str(error) for words in _NO_MEMORY):
        raise MemoryError(str(error)) from error


def _check_scans(data: bytes) -> None:
    # The bytes of the marker may also stand in what programs put beside the picture, so that these are the most.
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) and (marker := found[0][1]) != 0xD9:
        scans += marker == 0xDA
        at = found.start() + 2 + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    if scans > MAX_SCANS:
        raise ImageError(f"{scans} scans are more than the limit of {MAX_SCANS} in one JPEG")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels is more than the limit of {MAX_PIXELS:,} pixels")
    if width * height == 0:
        raise ImageError(f"a picture must have pixels, its header says {width} x {height}")


def _orientation(exif: bytes) -> int:
    """EXIF tag 274 of a TIFF block, 1 to 8; 1 (upright) where it is absent or the block is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    (start,) = struct.unpack(order + "I", exif[4:8])
    entries = exif[start + 2 :]
    count = int.from_bytes(exif[start : start + 2], "little" if order == "<" else "big")
    for at in range(0, min(12 * count, len(entries) - 11), 12):
        tag, kind, _, value = struct.unpack(order + "HHIH", entries[at : at + 10])
        if tag == 274:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _what_is(data: bytes) -> str:
    """What bytes that are neither JPEG nor PNG look like, with an article, for a message."""
    if not data:
        return "an empty file (0 bytes)"
    for offset, magic, name in _MAGIC:
        if data[offset:].startswith(magic):
            return f"{'an' if name == 'AVIF' else 'a'} {name} file"
    start = data[:512]
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in start):
        return f"text, starting with '{start[:20].decode('utf-8', 'replace').splitlines()[0]}'"
    return f"of an unknown kind, starting with the bytes {data[:8].hex(' ')}"


_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
)

# 37 x 29 pixels each: a JPEG with 4:2:0 chroma and EXIF orientation 6, a palette PNG with transparency.
_GOLDEN_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDAA0JCgsKCA0LCgsODg0P"
    "EyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09P"
    "T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAdACUDASIAAhEBAxEB/8QAHwAAAQUBAQEB"
    "AQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAk"
    "M2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKj"
    "pKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAA"
    "AAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl"
    "8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmq"
    "srO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDp4lCKGyPlqnfagsQJ6dxg"
    "1PfzCGEkHHfFcPq9+XkZVbnPWvIyvAOtK7KqxtDlRp3GsqHOTn6d/anW2skn5QSfyrE0/TZb6VXYHHSuttNFtrZP3mBuGDnsK+or"
    "vC4Gi51NbdPM4MLhaDq3lqyq3iC4JxFG20cZUdaKuvfaZanywo/KivkKlapWm6jg9T6ePsorlVIg8RTmOLk85yO9cnYW5u7rocA5"
    "rZ8UyMTsJ7/0qbwzaxiMt396+uy+kqOG5urPlsTiH7K/c04hBpdluxhugz61lPd3WoORGWwe9R38r3eoiBz8gbAHXpW4sUen6b5k"
    "SAt1zXgY7Ee2q23tt/me7gcPHBUFUavORmnSLeMf6XIAx55NFc/dXNzf3Du8xTacAAUV6Ecvk0uaepxVa9dzfNOzP//Z"
)
_GOLDEN_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACUAAAAdCAMAAAAaaVXxAAAASFBMVEWAwADMHBGWlVbKwEIUG5TNSxkTS5QVGprDnEnLxg2Ow97R"
    "jAwYkItNTYAZG6AdjcBYIMpIwtJSxdgaGsAORcJRVGCOwk4VIMB+DgFPAAAAGHRSTlMAQEBAgECAwEBAgEBAgEBAQECAgMCAQMAo"
    "RJDxAAABNklEQVR42p3U3bKCIBQF4K2IwCFERO393/TsH8B06KbdTF30zVq6sQB+mPOUz9d3ok5EZ0WxbxgR4Ym9OOWUGs+xoVc/"
    "CBFOqStt67o+kFViZhx8WxY08EDWWkKB0TzNOef1kUQXReg4jhAmRDg5UyF+pz+jOCmEmVEmI6O1vxUCJ4Ex5v2emvLOt0VxFBay"
    "oddlnHPtBmshKgPV/IHjuS6LEEyGsyoS5aXSUhahQIVm3xsCLPRe7lKNsga8f0Z7Q+BxdFFKFgrI3hcSpfUg0ZbP7yD0qXhbwzDU"
    "ncgB8sLxDGm2TRAFXQwKY7ShYQSYpK8j4lmmexCj4W4AH5UFJEqS2OjS0xAyevqwr143qfGRBaxiSqkEofFdFIFNVd72nv4YEyRB"
    "2Ki7RqJSXYH+/sNt6Jc/hn/JQw+qyJUgygAAAABJRU5ErkJggg=="
)
