"""A small few-shot recipe that studies of several methods are made of."""

import pytest


@pytest.fixture(scope="module")
def shapes(tmp_path_factory, pictures, tiny_weights):
    """A recipe of module scope, so that one study serves several tests."""
    path = tmp_path_factory.mktemp("study") / "shapes.yaml"
    path.write_text(
        f"backbone: {{name: tiny-clip, weights: {tiny_weights}}}\n"
        "seeds: [1, 2]\n"
        "task: {type: fewshot, shots: 2}\n"
        f"data: {{type: folder, root: {pictures}, fractions: [0.5, 0.2, 0.3]}}\n"
        "adapter: {type: lora, r: 4, dropout: 0.25, towers: [vision], layers: [0], modules: [q, v]}\n"
        "engine: {steps: 2, batch_size: 6, lr: 1.0e-2, tensorboard: false, log_every: 1, threads: 1}\n"
    )
    return path
