import os
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vision_lowrank.data import images
from vision_lowrank.data.images import batches, image_size, read_image, readable
from vision_lowrank.errors import DataError


def noise(mode="RGB", size=(64, 48)):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(Image.new(mode, (1, 1)).getbands())))
    return Image.fromarray(values.astype(np.uint8).squeeze(), mode)


def pixels(picture):
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_formats_without_loss_give_the_same_pixels(tmp_path, suffix):
    picture = noise()
    path = tmp_path / f"a.{suffix}"
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(pixels(read_image(path)), pixels(picture))


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, undo):
    picture = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(read_image(tmp_path / "a.png")), undo(pixels(picture)))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_exif_data_that_cannot_be_parsed_leave_the_picture_as_it_is(tmp_path, suffix):
    picture = noise()
    picture.save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0nonsense", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(pixels(read_image(tmp_path / f"a.{suffix}")), pixels(picture))


def test_orientation_is_applied_where_another_entry_is_malformed(tmp_path):
    def entry(tag, kind, count, value):
        return struct.pack("<HHI", tag, kind, count) + value

    entries = entry(0x0112, 3, 1, b"\6\0\0\0") + entry(0x0128, 2, 2, b"ab\0\0") + entry(0x8769, 2, 2, b"ab\0\0")
    picture = noise()
    picture.save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\3\0" + entries + bytes(4))
    assert np.array_equal(pixels(read_image(tmp_path / "a.png")), np.rot90(pixels(picture), -1))


def test_sixteen_bit_grey_keeps_the_high_byte(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    values[0, :2] = 0, 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        got = pixels(read_image(tmp_path / name))
        assert np.array_equal(got, np.rint(values / 257)[..., None].repeat(3, 2))


def test_float_grey_is_stretched_over_its_own_range(tmp_path):
    values = np.linspace(-2, 6, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(pixels(read_image(tmp_path / "a.tif"))[..., 0], np.rint((values + 2) / 8 * 255))
    Image.fromarray(np.full((3, 4), 7, np.float32)).save(tmp_path / "flat.tif")
    assert pixels(read_image(tmp_path / "flat.tif")).max() == 0


def test_values_that_are_no_numbers_are_black_and_change_no_other(tmp_path):
    values = np.array([[1, 3, np.nan], [np.inf, 5, -np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert pixels(read_image(tmp_path / "a.tif"))[..., 0].tolist() == [[0, 128, 0], [0, 255, 0]]
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "none.tif")
    with pytest.raises(DataError, match=r"none\.tif' cannot be read: no value is finite\. Replace"):
        read_image(tmp_path / "none.tif")


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = pixels(read_image(tmp_path / "a.jpg"))[8, 8]
    assert red < 10
    assert green > 245
    assert blue > 245


def test_palette_with_transparency_lies_on_white(tmp_path):
    picture = Image.new("P", (4, 2))
    picture.putpalette([0, 0, 0, 200, 10, 20])
    picture.paste(1, (0, 0, 2, 2))
    picture.save(tmp_path / "a.png", transparency=0)
    assert pixels(read_image(tmp_path / "a.png"))[0].tolist() == [[200, 10, 20]] * 2 + [[255] * 3] * 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_partial_transparency_is_mixed_with_white(tmp_path, mode):
    picture = noise(mode)
    picture.save(tmp_path / "a.png")
    rgba = np.asarray(picture.convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    assert np.abs(pixels(read_image(tmp_path / "a.png")) - (rgba[..., :3] * share + 255 * (1 - share))).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_bilevel_become_rgb(tmp_path, mode):
    picture = noise("L").convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(pixels(read_image(tmp_path / "a.png")), pixels(picture.convert("RGB")))


def test_an_animation_gives_its_first_frame(tmp_path):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert pixels(read_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def broken(folder, kind):
    path = folder / f"{kind}.jpg"
    if kind == "text":
        path.write_text("this is no picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    else:
        noise(size=(200, 200)).save(path, format={"cut_jpeg": "JPEG", "cut_png": "PNG", "cut_webp": "WEBP"}[kind])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_program_that_draws_is_not_run(tmp_path):
    (tmp_path / "drawn.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    with pytest.raises(DataError, match=r"drawn\.png' cannot be read: EPS is a program, which is not run\."):
        read_image(tmp_path / "drawn.png")


def test_a_pipe_is_named_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png' cannot be read: no regular file"):
        read_image(tmp_path / "pipe.png")


KINDS = ["text", "empty", "cut_jpeg", "cut_png", "cut_webp", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_named_in_one_line(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(DataError, match=f"picture '.*{kind}.jpg' cannot be read: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"picture 'nowhere\.png' does not exist"):
        read_image("nowhere.png")


def test_a_picture_in_strips_is_the_picture(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65536, (50, 30)).astype(np.uint16)).save(tmp_path / "grey.png")
    Image.fromarray(rng.normal(size=(50, 30)).astype(np.float32)).save(tmp_path / "float.tif")
    noise("RGBA").save(tmp_path / "alpha.png")
    noise("L").convert("P").save(tmp_path / "palette.png", transparency=7)
    names = ("grey.png", "float.tif", "alpha.png", "palette.png")
    whole = [pixels(read_image(tmp_path / name)) for name in names]
    monkeypatch.setattr(images, "_STRIP", 7 * 64)
    for name, expected in zip(names, whole, strict=True):
        assert np.array_equal(pixels(read_image(tmp_path / name)), expected), name


def test_deep_grey_needs_no_more_than_a_few_bytes_a_pixel(tmp_path):
    Image.fromarray(np.full((3000, 4000), 40000, np.uint16)).save(tmp_path / "deep.png")
    tracemalloc.start()
    assert read_image(tmp_path / "deep.png").getpixel((5, 5)) == (156,) * 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 4_000_000 * 3  # strips as float64; the whole picture would take 8 bytes a pixel, several times


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_sizes_are_those_of_the_upright_picture(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise().save(tmp_path / name, exif=exif)
    assert image_size(tmp_path / name) == read_image(tmp_path / name).size
    noise().save(tmp_path / name)
    assert image_size(tmp_path / name) == (64, 48)


def test_sizes_of_png_files_are_read_without_decoding(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(tmp_path / "a.png") == (64, 48)


def test_batches_hold_so_many_items_and_pixels():
    assert list(batches([3, 3, 3, 9, 1, 1, 1, 1], 3, int, 7)) == [[3, 3], [3], [9], [1, 1, 1], [1]]
    assert list(batches([], 3, int, 7)) == []


def test_a_format_that_pillow_does_not_know_is_named(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(DataError, match=r"Pillow cannot decode \.heic here"):
        read_image(tmp_path / "a.heic")


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    noise(size=(100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DataError, match=r"'a.png' cannot be read: more than 8,000 pixels"):
        read_image(tmp_path / "a.png", "a.png")
    with pytest.raises(DataError, match=r"'a.png': more than 8,000 pixels"):
        readable(tmp_path, ["a.png"], skip_broken=False)


def test_the_check_finds_every_kind_of_broken_file_and_passes_the_others(tmp_path):
    good = []
    for suffix in ("jpg", "png", "webp", "gif", "tif"):
        noise().save(tmp_path / f"good.{suffix}")
        good.append(f"good.{suffix}")
    trailing = tmp_path / "trailing.jpg"
    noise().save(trailing)
    trailing.write_bytes(trailing.read_bytes() + b"\0" * 10_000)
    good.append(trailing.name)
    bad = [broken(tmp_path, kind).name for kind in KINDS]
    with pytest.warns(UserWarning, match=r"6 of 12 pictures .* the first is 'text.jpg': not a picture. Left out"):
        assert readable(tmp_path, bad + good, skip_broken=True) == good
    with pytest.raises(DataError, match=r"6 of 12 pictures .* data.skip_broken=true leaves them out"):
        readable(tmp_path, good + bad, skip_broken=False)
