"""Six classes of pictures that a random tiny-clip can tell apart somewhat, in three sessions of two."""

import random

import pytest
from PIL import Image, ImageDraw

COLOURS = {
    "amber": "#ffbf00",
    "blue": "#2040ff",
    "cyan": "#00d0d0",
    "green": "#20a020",
    "mauve": "#c080ff",
    "red": "red",
}


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("colours"), random.Random(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(10):
            picture = Image.new("RGB", (40, 40), "white")
            left, top, size = rng.randrange(16), rng.randrange(16), rng.randrange(12, 24)
            ImageDraw.Draw(picture).rectangle([left, top, left + size, top + size], fill=colour)
            picture.save(root / name / f"{number}.png")
    return root


@pytest.fixture
def sessions(tmp_path, colours, tiny_weights):
    """A recipe with every part of CoACT that runs in seconds."""
    path = tmp_path / "sessions.yaml"
    path.write_text(
        f"out: {tmp_path / 'runs'}\n"
        f"backbone: {{name: tiny-clip, weights: {tiny_weights}}}\n"
        "task:\n"
        "  type: incremental\n"
        "  protocol: {name: fscit, base: 2, way: 2, base_shots: 4, shots: 3, val_shots: 1}\n"
        "  cosine: true\n"
        "  epochs: 3\n"
        "  l_ft: 4\n"
        "  e_ft: 1\n"
        "  incremental_epochs: 2\n"
        f"data: {{type: folder, root: {colours}, fractions: [0.5, 0.2, 0.3]}}\n"
        "adapter: {type: lora, r: 2, alpha: 2, dropout: 0.1, towers: [vision], modules: [q, v], layers: [4, 5]}\n"
        "engine: {optimizer: sgd, momentum: 0.9, nesterov: true, batch_size: 4, lr: 1.0e-2, tensorboard: false,\n"
        "  checkpoint_every: 1, log_every: 1}\n"
    )
    return path
