"""LoRAT against closed forms: counts, tokens, head, losses (the numbers are those of the card's invariants)."""

import copy
import math

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F

import vision_lowrank as vl
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.data.geometry import CropMap, cell_mask, touched_cells
from vision_lowrank.errors import UserError
from vision_lowrank.export.onnx import export_onnx
from vision_lowrank.initializers.truncated_normal import TruncatedNormal
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.head import BoxHead, Found
from vision_lowrank.tasks.tracking.losses import iou_and_giou, tracking_losses
from vision_lowrank.tasks.tracking.model import TrackingModel
from vision_lowrank.tasks.tracking.tokens import search_positions

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 80}
CROPS = Cropping(search=32, template=16, search_factor=4.0, template_factor=2.0)
ALL = ("q", "k", "v", "o", "fc1", "fc2")
MAKERS = {
    "dinov2": lambda: load_backbone("timm:vit_small_patch14_dinov2", "random", **SMALL),
    "registers": lambda: load_backbone("timm:vit_small_patch14_reg4_dinov2", "random", **SMALL),
    "deit": lambda: load_backbone("timm:deit_tiny_distilled_patch16_224", "random", **SMALL),
    "clip": lambda: load_backbone("tiny-clip"),
    "tiny-vit": lambda: load_backbone("tiny-vit", "random"),
}


def lora(backbone, r=4, **more):
    return vl.attach(backbone, vl.LoraConfig(r=r, alpha=float(r), scaling="lora"), ("vision",), "all", ALL, **more)


@pytest.fixture(params=MAKERS)
def tracker(request):
    torch.manual_seed(0)
    return TrackingModel(MAKERS[request.param](), CROPS).eval()


def crops(count=2):
    torch.manual_seed(1)
    return torch.randn(count, 3, 16, 16), torch.randn(count, 3, 32, 32), torch.rand(count, 2, 2) < 0.5


# --- parameters ----------------------------------------------------------------------------------------------------


def test_the_published_count_of_trained_parameters():
    backbone = load_backbone("timm:vit_base_patch14_dinov2", "random", img_size=28).requires_grad_(False)
    config = vl.LoraConfig(r=64, alpha=64.0, scaling="lora")
    model = TrackingModel(vl.attach(backbone, config, ("vision",), "all", ALL), Cropping(224, 112, 4.0, 2.0))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    by_part = [sum(n for name, n in trained.items() if word in name) for word in ("lora_", "head.", "types")]
    assert by_part == [10_616_832, 2_366_213, 2_304]
    assert sum(trained.values()) == 12_985_349


def test_q_k_and_v_have_factors_of_their_own():
    model = lora(MAKERS["dinov2"]().requires_grad_(False))
    attention = model.get_base_model().model.blocks[0].attn
    down = [getattr(attention, f"{letter}_proj").lora_A["default"].weight for letter in "qkv"]
    assert [tuple(each.shape) for each in down] == [(4, 48)] * 3
    assert len({id(each) for each in down}) == 3


# --- tokens --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_template_shares_the_top_left_positions_of_the_search_crop(tracker):
    embedding, trunk = tracker.embedding, tracker.trunk
    z, x, mask = (each.zero_() for each in crops(1))
    embedding.types.zero_()
    blank_z, blank_x = trunk.patch_tokens(z), trunk.patch_tokens(x)
    table = embedding.positions.unflatten(1, (4, 4))
    assert torch.equal(embedding.template_tokens(trunk, z, mask), trunk.enter(blank_z + table[:, :2, :2].flatten(1, 2)))
    assert torch.equal(embedding.search_tokens(trunk, x), trunk.enter(blank_x + embedding.positions))


@torch.no_grad()
def test_the_mask_adds_the_difference_of_two_types_and_nothing_else(tracker):
    z, x, mask = crops()
    tracker.double()
    tokens = [tracker.embedding(tracker.trunk, z.double(), x.double(), each) for each in (mask, ~mask)]
    types = tracker.embedding.types
    sign = mask.flatten(1).double() * 2 - 1
    expected = sign[..., None] * (types[1] - types[0])
    torch.testing.assert_close(tokens[0][:, :4] - tokens[1][:, :4], expected, rtol=0, atol=1e-12)
    assert torch.equal(tokens[0][:, 4:], tokens[1][:, 4:])
    none, all_of_it = (tracker(z.double(), x.double(), torch.full_like(mask, value)) for value in (False, True))
    assert not torch.equal(none.logits, all_of_it.logits)


def test_positions_are_resampled_without_antialiasing():
    trunk = MAKERS["dinov2"]().trunk
    table = trunk.patch_positions().detach().transpose(1, 2).unflatten(2, (10, 10))
    expected = F.interpolate(table, (4, 4), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.equal(search_positions(trunk, (4, 4)), expected)
    smooth = F.interpolate(table, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    assert (smooth - expected).norm() > 0.2 * expected.norm()  # what timm does by itself is another table
    assert torch.equal(search_positions(trunk, (10, 10)), trunk.patch_positions())


# --- the network ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_start_of_both_kinds_and_merging():
    z, x, mask = crops()
    backbone = MAKERS["deit"]().requires_grad_(False)  # DINOv2's blocks begin at 1e-5 of themselves
    plain = TrackingModel(backbone, CROPS).eval()
    before = plain(z, x, mask)
    parts = plain.parts.state_dict()
    zero = TrackingModel(lora(copy.deepcopy(backbone)), CROPS).eval()
    zero.parts.load_state_dict(parts)
    torch.testing.assert_close(zero(z, x, mask).logits, before.logits, rtol=1e-5, atol=1e-6)
    away = TrackingModel(lora(copy.deepcopy(backbone), initializer=TruncatedNormal(std=0.1)), CROPS).eval()
    away.parts.load_state_dict(parts)
    moved = away(z, x, mask)
    assert not torch.allclose(moved.logits, before.logits, atol=1e-4)
    merged = TrackingModel(vl.merge(away.backbone), CROPS).eval()
    merged.parts.load_state_dict(parts)
    torch.testing.assert_close(merged(z, x, mask).logits, moved.logits, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_modules())


def test_both_factors_start_truncated_normal():
    torch.manual_seed(0)
    backbone = MAKERS["dinov2"]().requires_grad_(False)
    model = lora(backbone, r=16, initializer=TruncatedNormal())
    factors = [p for name, p in model.named_parameters() if p.requires_grad]
    joined = torch.cat([p.detach().flatten() for p in factors])
    assert len(factors) == 2 * 6 * 2
    assert abs(joined.std() - 0.02) < 5e-4
    assert abs(joined.mean()) < 5e-4
    assert all(p.any() for p in factors)


def test_every_adapter_tensor_of_a_tracker_is_reached():
    model = TrackingModel(lora(MAKERS["clip"]().requires_grad_(False), initializer=TruncatedNormal()), CROPS)
    z, x, mask = crops()
    found = model(z, x, mask)
    (found.logits.sum() + found.boxes.square().sum()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.any() for p in trained)


def test_full_fine_tuning_trains_what_the_answer_depends_on():
    backbone = MAKERS["registers"]().requires_grad_(False)
    model = TrackingModel(backbone, CROPS)
    chosen = {id(p) for p in model.trunk_parameters()}
    left_out = {name for name, p in backbone.named_parameters() if id(p) not in chosen}
    assert left_out == {"model.cls_token", "model.reg_token", "model.pos_embed"}
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_crop_that_patches_do_not_fill_is_refused():
    with pytest.raises(UserError, match=r"task.search_size=100 is no multiple of the patch of 8 pixels: try 96"):
        TrackingModel(MAKERS["deit"](), Cropping(100, 48, 4.0, 2.0))


# --- head and losses -----------------------------------------------------------------------------------------------


def test_a_head_without_last_layer_says_the_middle():
    head = BoxHead(12, (3, 4))
    for part in (head.cls_mlp, head.reg_mlp):
        torch.nn.init.zeros_(part.layers[2].weight)
    found = head(torch.randn(1, 12, 12))
    assert not found.logits.any()
    for row in range(3):
        for column in range(4):
            x, y = (column + 0.5) / 4, (row + 0.5) / 3
            expected = torch.tensor([x - 0.5, y - 0.5, x + 0.5, y + 0.5])
            torch.testing.assert_close(found.boxes[0, row, column], expected)


def test_generalised_iou_by_hand():
    one, other = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]]), torch.tensor([[1.0, 1, 3, 3], [2, 0, 3, 1]])
    iou, giou = iou_and_giou(one, other)
    torch.testing.assert_close(iou, torch.tensor([1 / 7, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(giou, torch.tensor([1 / 7 - 2 / 9, -1 / 3]), atol=1e-6, rtol=0)


def test_the_losses_against_a_loop():
    torch.manual_seed(3)
    logits = torch.randn(3, 4, 4, requires_grad=True)
    low = torch.rand(3, 4, 4, 2) * 0.5
    boxes = torch.cat([low, low + 0.1 + 0.4 * torch.rand(3, 4, 4, 2)], dim=-1).requires_grad_()
    true = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.3, 0.5, 0.9], [0.0, 0.0, 0.2, 0.2]])
    positives = torch.stack([torch.from_numpy(cell_mask(4 * box.numpy(), (4, 4), (1, 1))) for box in true])
    cls = reg = 0.0
    for b in range(3):
        for i in range(4):
            for j in range(4):
                p, g = boxes[b, i, j].tolist(), true[b].tolist()
                inter = max(0, min(p[2], g[2]) - max(p[0], g[0])) * max(0, min(p[3], g[3]) - max(p[1], g[1]))
                union = (p[2] - p[0]) * (p[3] - p[1]) + (g[2] - g[0]) * (g[3] - g[1]) - inter
                around = (max(p[2], g[2]) - min(p[0], g[0])) * (max(p[3], g[3]) - min(p[1], g[1]))
                positive = bool(positives[b, i, j])
                target, s = inter / union * positive, 1 / (1 + math.exp(-float(logits[b, i, j])))
                cls -= target * math.log(s) + (1 - target) * math.log(1 - s)
                reg += positive * (1 - inter / union + (around - union) / around)
    n = int(positives.sum())
    losses = tracking_losses(Found(logits, boxes), true, positives)
    assert float(losses["cls"]) == pytest.approx(cls / n, abs=1e-4)
    assert float(losses["reg"]) == pytest.approx(reg / n, abs=1e-4)
    losses["loss"].backward()
    assert not boxes.grad[~positives].any()


def test_labels_of_one_are_told_whatever_the_box():
    torch.manual_seed(4)
    logits, boxes = torch.randn(1, 2, 2), torch.rand(1, 2, 2, 4)
    positives = torch.tensor([[[True, False], [False, True]]])
    losses = tracking_losses(Found(logits, boxes), torch.tensor([[0.1, 0.1, 0.4, 0.4]]), positives, "one")
    s = logits.sigmoid()
    expected = -(s[positives].log().sum() + (1 - s[~positives]).log().sum()) / 2
    torch.testing.assert_close(losses["cls"], expected)


def test_a_perfect_box_and_a_batch_without_positives():
    boxes = torch.zeros(1, 2, 2, 4, requires_grad=True)
    true = torch.tensor([[0.1, 0.1, 0.4, 0.4]])
    perfect = torch.where(torch.tensor([True, False, False, False]).view(1, 2, 2, 1), true[:, None, None], boxes)
    one = torch.tensor([[[True, False], [False, False]]])
    found = Found(torch.full((1, 2, 2), 30.0), perfect)
    losses = tracking_losses(found, true, one)
    assert float(losses["reg"]) == pytest.approx(0, abs=1e-4)
    assert float(losses["cls"]) == pytest.approx(3 * 30, abs=1e-2)  # the positive's target is 1, so it costs nothing
    none = tracking_losses(Found(torch.zeros(1, 2, 2), boxes), true, torch.zeros_like(one))
    assert float(none["reg"]) == 0
    none["loss"].backward()
    assert torch.equal(boxes.grad, torch.zeros_like(boxes))


# --- geometry ------------------------------------------------------------------------------------------------------


def test_the_rasteriser():
    assert touched_cells(np.array([3.2, 4.9, 7.0, 8.01]), (16, 16), (1, 1)) == (3, 4, 7, 9)
    assert touched_cells(np.array([-5.0, 2, 300, 9]), (16, 16), (14, 14)) == (0, 0, 16, 1)


@pytest.mark.parametrize(
    ("sides", "factor", "size", "scale"),
    [((50, 50), 4, 224, 1.12), ((50, 50), 5, 378, 1.512), ((40, 90), 4, 224, 0.865549)],
)
def test_scale_of_a_crop(sides, factor, size, scale):
    box = np.array([100.0, 60, 100 + sides[0], 60 + sides[1]])
    crop = CropMap.around(box, factor, (size, size))
    assert crop.scale == pytest.approx([scale] * 2, abs=1e-6)
    inside = crop.to_crop(box)
    assert (inside[:2] + inside[2:]) / 2 == pytest.approx([size / 2] * 2)
    assert inside[2:] - inside[:2] == pytest.approx(np.array(sides) * scale, abs=1e-3)
    assert crop.to_frame(inside) == pytest.approx(box)


def test_the_fused_form_of_peft_gives_the_same_update():
    """Three adapters on q, k and v are one of rank 3r on the fused matrix."""
    assert peft.__version__
    torch.manual_seed(2)
    A, B = ([torch.randn(*shape, dtype=torch.float64) for _ in range(3)] for shape in ((4, 12), (12, 4)))
    fused = torch.block_diag(*B) @ torch.cat(A)
    assert torch.equal(fused, torch.cat([b @ a for a, b in zip(A, B, strict=True)]))
    assert torch.linalg.matrix_rank(fused) == 12


def test_onnx_computes_scores_and_boxes_of_the_adapted_network(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(4)
    model = lora(MAKERS["deit"]().requires_grad_(False), initializer=TruncatedNormal(std=0.1))
    tracker = TrackingModel(model, CROPS).eval()
    report = export_onnx(tracker, tmp_path)
    assert report.path.name == "tracker.onnx"
    z, x, mask = crops(3)
    given = {"template": z.numpy(), "search": x.numpy(), "mask": mask.long().numpy()}
    logits, boxes = onnxruntime.InferenceSession(report.path).run(["logits", "boxes"], given)
    with torch.no_grad():
        expected = tracker(z, x, mask)
    torch.testing.assert_close(torch.from_numpy(logits), expected.logits, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(boxes), expected.boxes, rtol=1e-3, atol=1e-5)
    assert tracker.backbone is model


@pytest.mark.parametrize(("width", "std"), [(160, 0.096), (384, 0.04), (768, 0.02), (1024, 0.02)])
def test_the_heads_of_narrow_trunks_start_louder(width, std):
    torch.manual_seed(0)
    weight = BoxHead(width, (2, 2)).reg_mlp.layers[0].weight
    assert float(weight.std()) == pytest.approx(std, rel=0.02)
