from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import correlate1d

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.data.manipulation.robustness import Degradation, curves, encoded, parse
from vision_lowrank.errors import DataError, UserError

ALL = [degradation for curve in curves().values() for degradation in curve]


def picture(width=61, height=44, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def values(image):
    return np.asarray(image, dtype=np.float64)


def test_the_standard_curves_are_the_cards():
    levels = {name: [degradation.level for degradation in curve] for name, curve in curves().items()}
    assert levels.pop("gaussian_blur") == [3, 7, 11, 15, 19, 23]
    assert levels.pop("gaussian_noise") == [3, 7, 11, 15, 19, 23]
    assert levels.pop("jpeg") == [100, 90, 80, 70, 60, 50]
    assert levels.pop("webp") == [90, 80, 70, 60, 50]
    assert levels.pop("resize") == [0.75, 0.5]
    assert list(levels) == ["social", "double_jpeg", "screenshot"]


@pytest.mark.parametrize("name", curves())
def test_level_zero_returns_the_very_picture_and_mask(name):
    clean, image, mask = Degradation(name, 0), picture(), np.eye(44, 61, dtype=bool)
    assert clean.clean
    assert clean.apply(image, "a") is image
    assert clean.apply_mask(mask) is mask
    assert clean.size(61, 44) == (61, 44)


@pytest.mark.parametrize("degradation", ALL, ids=str)
def test_every_level_repeats_keeps_its_input_and_has_a_text_form(degradation):
    image = picture()
    before = image.tobytes()
    once, again = degradation.apply(image, "a"), degradation.apply(picture(), "a")
    assert once == again
    assert image.tobytes() == before
    assert once.mode == "RGB"
    assert once.size == degradation.size(*image.size)
    assert (once == image) == (degradation.name == "screenshot")
    assert parse(str(degradation)) == degradation


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
@pytest.mark.parametrize("name", curves())
def test_tiny_pictures_survive_the_strongest_level(name, size):
    strongest = curves()[name][-1]
    assert strongest.apply(picture(*size)).size == strongest.size(*size)
    assert strongest.apply_mask(np.ones(size[::-1], dtype=bool)).all()


@pytest.mark.parametrize("quality", [50, 71, 100])
def test_jpeg_has_pillows_tables_of_exactly_that_quality_and_its_chroma(quality, monkeypatch):
    files = []
    original = Image.Image.save

    def save(self, target, encoding, **options):
        original(self, target, encoding, **options)
        files.append(target.getvalue())

    monkeypatch.setattr(Image.Image, "save", save)
    Degradation("jpeg", quality).apply(picture())
    monkeypatch.undo()
    reference = BytesIO()
    picture().save(reference, "JPEG", quality=quality, subsampling=2)
    assert files == [reference.getvalue()]
    with Image.open(BytesIO(files[0])) as read:
        assert read.layer[0][1:3] == (2, 2)  # luma has twice the samples of chroma in x and in y


@pytest.mark.parametrize("kernel", [3, 7, 23])
def test_blur_is_a_gaussian_of_that_many_taps(kernel):
    image = picture()
    blurred = Degradation("gaussian_blur", kernel).apply(image)
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    taps = np.exp(-((np.arange(kernel) - (kernel - 1) / 2) ** 2) / (2 * sigma**2))
    expected = values(image)
    for axis in (0, 1):
        expected = correlate1d(expected, taps / taps.sum(), axis=axis, mode="mirror")
    assert np.abs(values(blurred) - expected).max() <= 0.5 + 1e-3
    cv2 = pytest.importorskip("cv2")
    other = cv2.GaussianBlur(values(image), (kernel, kernel), sigma)
    assert np.abs(values(blurred) - other).max() <= 0.5 + 1e-3


def test_noise_has_its_variance_and_belongs_to_the_picture():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    for variance in (3, 23):
        residual = values(Degradation("gaussian_noise", variance).apply(grey, "a")) - 128
        assert residual.var() == pytest.approx(variance + 1 / 12, rel=0.02)  # rounding to 8 bits adds 1/12
        assert abs(residual.mean()) < 0.05
        assert abs(np.corrcoef(residual[..., 0].ravel(), residual[..., 1].ravel())[0, 1]) < 0.02
    weak, strong = (values(Degradation("gaussian_noise", v).apply(grey, "a")) - 128 for v in (3, 23))
    other = values(Degradation("gaussian_noise", 23).apply(grey, "b")) - 128
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(other.ravel(), strong.ravel())[0, 1]) < 0.02


def test_chains_are_what_they_are_made_of():
    image = picture(2200, 60)
    small = image.resize((2048, 56), Image.Resampling.BICUBIC)
    assert Degradation("social", 75).apply(image) == Degradation("jpeg", 75).apply(small)
    narrow = picture(100, 60)
    assert Degradation("social", 75).apply(narrow) == Degradation("jpeg", 75).apply(narrow)
    twice = Degradation("jpeg", 90).apply(Degradation("jpeg", 50).apply(narrow))
    assert Degradation("double_jpeg", 50).apply(narrow) == twice


def test_a_screenshot_keeps_pixels_and_drops_what_the_file_says():
    image = picture()
    image.info.update(exif=b"camera", icc_profile=b"profile", comment=b"edited with")
    shot = Degradation("screenshot", 1).apply(image)
    assert shot == picture()
    assert not shot.info


def test_masks_and_boxes_follow_the_geometry():
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:20, 30:50] = True
    half = Degradation("resize", 0.5)
    expected = np.zeros((20, 30), dtype=bool)
    expected[5:10, 15:25] = True
    assert half.apply_mask(mask).dtype == bool
    np.testing.assert_array_equal(half.apply_mask(mask), expected)
    _, boxes = half.apply_truth(None, Boxes([(30, 10, 50, 20)], size=(60, 40)), 60, 40)
    assert (list(boxes), boxes.size) == ([(15, 5, 25, 10)], (30, 20))
    for degradation in (Degradation("jpeg", 50), Degradation("gaussian_blur", 23)):
        assert degradation.apply_mask(mask) is mask
    assert Degradation("social", 75).apply_mask(np.ones((4, 4096), dtype=bool)).shape == (2, 2048)


def test_what_a_text_names_and_what_it_does_not():
    assert parse("jpeg-70") == Degradation("jpeg", 70)
    assert parse("social") == Degradation("social", 75)
    assert parse("screenshot") == Degradation("screenshot", 1)
    for text, message in {
        "jepg-70": "Did you mean 'jpeg'",
        "blurr": "unknown degradation 'blurr'",
        "jpeg": "lacks its level",
        "jpeg-high": "no number",
        "jpeg-70.5": "a whole quality",
        "jpeg-nan": "a whole quality",
        "webp-101": "from 1 to 100",
        "gaussian_blur-4": "an odd kernel",
        "gaussian_noise--3": "variance above 0",
        "resize-inf": "a factor",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            parse(text)
        assert len(str(caught.value).splitlines()) == 1


def test_a_picture_too_large_for_a_format_is_named():
    with pytest.raises(DataError, match="20000 x 1 pixels cannot be saved as WEBP"):
        encoded(Image.new("RGB", (20000, 1)), "WEBP", quality=80)
