"""Levels of map and boxes against loops over every level."""

import math

import pytest
import torch
from tasks.manipulation.test_task import QUICK, trained

from vision_lowrank.metrics.localisation.boxes import judge_boxes
from vision_lowrank.tasks.manipulation.decoders import LinearDecoder, MlpDecoder, QueryDecoder
from vision_lowrank.tasks.manipulation.levels import LEVELS, box_level, levels, map_level


def f1_of(found, truth):
    """F1 of a set of cells against shares, by counting."""
    hit = sum(truth[cell] for cell in found)
    return 2 * hit / (len(found) + sum(truth))


def test_the_level_of_the_map_has_the_highest_mean_f1_of_edited_pictures():
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(6, 20, generator=generator) * (torch.rand(6, 20, generator=generator) > 0.7)
    shares[0] = 0  # a real picture
    tokens = 3 * shares - 3 + torch.randn(6, 20, generator=generator)
    valid = torch.rand(6, 20, generator=generator) > 0.1

    def mean_f1(level):
        scores = []
        for row in range(1, 6):
            cells = [cell for cell in range(20) if valid[row, cell]]
            truth = [float(shares[row, cell]) for cell in cells]
            above = [i for i, cell in enumerate(cells) if torch.sigmoid(tokens[row, cell].double()) >= level]
            scores.append(f1_of(above, truth))
        return sum(scores) / len(scores)

    level = 1 / (1 + math.exp(-map_level(tokens, valid, shares)))
    assert mean_f1(level) == pytest.approx(max(map(mean_f1, LEVELS)), abs=1e-9)
    assert level < 0.4  # at 0.5 nearly nothing would be found
    assert mean_f1(level) > mean_f1(0.5)


def test_the_level_of_boxes_has_the_highest_f1_with_real_pictures_counted():
    whole, corner = (0, 0, 100, 100), (0, 0, 10, 10)
    right = judge_boxes([whole, corner], [0.30, 0.10], [whole], (100, 100))
    wrong = judge_boxes([corner], [0.20], [whole], (100, 100))
    real = judge_boxes([whole], [0.25], [], (100, 100))
    level = 1 / (1 + math.exp(-box_level([right, wrong, real])))
    assert 0.25 < level <= 0.30  # 2 · 1 / (1 + 2), where two boxes would give 2 / 4
    missed = judge_boxes([corner], [0.2], [whole], (100, 100))
    assert box_level([missed]) == 0  # nothing is right at any level
    assert box_level([]) == 0
    assert map_level(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4)) == 0


@pytest.mark.parametrize("decoder", [QueryDecoder(8, width=32), MlpDecoder(8), LinearDecoder(8)])
def test_lowering_moves_boxes_and_map_and_nothing_else(decoder):
    states, valid = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    before = decoder.eval()(states, valid, torch.zeros(2, 5, 2))
    decoder.lower(objectness=1.5, tokens=-0.5)
    after = decoder(states, valid, torch.zeros(2, 5, 2))
    torch.testing.assert_close(after.objectness, before.objectness - 1.5)
    if before.tokens is not None:
        torch.testing.assert_close(after.tokens, before.tokens + 0.5)
    for name in ("logit", "cues", "boxes"):
        assert torch.equal(getattr(after, name), getattr(before, name))


def test_validation_pictures_lower_the_decoder_once_at_the_end(detection, monkeypatch):
    seen = []

    def fixed(found):
        def levels_of(outputs):
            seen.append(levels(outputs))
            return found

        return levels_of

    states = []
    for folder, found in (("plain", (0.0, 0.0)), ("lowered", (1.25, -0.75))):
        monkeypatch.setattr("vision_lowrank.tasks.manipulation.task.levels", fixed(found))
        task, _ = trained(detection, *QUICK, folder=folder)
        states.append(task.model.decoder.state_dict())
    plain, lowered = states
    torch.testing.assert_close(lowered.pop("objectness.bias"), plain.pop("objectness.bias") - 1.25)
    torch.testing.assert_close(lowered.pop("tokens.bias"), plain.pop("tokens.bias") + 0.75)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in lowered.items())
    assert len(seen) == 2
    assert all(math.isfinite(level) for pair in seen for level in pair)
