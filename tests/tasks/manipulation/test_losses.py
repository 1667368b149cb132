import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou

from vision_lowrank.tasks.manipulation.decoders import Decoded, LinearDecoder, MlpDecoder, QueryDecoder, corners
from vision_lowrank.tasks.manipulation.losses import LossWeights, Targets, decoder_losses

# A real picture, an edit with everything, an edit of which nothing is known, an edit annotated as having no boxes.
B, C, K, N = 4, 3, 4, 6
VALID = torch.ones(B, N, dtype=torch.bool)
VALID[1, 4:] = False


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


NONE = torch.zeros(0, 4)
BOXES = torch.tensor([[0.3, 0.3, 0.2, 0.4], [0.8, 0.7, 0.1, 0.2]])


def decoded(**other):
    values = {
        "logit": rand(B), "cues": rand(B, C), "boxes": rand(B, K, 4).sigmoid(), "objectness": rand(B, K),
        "tokens": rand(B, N), "valid": VALID,
    }  # fmt: skip
    return Decoded(**values | other)


def targets(**other):
    values = {
        "edited": torch.tensor([0, 1, 1, 1]),
        "has_cues": torch.tensor([False, True, False, False]),
        "cues": torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]),
        "has_boxes": torch.tensor([False, True, False, True]),
        "boxes": [NONE, BOXES, NONE, NONE],
        "has_tokens": torch.tensor([False, True, False, False]),
        "tokens": torch.rand(B, N),
    }  # fmt: skip
    return Targets(**values | other)


def bce(logits, wanted):
    p = logits.sigmoid()
    return -(wanted * p.log() + (1 - wanted) * (1 - p).log())


def test_every_term_is_the_mean_over_its_own_pictures():
    said, known = decoded(), targets()
    terms, used = decoder_losses(said, known, pos_weight=0.25)
    weighted = bce(said.logit, known.edited.double()) * torch.tensor([1, 0.25, 0.25, 0.25])
    torch.testing.assert_close(terms["detection"], weighted.mean())
    torch.testing.assert_close(terms["cues"], bce(said.cues[1], known.cues[1].double()).mean())
    tokens = bce(said.tokens[0], torch.zeros(N)).mean() + bce(said.tokens[1, :4], known.tokens[1, :4].double()).mean()
    torch.testing.assert_close(terms["tokens"], tokens / 2)
    assert {name: int(value) for name, value in used.items()} == {
        "detection": 4, "cues": 1, "boxes": 2, "objectness": 3, "tokens": 2,
    }  # fmt: skip


def test_the_box_terms_are_those_of_the_cheapest_pairs():
    said, known = decoded(), targets()
    terms, _ = decoder_losses(said, known)
    boxes, wanted = said.boxes[1], known.boxes[1].double()
    overlap = generalized_box_iou(corners(boxes), corners(wanted))
    loss = {
        (a, b): sum(5 * (boxes[k] - wanted[m]).abs().sum() + 2 * (1 - overlap[k, m]) for m, k in enumerate((a, b)))
        for a in range(K) for b in range(K) if a != b
    }  # fmt: skip
    p = said.objectness[1].sigmoid()
    best = min(loss, key=lambda pair: loss[pair] - p[list(pair)].sum())
    torch.testing.assert_close(terms["boxes"], loss[best] / 2)
    present = torch.zeros(B, K, dtype=torch.float64)
    present[1, list(best)] = 1
    torch.testing.assert_close(terms["objectness"], bce(said.objectness, present)[[0, 1, 3]].mean())


def test_permuting_the_queries_changes_nothing():
    said, known, order = decoded(), targets(), torch.randperm(K)
    other = said._replace(boxes=said.boxes[:, order], objectness=said.objectness[:, order])
    torch.testing.assert_close(decoder_losses(said, known).terms, decoder_losses(other, known).terms)


def test_weights_multiply_their_terms():
    said, known = decoded(), targets()
    plain = decoder_losses(said, known).terms
    weights = LossWeights(detection=0.5, cues=2, l1=10, giou=4, objectness=3, tokens=0)
    scaled = decoder_losses(said._replace(objectness=torch.zeros(B, K)), known, weights).terms
    equal = decoder_losses(said._replace(objectness=torch.zeros(B, K)), known).terms
    for name, factor in {"detection": 0.5, "cues": 2, "boxes": 2, "tokens": 0}.items():
        torch.testing.assert_close(scaled[name], factor * equal[name], msg=name)
    assert scaled["objectness"] == pytest.approx(3 * math.log(2))
    assert plain["detection"] == equal["detection"]


def test_unknown_values_are_not_looked_at_and_synthetic_pictures_are_edited():
    said, known = decoded(), targets()
    junk = known._replace(
        edited=torch.tensor([0, 1, 1, 2]),
        cues=torch.where(known.has_cues[:, None], known.cues, 7),
        tokens=torch.where(known.has_tokens[:, None] & VALID, known.tokens, 5.0),
    )
    torch.testing.assert_close(decoder_losses(said, junk).terms, decoder_losses(said, known).terms)


def test_the_targets_of_the_token_map_are_shares():
    shares = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0, 0.0]]).double()
    logits = shares.clamp(0.01, 0.99).logit().requires_grad_()
    known = targets(tokens=shares.expand(B, N), has_tokens=torch.ones(B, dtype=torch.bool))
    decoder_losses(decoded(tokens=logits.expand(B, N), valid=VALID | True), known).terms["tokens"].backward()
    # pictures 1 to 3 are at their minimum where 0 < share < 1; picture 0 is real and pulls all logits down
    torch.testing.assert_close(logits.grad[0, 1:4], shares[0, 1:4] / B / N)


STATES = torch.randn(B, N, 8)
CENTRES = torch.rand(B, N, 2)
NOTHING = {
    "edited": torch.ones(B),
    "has_cues": torch.zeros(B, dtype=torch.bool),
    "has_boxes": torch.zeros(B, dtype=torch.bool),
    "boxes": [NONE] * B,
    "has_tokens": torch.zeros(B, dtype=torch.bool),
}


def small(kind):
    return QueryDecoder(8, C, K, 16, 1, 2, 16) if kind == "query" else MlpDecoder(8, C, K)


@pytest.mark.parametrize("kind", ["query", "mlp"])
def test_a_head_without_annotations_gets_a_zero_gradient(kind):
    decoder = small(kind)
    terms, used = decoder_losses(decoder(STATES, VALID, CENTRES), targets(**NOTHING))
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
    assert ("tokens" in terms) == (kind == "query")
    assert [name for name, value in used.items() if value] == ["detection"]
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name  # distributed training waits for every gradient
        head = name.split(".")[0]
        assert bool(parameter.grad.any()) == (head not in ("cues", "boxes", "objectness", "tokens")), name


def test_real_pictures_alone_train_detection_objectness_and_tokens():
    decoder = small("query")
    known = targets(**NOTHING | {"edited": torch.zeros(B), "has_cues": torch.ones(B, dtype=torch.bool)})
    terms, used = decoder_losses(decoder(STATES, VALID, CENTRES), known)
    sum(terms.values()).backward()
    assert {name for name, value in used.items() if value} == {"detection", "objectness", "tokens"}
    assert terms["boxes"] == terms["cues"] == 0
    trained = {name.split(".")[0] for name, parameter in decoder.named_parameters() if parameter.grad.any()}
    assert {"objectness", "tokens", "detection"} <= trained
    assert not trained & {"cues", "boxes"}


def test_more_boxes_than_queries_are_no_error():
    many = [torch.rand(K + 3, 4).clamp(0.1, 0.9), NONE, NONE, NONE]
    known = targets(edited=torch.ones(B), boxes=many, has_boxes=torch.tensor([True, False, False, False]))
    terms, used = decoder_losses(decoded(), known)
    assert terms["boxes"].isfinite()
    assert (used["boxes"], used["objectness"]) == (K, 1)


def test_a_linear_head_learns_detection_alone():
    decoder, known = LinearDecoder(8), targets()
    said = decoder(STATES, VALID, CENTRES)
    terms, used = decoder_losses(said, known)
    assert terms.keys() == used.keys() == {"detection"}
    expected = F.binary_cross_entropy_with_logits(said.logit, known.edited.float())
    torch.testing.assert_close(terms["detection"], expected)


@pytest.mark.parametrize("term", ["detection", "cues", "boxes", "objectness", "tokens"])
def test_every_term_reaches_the_states(term):
    states = torch.randn(B, N, 16, requires_grad=True)
    decoder = QueryDecoder(16, cues=C, boxes=K, width=16, heads=2, ffn=16, dropout=0)
    terms, _ = decoder_losses(decoder(states, VALID, torch.rand(B, N, 2)), targets())
    (gradient,) = torch.autograd.grad(terms[term], states)
    assert gradient.abs().sum() > 0


def test_the_weights_of_the_box_terms_also_decide_who_is_matched():
    # One prediction is nearer in its coordinates, the other overlaps more.
    wanted = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    predicted = torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.59, 0.59, 0.1, 0.1]], dtype=torch.float64)
    known = targets(boxes=[NONE, wanted, NONE, NONE])
    said = decoded(boxes=predicted.expand(B, 2, 4), objectness=torch.zeros(B, 2, dtype=torch.float64))
    distance, overlap = (
        (predicted - wanted).abs().sum(-1),
        1 - generalized_box_iou(corners(predicted), corners(wanted.double()))[:, 0],
    )
    assert distance[1] < distance[0]
    assert overlap[0] < overlap[1]
    for weights, nearest in (({"l1": 1.0, "giou": 0.0}, distance[1]), ({"l1": 0.0, "giou": 1.0}, overlap[0])):
        terms, _ = decoder_losses(said, known, LossWeights(**weights))
        torch.testing.assert_close(terms["boxes"], nearest)
