import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vision_lowrank.errors import UserError
from vision_lowrank.tasks.manipulation.decoders import (
    MlpDecoder,
    QueryDecoder,
    corners,
    decode_boxes,
    make_decoder,
    position_code,
)
from vision_lowrank.tasks.manipulation.losses import Targets, decoder_losses

B, N, D, C, K = 3, 10, 12, 5, 4


def decoder_of(kind):
    return make_decoder(D, kind, C, K, width=16, heads=4).double().eval()


def batch():
    valid = torch.arange(N) < torch.tensor([10, 7, 1])[:, None]
    return torch.randn(B, N, D).double(), valid, torch.rand(B, N, 2).double()


def test_parameters_at_the_cards_sizes():
    query, mlp = QueryDecoder(1024), MlpDecoder(1024)
    attention, norm = 4 * (256 * 256 + 256), 2 * 256
    layer = 2 * attention + 3 * norm + 256 * 1024 + 1024 + 1024 * 256 + 256
    heads = 257 + 12 * 257 + (256 * 257 + 4 * 257) + 257 + 257
    count = 2 * 1024 + 256 * 1025 + 12 * 256 + 2 * layer + norm + heads
    assert sum(p.numel() for p in query.parameters()) == count == 2_445_587
    assert sum(p.numel() for p in mlp.parameters()) == 3 * 512 * 1025 + 513 * (1 + 12 + 50) == 1_606_719


@pytest.mark.parametrize("kind", ["query", "mlp"])
def test_shapes_and_ranges(kind):
    states, valid, centres = batch()
    said = decoder_of(kind)(states, valid, centres)
    assert (said.logit.shape, said.cues.shape) == ((B,), (B, C))
    assert (said.boxes.shape, said.objectness.shape) == ((B, K, 4), (B, K))
    assert ((said.boxes > 0) & (said.boxes < 1)).all()
    assert (said.tokens is None) if kind == "mlp" else (said.tokens.shape == (B, N))
    assert said.valid is valid


@pytest.mark.parametrize("kind", ["query", "mlp", "linear"])
def test_padded_tokens_never_matter(kind):
    decoder, (states, valid, centres) = decoder_of(kind), batch()
    said = decoder(states, valid, centres)
    junk = states.masked_fill(~valid[..., None], torch.nan), centres.masked_fill(~valid[..., None], 9.0)
    padded = decoder(junk[0], valid, junk[1])
    alone = decoder(states[1:2, :7], valid[1:2, :7], centres[1:2, :7])
    for name in ("logit", "cues", "boxes", "objectness"):
        torch.testing.assert_close(getattr(padded, name), getattr(said, name))
        torch.testing.assert_close(getattr(alone, name)[0], getattr(said, name)[1])
    if kind == "query":
        torch.testing.assert_close(padded.tokens[valid], said.tokens[valid])


@pytest.mark.parametrize("kind", ["query", "mlp"])
def test_the_order_of_tokens_does_not_matter_but_their_places_do(kind):
    decoder, (states, valid, centres), order = decoder_of(kind), batch(), torch.randperm(N)
    said = decoder(states, valid, centres)
    shuffled = decoder(states[:, order], valid[:, order], centres[:, order])
    torch.testing.assert_close(shuffled.boxes, said.boxes)
    torch.testing.assert_close(shuffled.logit, said.logit)
    moved = decoder(states, valid, 1 - centres)
    assert torch.equal(moved.boxes, said.boxes) == (kind == "mlp")


def test_the_mlp_decoder_reads_the_mean_of_the_valid_tokens():
    decoder, (states, valid, centres) = decoder_of("mlp"), batch()
    mean = torch.stack([row[own].mean(dim=0) for row, own in zip(states, valid, strict=True)])
    torch.testing.assert_close(decoder(states, valid, centres).cues, decoder.cues(mean))


def test_the_linear_decoder_has_a_detection_head_alone():
    decoder, (states, valid, centres) = decoder_of("linear"), batch()
    mean = torch.stack([row[own].mean(dim=0) for row, own in zip(states, valid, strict=True)])
    said = decoder(states, valid, centres)
    torch.testing.assert_close(said.logit, decoder.detection(F.layer_norm(mean, (D,)))[:, 0])
    assert (said.cues.shape, said.boxes.shape, said.objectness.shape) == ((B, 0), (B, 0, 4), (B, 0))
    assert said.tokens is None
    assert len(decode_boxes(said.boxes[0], said.objectness[0], 90, 60)) == 0


def test_make_decoder_passes_its_options_on():
    made = make_decoder(D, "query", 7, 3, width=24, heads=2, dropout=0.3)
    assert made.queries.shape == (5, 24)
    assert made.blocks[0].linear1.out_features == 96
    assert (made.blocks[0].self_attn.num_heads, made.blocks[1].dropout.p) == (2, 0.3)
    assert sum(p.numel() for p in make_decoder(1024).parameters()) == 2_445_587
    assert isinstance(make_decoder(D, "mlp"), MlpDecoder)


def test_decoder_layers_start_differently():
    one, two = QueryDecoder(D, C, K, 16, 2, 4, 32).blocks
    assert not torch.equal(one.linear1.weight, two.linear1.weight)


def test_heads_stay_in_float32_under_autocast():
    states, valid, centres = batch()
    decoder = decoder_of("query").float()
    expected = decoder(states.bfloat16(), valid, centres)
    with torch.autocast("cpu", torch.bfloat16):
        said = decoder(states.bfloat16(), valid, centres)
    assert said.boxes.dtype == torch.float32
    torch.testing.assert_close(said.boxes, expected.boxes)


def test_position_codes_tell_all_cells_of_a_fine_grid_apart():
    axis = (torch.arange(48) + 0.5) / 48
    codes = position_code(torch.cartesian_prod(axis, axis), 16)
    assert codes.shape == (48 * 48, 16)
    distances = torch.cdist(codes, codes).fill_diagonal_(torch.inf)
    assert distances.min() > 0.1
    # sines of π/2 x and 64 π x, their cosines, and the same of y
    code = position_code(torch.tensor([0.5, 1 / 128]).double(), 8)
    half, fine = torch.pi / 256, 0.5**0.5
    expected = torch.tensor([fine, 0, fine, 1, math.sin(half), 1, math.cos(half), 0], dtype=torch.float64)
    torch.testing.assert_close(code, expected)


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="width 30 does not fit 4 position codes and 6 heads: take a multiple of 12"):
        QueryDecoder(D, width=30, heads=6)


def test_boxes_return_to_the_pixels_they_were_drawn_at():
    xyxy = torch.tensor([[10.0, 20, 110, 50], [600, 5, 640, 90]])
    scale = torch.tensor([640.0, 90, 640, 90])
    low, high = (xyxy / scale).view(2, 2, 2).unbind(dim=1)
    boxes = torch.cat([(low + high) / 2, high - low], dim=1)
    found = decode_boxes(boxes, torch.tensor([1.0, 2.0]), 640, 90)
    assert found.scores.tolist() == pytest.approx([0.880797, 0.731059])
    assert found.size == (640, 90)
    assert list(found) == [pytest.approx(row, abs=1e-3) for row in xyxy.flip(0).tolist()]


def test_boxes_are_clipped_suppressed_and_dropped():
    boxes = torch.tensor([[0.1, 0.5, 0.4, 0.4], [0.1, 0.5, 0.4, 0.38], [0.9, 0.5, 0.1, 0.2], [0.5, 0.5, 0.1, 0.1]])
    objectness = torch.tensor([3.0, 2.0, 0.0, -0.1])
    found = decode_boxes(boxes, objectness, 100, 200)
    assert list(found) == [pytest.approx((0, 60, 30, 140)), pytest.approx((85, 80, 95, 120))]
    assert len(decode_boxes(boxes, objectness, 100, 200, iou=0.99)) == 3
    assert len(decode_boxes(boxes, objectness, 100, 200, min_score=0.4)) == 3
    assert len(decode_boxes(boxes, objectness - 9, 100, 200)) == 0


@dataclass
class Scene:
    """16 × 16 px pictures of 8 × 8 tokens with a rectangle planted in edited ones."""

    states: torch.Tensor
    centres: torch.Tensor
    targets: Targets

    @classmethod
    def of(cls, n, direction, seed):
        generator = torch.Generator().manual_seed(seed)
        size = torch.randint(2, 6, (n, 2), generator=generator)
        corner = (torch.rand(n, 2, generator=generator) * (9 - size)).long()
        place = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy"), dim=-1).view(64, 2)
        inside = ((place >= corner[:, None]) & (place < (corner + size)[:, None])).all(dim=-1)
        edited = torch.arange(n) % 2 == 1
        inside &= edited[:, None]
        states = torch.randn(n, 64, len(direction), generator=generator) + 3 * inside[..., None] * direction
        boxes = torch.cat([corner + size / 2, size.float()], dim=1) / 8
        lists = [box[None] if e else torch.zeros(0, 4) for box, e in zip(boxes, edited, strict=True)]
        no = torch.zeros(n, dtype=torch.bool)
        known = Targets(edited, no, torch.zeros(n, 2), edited, lists, edited, inside.float())
        return cls(states, ((place + 0.5) / 8).expand(n, 64, 2), known)

    def batch(self, rows):
        parts = {name: part[rows] for name, part in self.targets._asdict().items() if name != "boxes"}
        known = Targets(**parts, boxes=[self.targets.boxes[row] for row in rows])
        return self.states[rows], torch.ones(len(rows), 64, dtype=torch.bool), self.centres[rows], known


def mean_iou(boxes, wanted):
    one, two = corners(boxes), corners(wanted)
    inside = (torch.minimum(one[:, 2:], two[:, 2:]) - torch.maximum(one[:, :2], two[:, :2])).clamp_min(0).prod(dim=1)
    return (inside / (boxes[:, 2:].prod(dim=1) + wanted[:, 2:].prod(dim=1) - inside)).mean().item()


def test_a_planted_rectangle_is_found():
    direction = F.normalize(torch.randn(16), dim=0)
    train, test = Scene.of(512, direction, 1), Scene.of(128, direction, 2)
    decoder = QueryDecoder(16, 2, 3, 64, 2, 4, 64, dropout=0.0)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3)
    for _ in range(200):
        *inputs, known = train.batch(torch.randint(512, (48,)).tolist())
        loss = torch.stack(list(decoder_losses(decoder(*inputs), known).terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    *inputs, known = test.batch(range(1, 128, 2))
    with torch.no_grad():
        said = decoder.eval()(*inputs)
    wanted = torch.cat(known.boxes)
    best = said.boxes[torch.arange(64), said.objectness.argmax(dim=1)]
    constant = torch.cat(train.targets.boxes).mean(dim=0).expand_as(wanted)
    assert mean_iou(best, wanted) > mean_iou(constant, wanted) + 0.2
    inside = known.tokens.bool()
    above = (said.tokens[inside][:, None] > said.tokens[~inside]).float().mean()
    assert above > 0.9


def test_each_head_reads_its_own_query():
    decoder = QueryDecoder(16, cues=3, boxes=2, width=16, layers=0, heads=2, ffn=16).double()
    states, valid = torch.randn(1, 5, 16).double(), torch.ones(1, 5, dtype=torch.bool)
    decoded = decoder(states, valid, torch.rand(1, 5, 2).double())
    queries = decoder.norm(decoder.queries)
    torch.testing.assert_close(decoded.logit, decoder.detection(queries[0]))
    torch.testing.assert_close(decoded.cues[0], decoder.cues(queries[1]))
    torch.testing.assert_close(decoded.boxes[0], decoder.boxes(queries[2:]).sigmoid())
    torch.testing.assert_close(decoded.objectness[0], decoder.objectness(queries[2:])[:, 0])
