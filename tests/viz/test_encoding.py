"""Pictures as bytes: they come back, and stay below the size that was asked for where a quality does."""

import base64
import io

import numpy as np
from PIL import Image

from vision_lowrank.viz.encoding import data_uri, encode_png, encode_webp

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def test_a_data_uri_holds_the_picture():
    kind, _, text = data_uri(encode_png(NOISE), "png").partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(text))) as again:
        assert np.array_equal(np.asarray(again), np.asarray(NOISE))


def test_a_webp_takes_the_best_quality_that_fits():
    best = encode_webp(NOISE, 10**6)
    assert encode_webp(NOISE, len(best)) == best
    less = encode_webp(NOISE, len(best) - 1)
    assert len(less) < len(best)
    assert len(encode_webp(NOISE, 1)) <= len(less)
