import json
import subprocess
import sys

import peft
import pytest
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.comp_lora import CompLoraConfig
from vision_lowrank.adapters.kasa import KasaConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.adapters.sora import SoraConfig
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora, truncate

OURS = {
    "lora": LoraConfig(r=3, alpha=2),
    "block_lora": BlockLoraConfig(r=6, blocks=2, alpha=2),
    "comp_lora": CompLoraConfig(r=3, alpha=2),
    "kasa": KasaConfig(r=3, alpha=2),  # carries an offset: a stacked pair of rank 6
}
ours = pytest.mark.parametrize("config", OURS.values(), ids=OURS)


def clip():
    torch.manual_seed(0)
    return load_backbone("tiny-clip", weights="random").eval()


def deltas(model, prefix):
    return {
        path.removeprefix(prefix): layer.get_delta_weight("default").detach() for path, layer in tuner_layers(model)
    }


@ours
@pytest.mark.parametrize("towers", [("vision", "text"), ("text",)])
def test_the_librarys_own_model_takes_the_export(config, towers, tmp_path):
    """Text alone matters: names of the text tower are ends of names of the vision tower."""
    plain = split_attention(clip().model)
    model = moved(attach(clip(), config, towers=towers))
    report = export_lora(model, tmp_path / "lora")
    assert report.exact
    assert "exact" in str(report)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
    own, other = deltas(model, "base_model.model.model."), deltas(again, "base_model.model.")
    assert own.keys() == other.keys() == report.ranks.keys()
    for name in own:
        torch.testing.assert_close(other[name], own[name], rtol=1e-6, atol=1e-7)
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(x), model.encode_image(x), rtol=1e-5, atol=1e-5)


LOADER = """
import sys, torch, peft
from torch import nn
for folder in sys.argv[1:]:
    torch.manual_seed(0)
    model = peft.PeftModel.from_pretrained(nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6)), folder)
    with torch.no_grad():
        torch.save(model.eval()(torch.linspace(-1, 1, 24).reshape(2, 12)), folder + ".pt")
assert not any(name.startswith("vision_lowrank") for name in sys.modules)
"""


def test_a_process_without_this_package_loads_the_exports(tmp_path):
    expected = {}
    for name, config in OURS.items():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6))
        config = type(config)(r=2, alpha=config.alpha, target_modules=["0", "2"])
        model = moved(peft.get_peft_model(base, config))
        export_lora(model, tmp_path / name)
        with torch.no_grad():
            expected[name] = model(torch.linspace(-1, 1, 24).reshape(2, 12))
    subprocess.run([sys.executable, "-c", LOADER, *(str(tmp_path / name) for name in OURS)], check=True)
    for name, output in expected.items():
        loaded = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(loaded, output, rtol=1e-5, atol=1e-6)


def test_factors_are_copied_and_the_scale_goes_to_alpha(tmp_path):
    torch.manual_seed(0)
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(12, 10)), BlockLoraConfig(r=6, blocks=2, alpha=2, target_modules=["0"])
    )
    export_lora(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 3, ["0"])
    assert config["lora_alpha"] / config["r"] == pytest.approx(2 / 6**0.5, rel=1e-15)
    again = peft.PeftModel.from_pretrained(nn.Sequential(nn.Linear(12, 10)), tmp_path)
    assert torch.equal(
        again.base_model.model[0].lora_A["default"].weight, model.base_model.model[0].weight_update["default"].A
    )


@pytest.mark.parametrize(("name", "options"), [("LOHA", {"r": 2}), ("HIRA", {"r": 2}), ("DORA", {"r": 2})])
def test_without_a_factor_form_the_tolerance_is_kept(name, options, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 20))
    model = moved(peft.get_peft_model(base, peft_method(name, target_modules=["0"], **options)))
    x = torch.randn(5, 24)
    weight = base[0].get_base_layer().weight.detach().clone()
    report = export_lora(model, tmp_path / "loose", tolerance=0.3)
    exact = export_lora(model, tmp_path / "tight", tolerance=1e-4)
    assert 0 < report.worst <= 0.3
    assert exact.worst <= 1e-4
    assert report.ranks["0"] < exact.ranks["0"]
    plain = nn.Sequential(nn.Linear(24, 20))
    plain.load_state_dict({"0.weight": weight, "0.bias": base[0].get_base_layer().bias})
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "tight").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=1e-2, atol=1e-2)


def test_truncation_is_the_best_of_its_rank_with_the_error_it_says():
    U, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    sigma = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    delta = U[:, :5] @ torch.diag(sigma) @ V.T
    factors, error = truncate(delta, 2, 0.0)
    assert error == pytest.approx((5 / 30) ** 0.5)
    assert float((factors.B @ factors.A - delta).norm() / delta.norm()) == pytest.approx(error, rel=1e-5)
    assert len(truncate(delta, None, 0.42)[0].A) == 2
    assert len(truncate(delta, None, 0.40)[0].A) == 3
    assert len(truncate(delta, None, 1e-6)[0].A) == 4
    assert truncate(torch.zeros(4, 3), None, 0.1)[1] == 0


@pytest.mark.parametrize("name", ["PISSA", "OLORA", "KASA"])
def test_methods_that_altered_the_base_are_refused(name, tmp_path):
    model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 10)), peft_method(name, r=2, target_modules=["0"]))
    with pytest.raises(UserError, match="changed the frozen weights"):
        export_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_mistakes_are_explained(tmp_path):
    model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 10)), LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(UserError, match="unknown LoRA format 'kohja'"):
        export_lora(model, tmp_path / "lora", format="kohja")
    with pytest.raises(UserError, match="needs a model with adapters"):
        export_lora(nn.Linear(3, 3), tmp_path / "lora")
    with pytest.raises(UserError, match="no adapter 'second'"):
        export_lora(model, tmp_path / "lora", adapter_name="second")


def test_the_export_is_the_same_while_merged(tmp_path):
    torch.manual_seed(0)
    model = moved(peft.get_peft_model(nn.Sequential(nn.Linear(12, 10)), peft_method("LOHA", r=2, target_modules=["0"])))
    before = export_lora(model, tmp_path / "a", rank=2)
    model.merge_adapter()
    after = export_lora(model, tmp_path / "b", rank=2)
    assert before.worst > 1e-2
    assert after.worst == pytest.approx(before.worst, rel=1e-3)


def test_a_rank_that_misses_a_given_tolerance_is_refused_and_the_layers_listed_worst_first(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(*[nn.Linear(24, 24) for _ in range(3)])
    model = moved(peft.get_peft_model(base, peft_method("LOHA", r=3, target_modules=["0", "1", "2"])))
    errors = export_lora(model, tmp_path / "free", rank=4).errors  # a rank alone is taken whatever it loses
    order = sorted(errors, key=errors.get, reverse=True)
    between = (errors[order[1]] + errors[order[2]]) / 2
    with pytest.raises(UserError) as caught:
        export_lora(model, tmp_path / "lora", rank=4, tolerance=between)
    first, second = (f"{name} {errors[name]:.2g}" for name in order[:2])
    assert f"in 2 of 3 layers ({first}, {second})" in str(caught.value)
    assert "raise the rank or the tolerance" in str(caught.value)
    assert not (tmp_path / "lora").exists()
    assert export_lora(model, tmp_path / "lora", rank=4, tolerance=1.0).errors == errors


def test_layers_pruned_to_nothing_are_left_out(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8))
    model = moved(peft.get_peft_model(base, SoraConfig(r=3, target_modules=["0", "1"])))
    first, second = (layer.weight_update["default"].g for _, layer in tuner_layers(model))
    with torch.no_grad():
        first.zero_()
        second[1] = 0
    report = export_lora(model, tmp_path / "lora")
    assert report.ranks == {"0": 0, "1": 2}
    assert report.exact
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8))
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
    assert [path for path, _ in tuner_layers(again)] == ["base_model.model.1"]
    x = torch.randn(4, 12)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-6)
        second.zero_()
    with pytest.raises(UserError, match="pruned to rank 0"):
        export_lora(model, tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"bias": "all"}, "trained biases"), ({"modules_to_save": ["2"]}, "2 trained in full")],
)
def test_what_a_plain_lora_does_not_hold_is_refused(options, reason, tmp_path):
    host = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    model = peft.get_peft_model(host, peft.LoraConfig(r=2, target_modules=["0"], **options))
    with pytest.raises(UserError, match=reason):
        export_lora(model, tmp_path / "lora")


def test_one_of_several_active_adapters_must_be_named(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), config)
    model.add_adapter("second", config)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match=r"several adapters are active \(default, second\)"):
        export_lora(model, tmp_path / "lora")
    assert export_lora(model, tmp_path / "lora", adapter_name="second").exact


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), peft.LoraConfig(r=2, target_modules=["0"]))
    model.base_model.model[0].lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="'0' has values that are not finite"):
        export_lora(model, tmp_path / "lora")
