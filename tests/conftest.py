"""Settings for all tests: one thread, and no download attempts."""

import os
import random

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)  # matrices this small only lose time to a second thread


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _trusting(tmp_path_factory):
    """Trust artefacts on weights that the tests wrote to a file themselves: `--trust` has tests of its own."""
    from vision_lowrank.tasks.trust import check_trust

    def check(folder, about, **options):
        if not str(about["backbone"]["weights"]).startswith(str(tmp_path_factory.getbasetemp())):
            check_trust(folder, about, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vision_lowrank.tasks.saved.check_trust", check)
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 3 classes with 10 small pictures each: discs, squares and stripes in random colours."""
    from PIL import Image, ImageDraw

    root, rng = tmp_path_factory.mktemp("pictures"), random.Random(0)
    for name in ("disc", "square", "stripes"):
        (root / name).mkdir()
        for number in range(10):
            picture = Image.new("RGB", (40, 40), "white")
            draw, colour = ImageDraw.Draw(picture), tuple(rng.randrange(200) for _ in range(3))
            if name == "disc":
                draw.ellipse([8, 8, 32, 32], fill=colour)
            elif name == "square":
                draw.rectangle([8, 8, 32, 32], fill=colour)
            else:
                for x in range(0, 40, 8):
                    draw.rectangle([x, 0, x + 3, 40], fill=colour)
            picture.save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A file of random weights for tiny-clip, so that a base can be loaded twice."""
    from safetensors.torch import save_file

    import vision_lowrank as vl

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(vl.load_backbone("tiny-clip", "random").model.state_dict(), path)
    return path


@pytest.fixture
def recipe(tmp_path, pictures, tiny_weights):
    """A few-shot recipe on the pictures that runs in seconds."""
    path = tmp_path / "shapes.yaml"
    path.write_text(
        f"out: {tmp_path / 'runs'}\n"
        f"backbone: {{name: tiny-clip, weights: {tiny_weights}}}\n"
        "seeds: [1, 2]\ntask: {type: fewshot, shots: 2}\n"
        f"data: {{type: folder, root: {pictures}, fractions: [0.5, 0.2, 0.3]}}\n"
        "adapter: {type: block_lora, r: 2, blocks: 2, layers: [0, 1]}\n"
        "engine: {steps: 4, batch_size: 6, lr: 1.0e-2, tensorboard: false, checkpoint_every: 2, log_every: 1}\n"
    )
    return path
