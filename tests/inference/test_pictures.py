import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.errors import DataError
from vision_lowrank.inference.pictures import jpeg_quality, read_photo, sha256

# Luminance table of ITU-T T.81, Annex K.1.
K1 = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (140, 150, 3), dtype=np.uint8))


def warned(path):
    return " | ".join(read_photo(path).warnings)


@pytest.mark.parametrize("quality", [5, 20, 40, 49, 50, 60, 75, 85, 95, 100])
def test_quality_is_found_from_tables_scaled_by_the_published_rule(photo, quality):
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = ((K1 * scale + 50) // 100).clip(1, 255).ravel().tolist()
    file = io.BytesIO()
    photo.save(file, "JPEG", qtables=[table, table])
    assert jpeg_quality(Image.open(file)) == pytest.approx(quality, abs=1)


def test_heavy_compression_is_warned_of(photo, tmp_path):
    photo.save(tmp_path / "heavy.jpg", quality=30)
    photo.save(tmp_path / "light.jpg", quality=80)
    assert "quality about 30" in warned(tmp_path / "heavy.jpg")
    assert warned(tmp_path / "light.jpg") == ""


def test_small_pictures_are_warned_of(photo, tmp_path):
    for size in ((127, 300), (128, 128)):
        photo.resize(size).save(tmp_path / f"{size[0]}.png")
    assert "smaller than 128" in warned(tmp_path / "127.png")
    assert warned(tmp_path / "128.png") == ""


def test_screenshots_are_png_of_a_screens_size_without_a_camera(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    Image.new("RGB", (1920, 1080)).save(tmp_path / "wide.png")
    Image.new("RGB", (1080, 1920)).save(tmp_path / "tall.png")
    Image.new("RGB", (1920, 1081)).save(tmp_path / "other.png")
    Image.new("RGB", (1920, 1080)).save(tmp_path / "camera.png", exif=exif)
    Image.new("RGB", (1920, 1080)).save(tmp_path / "wide.jpg")
    assert {path.name for path in tmp_path.iterdir() if "screenshot" in warned(path)} == {"wide.png", "tall.png"}


@pytest.mark.parametrize("ending", ["gif", "webp", "tif", "png"])
def test_only_the_first_frame_is_looked_at(tmp_path, ending):
    first, second = Image.new("RGB", (150, 150), "#ff0000"), Image.new("RGB", (150, 150), "#0000ff")
    first.save(tmp_path / f"x.{ending}", save_all=True, append_images=[second])
    photo = read_photo(tmp_path / f"x.{ending}")
    assert np.asarray(photo.image)[75, 75, 0] > 200
    assert any("only the first" in warning for warning in photo.warnings)


def test_exif_data_that_cannot_be_parsed_cost_neither_picture_nor_warnings(tmp_path):
    Image.new("RGB", (1920, 1080), "red").save(tmp_path / "x.png", exif=b"Exif\0\0nonsense")
    photo = read_photo(tmp_path / "x.png")
    assert (photo.format, photo.image.getpixel((5, 5))) == ("PNG", (255, 0, 0))
    assert any("screenshot" in warning for warning in photo.warnings)


def test_transparency_that_is_left_out_is_not_said_to_be_laid_on_white(tmp_path):
    Image.fromarray(np.full((130, 130), 40000, dtype=np.uint16)).save(tmp_path / "x.png", transparency=40000)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.has_transparency_data
    assert read_photo(tmp_path / "x.png").image.getpixel((5, 5)) == (156,) * 3
    assert warned(tmp_path / "x.png") == "more than 8 bits per channel: reduced to 8"


def png16(path, width=130, height=130):
    """A 16-bit RGB PNG, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 256, 0) * width for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_conversions_are_named(photo, tmp_path):
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg")
    photo.convert("P").save(tmp_path / "palette.png")
    photo.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(np.full((130, 130), 40000, dtype=np.uint16)).save(tmp_path / "grey16.png")
    png16(tmp_path / "rgb16.png")
    photo.convert("L").save(tmp_path / "grey.png")
    expected = {"cmyk.jpg": "CMYK", "palette.png": "palette", "alpha.png": "white", "grey16.png": "8 bits"}
    for name, word in (expected | {"rgb16.png": "8 bits"}).items():
        assert word in warned(tmp_path / name), name
        assert read_photo(tmp_path / name).image.mode == "RGB"
    assert warned(tmp_path / "grey.png") == ""
    assert read_photo(tmp_path / "rgb16.png").image.getpixel((3, 3)) == (255, 1, 0)


def test_orientation_is_applied(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.png", exif=exif)
    upright = read_photo(tmp_path / "turned.png").image
    assert upright.size == (140, 150)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(photo), -1))


def test_what_is_no_picture_is_said_in_words(photo, tmp_path, monkeypatch):
    photo.save(tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:300])
    (tmp_path / "empty.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("cut.png", "empty.jpg", "pipe.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            read_photo(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="more than 200 pixels"):
        read_photo(tmp_path / "x.png")


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    assert sha256(tmp_path) is None
    assert sha256(tmp_path / "missing") is None
