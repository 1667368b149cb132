import copy

import peft
import pytest
import torch
from fixtures.models import moved
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

import vision_lowrank as vl
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.analysis.intruders import intruders, scale_intruders
from vision_lowrank.analysis.layers import PREFIX, layer_pairs
from vision_lowrank.analysis.mitigation import NEW, changes, merge_reduced, reduce_intruders, sweep, with_changes
from vision_lowrank.errors import UserError
from vision_lowrank.tasks.classification.classifier import ImageClassifier

R = 3


def linears():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 28), nn.Linear(28, 24)).double()


def attached(config=None, quiet=True):
    """Three linears whose adapter makes intruders, but in the last one where it is `quiet`; float64."""
    config = config or peft.LoraConfig(r=R, lora_alpha=2 * R, target_modules=["0", "1", "2"])
    config.target_modules = {"0", "1", "2"}
    model = moved(peft.get_peft_model(linears(), config, autocast_adapter_dtype=False), amount=0.7)
    if quiet:
        for name, parameter in model.named_parameters():
            if name.startswith(PREFIX + "2.") and parameter.requires_grad:
                parameter.data *= 1e-3
    return model.eval()


def inputs():
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def expected_deltas(model, keep, name="default"):
    """ΔW(λ) of every layer, from the definition."""
    result = {}
    for key, _, weight, delta in layer_pairs(model, name):
        U, S, Vt = torch.linalg.svd(weight + delta, full_matrices=False)
        U0 = torch.linalg.svd(weight, full_matrices=False)[0]
        for j in range(10):
            if max(abs(float(U[:, j] @ u0)) for u0 in U0.T) < 0.5:
                delta = delta + (keep - 1) * S[j] * torch.outer(U[:, j], Vt[j])
        result[key] = delta
    return result


def forward_with(model, deltas):
    """The forward of the merged W(λ), layer by layer."""
    x = inputs()
    for key in ("0", "1", "2"):
        base = model.get_submodule(PREFIX + key).get_base_layer()
        x = x @ (base.weight + deltas[key]).T + base.bias
    return x


OURS = {
    "lora": lambda: None,
    "rslora": lambda: vl.LoraConfig(r=R, alpha=4.0),
    "dora": lambda: peft_method("DORA", r=R),
    "block_lora": lambda: vl.BlockLoraConfig(r=4, blocks=2, alpha=4.0),
    "kasa": lambda: vl.KasaConfig(r=R, alpha=4.0),
}


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("keep", [0.0, 0.75])
@torch.no_grad()
def test_the_exact_adapter_is_the_merged_weight_and_the_original_comes_back(method, keep):
    model = attached(OURS[method](), quiet=method != "dora")
    before, state = model(inputs()), copy.deepcopy(model.state_dict())
    expected = forward_with(model, expected_deltas(model, keep))
    assert not torch.allclose(expected, before, rtol=1e-2)
    reduce_intruders(model, keep=keep)
    assert model.active_adapters == [NEW]
    tolerance = 1e-4 if method == "dora" else 1e-9  # factors found by an SVD are kept in float32
    torch.testing.assert_close(model(inputs()), expected, rtol=tolerance, atol=tolerance)
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    model.set_adapter("default")
    assert torch.equal(model(inputs()), before)


@torch.no_grad()
def test_ranks_grow_by_the_intruders_and_layers_without_are_copied():
    model = attached()
    counts = {key: intruders(weight, delta).count for key, _, weight, delta in layer_pairs(model)}
    assert counts["0"] > 0
    assert counts["2"] == 0
    reduce_intruders(model, keep=0.25)
    for key, count in counts.items():
        layer = model.get_submodule(PREFIX + key)
        assert layer.lora_A[NEW].weight.shape[0] == R + count
        assert layer.scaling[NEW] == (1.0 if count else 2.0)
    quiet = model.get_submodule(PREFIX + "2")
    assert torch.equal(quiet.lora_A[NEW].weight, quiet.lora_A["default"].weight)
    assert torch.equal(quiet.lora_B[NEW].weight, quiet.lora_B["default"].weight)


@torch.no_grad()
def test_keeping_everything_changes_nothing():
    model = attached()
    before = model(inputs())
    reduce_intruders(model, keep=1.0)
    assert torch.equal(model(inputs()), before)


@pytest.mark.parametrize("keep", [0.75, 0.1])
@torch.no_grad()
def test_pefts_own_is_the_best_of_the_old_rank(keep):
    model = attached()
    exact = expected_deltas(model, keep)
    counts = {key: intruders(weight, delta).count for key, _, weight, delta in layer_pairs(model)}
    reduce_intruders(model, keep=keep, rank="same")
    assert model.active_adapters == [NEW]
    for key, delta in exact.items():
        U, S, Vt = torch.linalg.svd(delta, full_matrices=False)
        best = U[:, :R] * S[:R] @ Vt[:R]
        own = model.get_submodule(PREFIX + key).get_delta_weight(NEW)
        torch.testing.assert_close(own, best, rtol=1e-8, atol=1e-8)
        assert (float((own - delta).norm()) > 1e-3) == (counts[key] > 0)


@torch.no_grad()
def test_the_wrapper_hands_everything_to_peft():
    ours, theirs = attached(), attached()
    reduce_intruders(ours, keep=0.4, k=4, epsilon=0.45, rank="same", new_name="less")
    reduce_intruder_dimension(
        theirs, "default", "less", top_k=4, threshold_epsilon=0.45, mitigation_lambda=0.4, logging_sink=None
    )
    assert torch.equal(ours(inputs()), theirs(inputs()))


@pytest.mark.parametrize("config", [vl.LoraConfig(r=2), vl.BlockLoraConfig(r=2, blocks=2)], ids=["peft", "own"])
def test_a_saved_adapter_loads_again(config, tmp_path, tiny_weights):
    where = {"towers": ["vision"], "layers": [0], "modules": ["q"]}
    model = moved(vl.attach(vl.load_backbone("tiny-clip", str(tiny_weights)), config, **where))
    assert any(intruders(pair.weight, pair.delta).count for pair in layer_pairs(model))
    reduce_intruders(model, keep=0.2)
    vl.save(model, tmp_path / "adapter")
    again = vl.load(tmp_path / "adapter", vl.load_backbone("tiny-clip", str(tiny_weights)))
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels), rtol=1e-5, atol=1e-5)
    reduce_intruders(again, keep=0.2, new_name="twice")
    assert not any(parameter.requires_grad for parameter in again.parameters())  # what was loaded frozen stays so


@torch.no_grad()
def test_with_changes_is_the_merged_weight_for_as_long_as_it_lasts():
    model = attached(peft_method("LOHA", r=R), quiet=False)
    before, state = model(inputs()), copy.deepcopy(model.state_dict())
    deltas = changes(model, 0.3)
    expected = forward_with(model, expected_deltas(model, 0.3))
    with with_changes(model, deltas):
        torch.testing.assert_close(model(inputs()), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ZeroDivisionError), with_changes(model, deltas):
        _ = 1 / 0
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert torch.equal(model(inputs()), before)


@torch.no_grad()
def test_a_merged_copy_has_no_adapters_and_other_weights():
    torch.manual_seed(0)
    model = moved(vl.attach(vl.load_backbone("tiny-clip", "random"), vl.BlockLoraConfig(r=2, blocks=2), layers=[0]))
    pixels, deltas = torch.randn(2, 3, 48, 48), changes(model, 0.0)
    before = model.encode_image(pixels)
    with with_changes(model, deltas):
        expected = model.encode_image(pixels)
    merged = merge_reduced(model, deltas)
    torch.testing.assert_close(merged.encode_image(pixels), expected, rtol=1e-5, atol=1e-5)
    assert merged.fingerprint != model.fingerprint
    assert not any("lora" in name or "weight_update" in name for name, _ in merged.named_parameters())
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert torch.equal(model.encode_image(pixels), before)


@torch.no_grad()
def test_the_sweep_goes_from_all_to_nothing_and_leaves_the_model():
    model = attached()
    before = model(inputs())

    def evaluate():
        return {"loss": float((model(inputs()) - before).norm())}

    along = sweep(model, evaluate, keeps=(0.0, 0.5, 1.0))
    assert along[1.0]["loss"] == pytest.approx(0, abs=1e-3)  # changes are kept in float32
    assert along[0.0]["loss"] > along[0.5]["loss"] > 1
    assert torch.equal(model(inputs()), before)
    for control in ("shrink", "random"):
        assert sweep(model, evaluate, (0.0,), control=control)[0.0] != along[0.0]


@torch.no_grad()
def test_the_sweep_of_a_classifier_encodes_its_prompts_with_each_change(tiny_weights, tmp_path):
    """A loaded classifier keeps its class prompts; without a change of the text tower in them the sweep is wrong."""
    model = vl.attach(vl.load_backbone("tiny-clip", str(tiny_weights)), vl.LoraConfig(r=2), towers=["text"])
    ImageClassifier(moved(model), "text", ["a", "b"], ["the {}"]).save(tmp_path, {})
    classifier, x = ImageClassifier.load(tmp_path, attach=True), torch.randn(4, 3, 48, 48)
    trains = [p.requires_grad for p in classifier.parameters()]
    before, seen = classifier(x), {}

    def evaluate():
        seen[len(seen)] = classifier(x)
        classifier.freeze_text()  # what is kept for one change does not serve the next
        return {"loss": float(seen[len(seen) - 1].sum())}

    keeps = (0.0, 0.5, 1.0)
    sweep(classifier.backbone, evaluate, keeps)
    for place, keep in enumerate(keeps):
        merged = merge_reduced(classifier.backbone, changes(classifier.backbone, keep))
        expected = ImageClassifier(merged, "text", ["a", "b"], ["the {}"])(x)
        torch.testing.assert_close(seen[place], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert not torch.allclose(seen[1], seen[2], atol=1e-3)
    assert torch.equal(classifier(x), before)
    assert [p.requires_grad for p in classifier.parameters()] == trains


def test_controls_of_a_model_have_the_norms_they_promise():
    model = attached()
    own, shrunk, original = changes(model, 0.2), changes(model, 0.2, control="shrink"), changes(model, 1.0)
    for key in own:
        assert float(shrunk[key].norm()) == pytest.approx(float(own[key].norm()), rel=1e-5)
        ratio = float(own[key].norm() / original[key].norm())
        assert torch.allclose(shrunk[key], ratio * original[key], atol=1e-5)
    random = [changes(model, 0.2, control="random", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(random[0]["0"], random[1]["0"])
    assert any(not torch.equal(random[0][key], random[2][key]) for key in own)
    for key, _, weight, delta in layer_pairs(model):
        assert torch.allclose(own[key], scale_intruders(delta, intruders(weight, delta), 0.2).float())


@torch.no_grad()
def test_evaluation_stays_evaluation_and_dropout_stays_off():
    for rank in ("exact", "same"):
        model = attached(peft.LoraConfig(r=R, lora_alpha=2 * R, lora_dropout=0.5))
        reduce_intruders(model, rank=rank)
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(inputs()), model(inputs()))


def test_mistakes_are_explained_and_leave_the_model():
    model = attached()
    with pytest.raises(UserError, match="already has an adapter 'default'"):
        reduce_intruders(model, new_name="default")
    with pytest.raises(UserError, match="Did you mean 'exact'"):
        reduce_intruders(model, rank="exakt")
    with pytest.raises(UserError, match="left vectors, not right"):
        reduce_intruders(model, rank="same", side="right")
    with pytest.raises(UserError, match="Did you mean 'shrink'"):
        changes(model, 0.5, control="shrunk")
    with pytest.raises(UserError, match="'3' carries no adapter"), with_changes(model, {"3": torch.zeros(2, 2)}):
        pass
    assert list(model.peft_config) == ["default"]
    model.merge_adapter()
    with pytest.raises(UserError, match="unmerge it first"):
        reduce_intruders(model)
    for method in ("LOHA", "DORA"):
        with pytest.raises(UserError, match="is no plain LoRA of PEFT: use rank='exact'"):
            reduce_intruders(attached(peft_method(method, r=R)), rank="same")
    with pytest.raises(UserError, match="use merge_reduced"):
        reduce_intruders(attached(peft_method("LOHA", r=R)))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.LoraConfig(r=R, bias="all"), "biases trained beside"),
        (peft.LoraConfig(r=R, modules_to_save=["2"]), "2 trained beside"),
    ],
)
def test_what_is_trained_beside_the_change_is_refused(config, reason):
    config.target_modules = {"0", "1"}
    model = peft.get_peft_model(linears(), config)
    for action in (lambda: reduce_intruders(model), lambda: changes(model, 0.5), lambda: sweep(model, dict)):
        with pytest.raises(UserError, match=reason):
            action()


def test_embeddings_and_shared_weights_are_refused():
    host = nn.Sequential(nn.Embedding(9, 24), *linears().float(), nn.Linear(24, 32))
    host[4].weight = host[1].weight
    for targets, reason in ((["0", "1"], "embeddings"), (["1", "4"], "layers that share a weight")):
        model = peft.get_peft_model(copy.deepcopy(host), peft.LoraConfig(r=R, target_modules=targets))
        with pytest.raises(UserError, match=reason):
            reduce_intruders(model)


@torch.no_grad()
def test_convolutions_get_an_exact_adapter_too():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(3, 12, 4, 4))
    model = moved(peft.get_peft_model(host, peft.LoraConfig(r=R, target_modules=["0"])), amount=0.7)
    x = torch.randn(2, 3, 8, 8)
    with with_changes(model, changes(model, 0.1)):
        expected = model(x)
    assert not torch.allclose(expected, model(x), atol=0.1)
    reduce_intruders(model, keep=0.1)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="use rank='exact'"):
        reduce_intruders(model, rank="same", new_name="other")


def test_lofit_adds_more_than_a_change_of_weights():
    model = vl.attach(vl.load_backbone("tiny-clip", "random"), vl.LofitConfig(), check=False)
    with pytest.raises(UserError, match="what lofit adds trained beside"):
        changes(model, 0.5)
