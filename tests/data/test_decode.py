"""Decoding: unusual formats by the documented rules, and broken files with their reasons."""

import contextlib
import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from error_matching import raises
from PIL import Image, ImageOps
from web_samples import GRAY, GRAY_ALPHA, RGB, RGBA, png_file

from thaw.data.decode import UnreadableImageError, decode_image, orient, quiet_decoding
from thaw.data.wide import is_reduced

COLORS = np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAYS = COLORS[..., 0]


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_color_round_trip(kind):
    decoded = decode_image(encode(Image.fromarray(COLORS), kind))
    assert np.array_equal(decoded.pixels, COLORS)
    assert decoded.rules == ()


def test_gray_is_decided_by_content():
    for image in (Image.fromarray(GRAYS), Image.fromarray(np.stack([GRAYS] * 3, axis=-1))):
        assert np.array_equal(decode_image(encode(image, "WEBP", lossless=True)).pixels, GRAYS[..., None])
    one_off = np.stack([GRAYS] * 3, axis=-1)
    one_off[5, 8, 2] ^= 1
    assert decode_image(encode(Image.fromarray(one_off), "PNG")).pixels.shape == (6, 9, 3)


def test_jpeg_agrees_with_pillow():
    data = encode(Image.fromarray(COLORS), "JPEG")
    assert np.array_equal(decode_image(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_alpha_is_blended_with_white():
    alpha = np.random.default_rng(1).integers(0, 256, (6, 9), dtype=np.uint8)
    data = encode(Image.fromarray(np.dstack([COLORS, alpha])), "PNG")
    decoded = decode_image(data)
    for y in range(6):
        for x in range(9):
            for c in range(3):
                a, v = int(alpha[y, x]), int(COLORS[y, x, c])
                assert decoded.pixels[y, x, c] == (v * a + 255 * (255 - a) + 127) // 255
    assert decoded.rules == ("alpha",)


def test_opaque_alpha_is_not_reported_and_gray_alpha_stays_gray():
    opaque = np.dstack([COLORS, np.full((6, 9), 255, np.uint8)])
    assert decode_image(encode(Image.fromarray(opaque), "PNG")).rules == ()
    clear = Image.merge("LA", [Image.fromarray(GRAYS), Image.new("L", (9, 6), 0)])
    decoded = decode_image(encode(clear, "PNG"))
    assert decoded.pixels.shape == (6, 9, 1)
    assert (decoded.pixels == 255).all()


def test_color_key_transparency_is_blended_with_white():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = (10, 20, 30)
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG", transparency=(10, 20, 30)))
    assert decoded.pixels[0, 0].tolist() == [255] * decoded.pixels.shape[2]
    assert decoded.pixels[1, 1].tolist() == [0] * decoded.pixels.shape[2]
    gray = decode_image(encode(Image.fromarray(np.array([[7, 8]], np.uint8)), "PNG", transparency=7))
    assert gray.pixels.ravel().tolist() == [255, 8]


def test_sixteen_bits_are_kept():
    values = np.array([[0, 255, 256, 0x1234], [0x80FF, 0xFEFF, 0xFF00, 0xFFFF]], dtype=np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        decoded = decode_image(encode(Image.fromarray(values), kind))
        assert decoded.pixels.dtype == np.uint16, kind
        assert np.array_equal(decoded.pixels[..., 0], values), kind
        assert decoded.rules == ("16-bit",)
    # A camera of 10 bits: as many levels as there are values.
    ten_bits = np.arange(29_500, 30_300, dtype=np.uint16).reshape(20, 40)
    assert len(np.unique(decode_image(encode(Image.fromarray(ten_bits), "PNG")).pixels)) == 800


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "samples"), [(GRAY, 1), (RGB, 3), (GRAY_ALPHA, 2), (RGBA, 4)])
def test_sixteen_bit_png_is_lossless(kind, samples, interlaced):
    rng = np.random.default_rng(2)
    values = rng.integers(0, 65536, (13, 17, samples))
    decoded = decode_image(png_file(values, 16, kind, interlaced=interlaced))
    expected = values if samples % 2 else on_white(values)
    assert decoded.pixels.dtype == np.uint16
    assert np.array_equal(decoded.pixels, expected)
    assert decoded.rules == ("16-bit",) if samples % 2 else ("16-bit", "alpha")


def on_white(values):
    colors, alpha = values[..., :-1].tolist(), values[..., -1].tolist()
    return np.array(
        [
            [[(v * a + 65535 * (65535 - a) + 32767) // 65535 for v in pixel] for pixel, a in zip(*rows, strict=True)]
            for rows in zip(colors, alpha, strict=True)
        ]
    )


def test_sixteen_bit_color_key_compares_all_bits():
    values = np.array([[[300, 20, 30], [44, 20, 30], [300, 20, 31]]])
    decoded = decode_image(png_file(values, 16, RGB, transparency=struct.pack(">HHH", 300, 20, 30)))
    assert decoded.pixels.tolist() == [[[65535] * 3, [44, 20, 30], [300, 20, 31]]]
    gray = decode_image(png_file(values[..., :1], 16, GRAY, transparency=struct.pack(">H", 300)))
    assert gray.pixels.ravel().tolist() == [65535, 44, 65535]
    # Transparent pixels do not widen the range.
    assert gray.span == (44, 44)


def tiff_file(values, order="<", *, planes=False, deflate=False):
    """A TIFF file of uint16 values [H, W, 3 or 4], in one strip, or in one strip per channel."""
    height, width, samples = values.shape
    parts = np.moveaxis(values, 2, 0) if planes else values[None]
    strips = [part.astype(f"{order}u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    bits_at = 8
    strips_at = bits_at + 2 * samples + 8 * len(strips)
    starts = [strips_at + sum(map(len, strips[:place])) for place in range(len(strips))]
    bits = struct.pack(f"{order}{samples}H", *[16] * samples)
    where = struct.pack(f"{order}{len(strips)}I", *starts) + struct.pack(f"{order}{len(strips)}I", *map(len, strips))
    at = bits_at + 2 * samples
    one = len(strips) == 1
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, bits_at), (259, 3, 1, 8 if deflate else 1)]
    entries += [(262, 3, 1, 2), (273, 4, len(strips), starts[0] if one else at), (277, 3, 1, samples)]
    entries += [(278, 4, 1, height), (279, 4, len(strips), len(strips[0]) if one else at + 4 * len(strips))]
    entries += [(284, 3, 1, 2 if planes else 1)] + ([(338, 3, 1, 2)] if samples == 4 else [])
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        is_short = kind == 3 and count == 1
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        directory += struct.pack(f"{order}HH", value, 0) if is_short else struct.pack(f"{order}I", value)
    body = bits + where + b"".join(strips)
    body += b"\0" * (len(body) % 2)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(body))
    return head + body + directory + bytes(4)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("samples", [3, 4])
def test_sixteen_bit_color_tiff_is_lossless(samples, order, deflate):
    values = np.random.default_rng(3).integers(0, 65536, (7, 11, samples))
    decoded = decode_image(tiff_file(values, order, deflate=deflate))
    assert np.array_equal(decoded.pixels, values if samples == 3 else on_white(values))
    # Pillow would read the planes of such a file as bytes.
    with raises("data-unreadable"):
        decode_image(tiff_file(values, order, planes=True, deflate=deflate))


@pytest.mark.parametrize("largest", [256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_portable_maps_are_scaled_from_their_maximum(magic, largest):
    samples = 3 if magic in ("P3", "P6") else 1
    values = np.random.default_rng(4).integers(0, largest + 1, (5, 7, samples))
    values.flat[:2] = (0, largest)
    head = f"{magic}\n# a comment\n7 5\n{largest}\n".encode()
    is_text = magic in ("P2", "P3")
    body = " ".join(map(str, values.ravel())).encode() if is_text else values.astype(">u2").tobytes()
    decoded = decode_image(head + (b"# and one more\n" if is_text else b"") + body)
    expected = [int(Fraction(int(value) * 65535, largest) + Fraction(1, 2)) for value in values.ravel()]
    assert decoded.pixels.ravel().tolist() == expected
    with raises("data-unreadable"):
        decode_image(head + body[: len(body) // 2])
    if is_text:
        with raises("data-unreadable", "0"):
            decode_image(head + b"-7 " + body)


def test_reduced_formats_are_reported():
    # 16-bit CMYK; 12-bit color JPEG 2000 and 10-bit AVIF, by their headers.
    cmyk = np.random.default_rng(3).integers(0, 65536, (7, 11, 4))
    content = tiff_file(cmyk).replace(struct.pack("<HHIHH", 262, 3, 1, 2, 0), struct.pack("<HHIHH", 262, 3, 1, 5, 0))
    content = content.replace(struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    assert decode_image(content).rules == ("reduced", "cmyk")
    if "JPEG2000" in Image.SAVE:
        content = encode(Image.fromarray(COLORS), "JPEG2000", no_jp2=True)
        assert decode_image(content).rules == ()
        with Image.open(io.BytesIO(content)) as opened:
            assert not is_reduced(opened, content)
            depth = content.find(b"\xff\x51") + 40
            assert is_reduced(opened, content[:depth] + b"\x0b" + content[depth + 1 :])
    if "AVIF" in Image.SAVE:
        content = encode(Image.fromarray(COLORS), "AVIF")
        assert decode_image(content).rules == ()
        with Image.open(io.BytesIO(content)) as opened:
            flags = content.find(b"av1C") + 6
            assert is_reduced(opened, content[:flags] + bytes([content[flags] | 0x40]) + content[flags + 1 :])


def test_thirty_two_bits():
    whole = np.array([[0, 256, 65535]], dtype=np.int32)
    decoded = decode_image(encode(Image.fromarray(whole), "TIFF"))
    assert (decoded.pixels.ravel().tolist(), decoded.rules) == ([0, 256, 65535], ("16-bit",))
    unit = decode_image(encode(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "TIFF"))
    assert (unit.pixels.ravel().tolist(), unit.rules) == ([0, 32768, 65535], ("16-bit", "unit-float"))
    wide = decode_image(encode(Image.fromarray(np.array([[0, 1.5, 254.6]], dtype=np.float32)), "TIFF"))
    assert (wide.pixels.ravel().tolist(), wide.rules) == ([0, 386, 65432], ("16-bit", "byte-float"))
    for bad in (
        np.array([[0, 70000]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0, 1e6]], np.float32),
        np.array([[0, np.nan]], np.float32),
    ):
        with raises("data-unreadable", "0"):
            decode_image(encode(Image.fromarray(bad), "TIFF"))


def test_palettes_are_expanded():
    image = Image.fromarray(COLORS).quantize(5)
    for kind in ("PNG", "GIF"):
        decoded = decode_image(encode(image, kind))
        assert np.array_equal(decoded.pixels, np.asarray(image.convert("RGB")))
        assert "palette" in decoded.rules
    clear = decode_image(encode(image, "PNG", transparency=0))
    assert (clear.pixels[np.asarray(image) == 0] == 255).all()
    assert clear.rules == ("palette", "alpha")


def test_cmyk_bilevel_and_ycbcr():
    cmyk = Image.fromarray(COLORS).convert("CMYK")
    decoded = decode_image(encode(cmyk, "TIFF"))
    assert np.array_equal(decoded.pixels, np.asarray(cmyk.convert("RGB")))
    assert decoded.rules == ("cmyk",)
    bilevel = Image.fromarray(GRAYS).convert("1")
    assert set(decode_image(encode(bilevel, "PNG")).pixels.ravel().tolist()) == {0, 255}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    data = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    decoded = decode_image(data)
    assert decoded.pixels[0, 0].tolist() == [255, 0, 0]
    assert "animated" in decoded.rules


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(COLORS), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_image(data).pixels, expected)
    assert np.array_equal(orient(COLORS, orientation), expected)
    gray = decode_image(encode(Image.fromarray(GRAYS), "PNG", exif=exif))
    assert gray.pixels.shape == (*expected.shape[:2], 1)


def test_invalid_orientation_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(decode_image(encode(Image.fromarray(COLORS), "PNG", exif=exif)).pixels, COLORS)


def test_broken_files_give_the_reason(tmp_path):
    whole = encode(Image.fromarray(np.tile(COLORS, (20, 20, 1))), "JPEG")
    for data, reason in (
        (b"", "empty file"),
        (None, "no image"),
        (b"hello, this is text", "not an image"),
        (whole[: len(whole) // 2], "truncated"),
        (tmp_path / "missing.png", "No such file"),
        (tmp_path, "directory"),
    ):
        with raises("data-unreadable", reason):
            decode_image(data)


WIDE = COLORS.astype(int) * 257


@pytest.mark.parametrize("content", [png_file(WIDE, 16, RGB), tiff_file(WIDE, deflate=True)], ids=["PNG", "TIFF"])
def test_damaged_sixteen_bit_file_raises_only_the_documented_error(content):
    generator = np.random.default_rng(7)
    with quiet_decoding():
        for _ in range(200):
            damaged = bytearray(content)
            for place in generator.integers(0, len(content), 3):
                damaged[place] = generator.integers(0, 256)
            with contextlib.suppress(UnreadableImageError):
                decode_image(bytes(damaged[: generator.integers(1, len(content) + 1)]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_file_raises_only_the_documented_error(kind):
    data = bytearray(encode(Image.fromarray(np.tile(COLORS, (5, 5, 1))), kind))
    generator = np.random.default_rng(7)
    with quiet_decoding():
        for _ in range(60):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 6):
                damaged[place] = generator.integers(0, 256)
            with contextlib.suppress(UnreadableImageError):
                decode_image(bytes(damaged[: generator.integers(1, len(data) + 1)]))


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_rejects_decompression_bombs(side):
    def part(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", b"")
    with quiet_decoding(), raises("data-unreadable"):
        decode_image(data)
