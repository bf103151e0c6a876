"""Decoding: every odd format by its stated rule, and every broken file by its reason."""

import contextlib
import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from thaw.data.decode import UnreadableImageError, decode_image, orient, quiet_decoding

COLOURS = np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_colour_comes_back(kind):
    decoded = decode_image(encode(Image.fromarray(COLOURS), kind))
    assert np.array_equal(decoded.pixels, COLOURS)
    assert decoded.rules == ()


def test_grey_is_decided_by_content():
    for image in (Image.fromarray(GREYS), Image.fromarray(np.stack([GREYS] * 3, axis=-1))):
        assert np.array_equal(decode_image(encode(image, "WEBP", lossless=True)).pixels, GREYS[..., None])
    one_off = np.stack([GREYS] * 3, axis=-1)
    one_off[5, 8, 2] ^= 1
    assert decode_image(encode(Image.fromarray(one_off), "PNG")).pixels.shape == (6, 9, 3)


def test_jpeg_is_what_pillow_decodes():
    data = encode(Image.fromarray(COLOURS), "JPEG")
    assert np.array_equal(decode_image(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_alpha_is_placed_on_white():
    alpha = np.random.default_rng(1).integers(0, 256, (6, 9), dtype=np.uint8)
    data = encode(Image.fromarray(np.dstack([COLOURS, alpha])), "PNG")
    decoded = decode_image(data)
    for y in range(6):
        for x in range(9):
            for c in range(3):
                a, v = int(alpha[y, x]), int(COLOURS[y, x, c])
                assert decoded.pixels[y, x, c] == (v * a + 255 * (255 - a) + 127) // 255
    assert decoded.rules == ("alpha",)


def test_opaque_alpha_is_not_told_and_grey_alpha_stays_grey():
    opaque = np.dstack([COLOURS, np.full((6, 9), 255, np.uint8)])
    assert decode_image(encode(Image.fromarray(opaque), "PNG")).rules == ()
    clear = Image.merge("LA", [Image.fromarray(GREYS), Image.new("L", (9, 6), 0)])
    decoded = decode_image(encode(clear, "PNG"))
    assert decoded.pixels.shape == (6, 9, 1)
    assert (decoded.pixels == 255).all()


def test_colour_key_transparency_is_placed_on_white():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = (10, 20, 30)
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG", transparency=(10, 20, 30)))
    assert decoded.pixels[0, 0].tolist() == [255] * decoded.pixels.shape[2]
    assert decoded.pixels[1, 1].tolist() == [0] * decoded.pixels.shape[2]
    grey = decode_image(encode(Image.fromarray(np.array([[7, 8]], np.uint8)), "PNG", transparency=7))
    assert grey.pixels.ravel().tolist() == [255, 8]


def test_sixteen_bits_keep_the_high_byte():
    values = np.array([[0, 255, 256, 0x1234], [0x80FF, 0xFEFF, 0xFF00, 0xFFFF]], dtype=np.uint16)
    expected = (values >> 8).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        decoded = decode_image(encode(Image.fromarray(values), kind))
        assert np.array_equal(decoded.pixels[..., 0], expected), kind
        assert "16-bit" in decoded.rules or "32-bit" in decoded.rules


def test_sixteen_bit_colour_keeps_the_high_byte():
    values = np.random.default_rng(2).integers(0, 65536, (4, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def part(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = (5).to_bytes(4, "big") + (4).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    decoded = decode_image(data)
    assert np.array_equal(decoded.pixels, (values >> 8).astype(np.uint8))
    assert decoded.rules == ("16-bit",)


def test_thirty_two_bits():
    whole = np.array([[0, 256, 65535]], dtype=np.int32)
    assert decode_image(encode(Image.fromarray(whole), "TIFF")).pixels.ravel().tolist() == [0, 1, 255]
    unit = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert decode_image(encode(Image.fromarray(unit), "TIFF")).pixels.ravel().tolist() == [0, 128, 255]
    wide = np.array([[0, 1.5, 254.6]], dtype=np.float32)
    assert decode_image(encode(Image.fromarray(wide), "TIFF")).pixels.ravel().tolist() == [0, 2, 255]
    for bad in (
        np.array([[0, 70000]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0, 1e6]], np.float32),
        np.array([[0, np.nan]], np.float32),
    ):
        with pytest.raises(UnreadableImageError, match="expected 0 to"):
            decode_image(encode(Image.fromarray(bad), "TIFF"))


def test_palettes_are_expanded():
    image = Image.fromarray(COLOURS).quantize(5)
    for kind in ("PNG", "GIF"):
        decoded = decode_image(encode(image, kind))
        assert np.array_equal(decoded.pixels, np.asarray(image.convert("RGB")))
        assert "palette" in decoded.rules
    clear = decode_image(encode(image, "PNG", transparency=0))
    assert (clear.pixels[np.asarray(image) == 0] == 255).all()
    assert clear.rules == ("palette", "alpha")


def test_cmyk_bilevel_and_ycbcr():
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    decoded = decode_image(encode(cmyk, "TIFF"))
    assert np.array_equal(decoded.pixels, np.asarray(cmyk.convert("RGB")))
    assert decoded.rules == ("cmyk",)
    bilevel = Image.fromarray(GREYS).convert("1")
    assert set(decode_image(encode(bilevel, "PNG")).pixels.ravel().tolist()) == {0, 255}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    data = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    decoded = decode_image(data)
    assert decoded.pixels[0, 0].tolist() == [255, 0, 0]
    assert "animated" in decoded.rules


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(COLOURS), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_image(data).pixels, expected)
    assert np.array_equal(orient(COLOURS, orientation), expected)
    grey = decode_image(encode(Image.fromarray(GREYS), "PNG", exif=exif))
    assert grey.pixels.shape == (*expected.shape[:2], 1)


def test_nonsense_orientation_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(decode_image(encode(Image.fromarray(COLOURS), "PNG", exif=exif)).pixels, COLOURS)


def test_broken_files_say_why(tmp_path):
    whole = encode(Image.fromarray(np.tile(COLOURS, (20, 20, 1))), "JPEG")
    for data, reason in (
        (b"", "empty file"),
        (None, "no image"),
        (b"hello, this is text", "not an image"),
        (whole[: len(whole) // 2], "truncated"),
        (tmp_path / "missing.png", "No such file"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(UnreadableImageError, match=reason):
            decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_never_escapes_as_another_exception(kind):
    data = bytearray(encode(Image.fromarray(np.tile(COLOURS, (5, 5, 1))), kind))
    generator = np.random.default_rng(7)
    with quiet_decoding():
        for _ in range(60):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 6):
                damaged[place] = generator.integers(0, 256)
            with contextlib.suppress(UnreadableImageError):
                decode_image(bytes(damaged[: generator.integers(1, len(data) + 1)]))


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs_are_refused(side):
    def part(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", b"")
    with quiet_decoding(), pytest.raises(UnreadableImageError, match="pixels"):
        decode_image(data)
