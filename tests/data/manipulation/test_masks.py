"""Masks of every usual kind: the same shape is read, or the file is refused."""

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.manipulation.base import ManipulationSet, PictureRecord
from vision_lowrank.data.manipulation.masks import AmbiguousMask, read_mask
from vision_lowrank.errors import DataError

SHAPE = np.zeros((8, 16), dtype=bool)
SHAPE[1:7, 2:9] = True


def grey(value, kind=np.uint8):
    return Image.fromarray(np.where(SHAPE, value, 0).astype(kind))


def coloured(colour):
    return Image.fromarray(np.where(SHAPE[..., None], colour, 0).astype(np.uint8))


def palette(colours, entry=1):
    picture = Image.fromarray(np.where(SHAPE, entry, 0).astype(np.uint8), "P")
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def with_alpha(shown, hidden):
    """Colour and alpha inside the shape, and outside."""
    return Image.fromarray(np.where(SHAPE[..., None], shown, hidden).astype(np.uint8), "RGBA")


BLACK, WHITE, RED = (0, 0, 0), (255,) * 3, (128, 0, 0)
PLAIN = {
    "white.png": grey(255),
    "soft.png": grey(128),
    "bits.png": Image.fromarray(SHAPE),
    "deep.png": grey(65535, np.uint16),
    "deep_half.png": grey(32768, np.uint16),
    "float.tif": grey(1, np.float32),
    "float255.tif": grey(255, np.float32),
    "magenta.png": coloured((255, 0, 255)),
    "palette.png": palette([BLACK, WHITE]),
    "yellow_palette.png": palette([BLACK, (255, 255, 0)]),
    "opaque.png": with_alpha((255, 255, 255, 255), (0, 0, 0, 255)),
    "white_on_nothing.png": with_alpha((255, 255, 255, 255), (0, 0, 0, 0)),
}
TOLD = {
    "ones.png": grey(1),
    "ones.tif": grey(1),
    "ones_rgb.png": coloured((1, 1, 1)),
    "ones_16.png": grey(1, np.uint16),
    "ones_32.tif": grey(1, np.int32),
    "bytes_in_16.png": grey(255, np.uint16),
    "red_palette.png": palette([BLACK, RED]),
    "ones_with_alpha.png": with_alpha((1, 1, 1, 255), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_black_and_white_is_read_as_it_looks(tmp_path, name, recwarn):
    PLAIN[name].save(tmp_path / name)
    assert np.array_equal(read_mask(tmp_path / name), SHAPE)
    assert not list(recwarn)


@pytest.mark.parametrize("name", TOLD)
def test_other_kinds_are_read_by_sense_and_that_is_said(tmp_path, name):
    TOLD[name].save(tmp_path / name)
    with pytest.warns(UserWarning, match="^masks, one or more, .* taken as "):
        assert np.array_equal(read_mask(tmp_path / name), SHAPE)


def test_a_transparent_palette_entry_changes_nothing(tmp_path):
    palette([BLACK, WHITE]).save(tmp_path / "a.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "a.png"), SHAPE)
    grey(255).save(tmp_path / "b.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "b.png"), SHAPE)


def test_how_a_kind_was_taken_is_said_once(tmp_path, recwarn):
    import warnings

    warnings.simplefilter("default")
    for name in ("a.png", "b.png"):
        grey(1).save(tmp_path / name)
        read_mask(tmp_path / name)
    assert len(recwarn) == 1


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (grey(126), "its highest value is 126; white is 255"),
        (grey(100), "neither black and white nor 0 and 1 (its highest value is 100; white is 255)"),
        (grey(2), "its highest value is 2; white is 255"),
        (grey(100, np.uint16), "its highest value is 100; white is 255"),
        (grey(3000, np.uint16), "its highest value is 3000; white is 65535"),
        (coloured((255, 0, 0)), "its highest value is 255; white is 765"),
        (palette([BLACK, RED, RED], entry=2), "2 entries of a coloured palette"),
        (with_alpha((255, 255, 255, 0), (0, 0, 0, 255)), "is white where it is transparent"),
        (with_alpha((255, 255, 255, 255), (255, 255, 255, 0)), "is white where it is transparent"),
        (with_alpha((0, 0, 0, 255), (0, 0, 0, 0)), "is black, and transparent in parts"),
    ],
)
def test_what_may_mean_several_things_is_refused(tmp_path, picture, said):
    picture.save(tmp_path / "m.png")
    with pytest.raises(AmbiguousMask) as caught:
        read_mask(tmp_path / "m.png", "m.png")
    assert said in str(caught.value)
    assert "255 where edited" in str(caught.value)


def test_what_just_fails_to_be_above_half_is_black(tmp_path):
    grey(127).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png").any()


def test_noise_of_jpeg_is_black(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (8, 16)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "m.jpg", quality=100)
    assert np.asarray(Image.open(tmp_path / "m.jpg")).any()
    assert not read_mask(tmp_path / "m.jpg").any()


def test_files_that_are_no_masks_are_named(tmp_path):
    (tmp_path / "m.png").write_text("words")
    with pytest.raises(DataError, match=r"mask 'm\.png' cannot be read: not a picture\. Replace"):
        read_mask(tmp_path / "m.png", "m.png")
    with pytest.raises(DataError, match="mask 'no' does not exist"):
        read_mask(tmp_path / "no", "no")


@pytest.mark.parametrize("stated", [(None, None), (8, 16)])
def test_a_mask_of_another_size_than_its_picture_is_refused_where_it_is_asked_for(tmp_path, stated):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 8)).save(tmp_path / "turned.jpg", exif=exif)
    grey(255).save(tmp_path / "wide.png")
    grey(255).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    width, height = stated
    records = [
        PictureRecord(mask, "turned.jpg", 1, "r", mask=mask, width=width, height=height)
        for mask in ("tall.png", "wide.png")
    ]
    images = ManipulationSet.of("x", records, tmp_path)
    assert images.mask(0).shape == (16, 8)
    with pytest.raises(DataError, match=r"mask 'wide\.png' is 16 x 8 pixels, its picture 'turned\.jpg' 8 x 16"):
        images.mask(1)
