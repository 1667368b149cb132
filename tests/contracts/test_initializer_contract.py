"""The initialiser contract: the same behaviours for every initialiser with every adapter that has factors.

An initialiser joins by one line in STARTS, an adapter by one line in ADAPTERS.
"""

import copy
import functools

import peft
import pytest
import torch
from fixtures.hosts import HOSTS

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.comp_lora import CompLoraConfig
from vision_lowrank.adapters.lamda import LamdaConfig
from vision_lowrank.adapters.loldu import LolduConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.lora_xs import LoraXsConfig
from vision_lowrank.adapters.slora import SloraConfig
from vision_lowrank.adapters.sora import SoraConfig
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora
from vision_lowrank.initializers.initialize import initialize, weight_gradients
from vision_lowrank.initializers.lora_ga import LoraGa
from vision_lowrank.initializers.lora_sb import LoraSb
from vision_lowrank.initializers.nystrom import Nystrom
from vision_lowrank.initializers.pissa import Pissa
from vision_lowrank.initializers.truncated_normal import TruncatedNormal
from vision_lowrank.registry import registry

STARTS = {
    "pissa": Pissa(),
    "lora_ga": LoraGa(gamma=16),
    "lora_sb": LoraSb(lr=1e-3),
    "lora_sb residual": LoraSb(lr=1e-3, residual=True),
    "nystrom": Nystrom(),
    "truncated_normal": TruncatedNormal(),
    "nystrom pinv": Nystrom(core="pinv", residual=True),
}
ADAPTERS = {
    "lora": lambda targets: LoraConfig(r=2, alpha=3, target_modules=targets).with_offset(),
    "block_lora": lambda targets: BlockLoraConfig(r=4, blocks=2, alpha=3, target_modules=targets),
    "comp_lora": lambda targets: CompLoraConfig(r=2, alpha=3, target_modules=targets),
    "lora_xs": lambda targets: LoraXsConfig(r=2, alpha=3, target_modules=targets),
    "slora": lambda targets: SloraConfig(r=2, alpha=3, target_modules=targets),
    "lamda": lambda targets: LamdaConfig(r=2, alpha=3, target_modules=targets),
    "sora": lambda targets: SoraConfig(r=2, alpha=3, target_modules=targets),
}
every_start = pytest.mark.parametrize("start", STARTS)
every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)
every_host = pytest.mark.parametrize("host", ["timm", "open_clip", "hf"])

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@functools.cache
def pristine(host):
    torch.manual_seed(0)
    return HOSTS[host].build().eval()


def losses(host, batches=2):
    """Losses that differ from batch to batch, and depend on every part of the output."""
    shape = HOSTS[host].run(copy.deepcopy(pristine(host))).shape
    targets = [torch.randn(shape, generator=torch.Generator().manual_seed(each)) for each in range(batches)]
    return [lambda model, t=t: (HOSTS[host].run(model) - t).square().mean() for t in targets]


def fresh(adapter, host):
    base = copy.deepcopy(pristine(host))
    torch.manual_seed(1)
    return peft.get_peft_model(base, ADAPTERS[adapter](HOSTS[host].targets(base))).eval()


def started(adapter, host, start):
    model = fresh(adapter, host)
    initialize(model, STARTS[start], losses(host))
    return model


def trained(model, seed=2):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@torch.no_grad()
def output(model, host):
    return HOSTS[host].run(model)


def test_every_registered_initializer_is_in_the_contract():
    assert {part.name for part in registry.list("initializer")} == {start.type for start in STARTS.values()}


@every_host
@every_adapter
@every_start
def test_the_output_is_kept_where_the_initializer_says_so(start, adapter, host):
    difference = (output(started(adapter, host, start), host) - output(pristine(host), host)).abs().max()
    assert (difference < 1e-5) == STARTS[start].keeps_output


@every_host
@every_adapter
@every_start
def test_the_base_weight_is_never_altered_and_disabling_gives_it_back(start, adapter, host):
    model = trained(started(adapter, host, start))
    for name, layer in adapter_layers(model):
        weight = pristine(host).get_submodule(name.removeprefix("base_model.model.")).weight
        assert torch.equal(layer.base_layer.weight, weight)
        assert layer.base_layer.weight.grad is None
        assert not layer.base_layer.weight.requires_grad
    assert not torch.equal(output(model, host), output(pristine(host), host))
    with model.disable_adapter():
        assert torch.equal(output(model, host), output(pristine(host), host))


@every_host
@every_adapter
@every_start
def test_the_trained_update_exports_exactly_and_reloads(start, adapter, host, tmp_path):
    model = trained(started(adapter, host, start))
    report = export_lora(model, tmp_path / "lora")
    assert report.exact
    assert max(report.ranks.values()) <= 4
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(pristine(host)), tmp_path / "lora").eval()
    torch.testing.assert_close(output(plain, host), output(model, host), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "own")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(pristine(host)), tmp_path / "own").eval()
    torch.testing.assert_close(output(again, host), output(model, host), rtol=1e-4, atol=1e-4)


@every_adapter
@every_start
def test_the_same_start_twice(start, adapter):
    one, other = (started(adapter, "open_clip", start).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@every_adapter
@every_start
def test_merged_forward_equals_unmerged_and_unmerging_restores_the_weight(start, adapter):
    model = trained(started(adapter, "timm", start))
    before = output(model, "timm")
    model.merge_adapter()
    torch.testing.assert_close(output(model, "timm"), before, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert all(
        torch.equal(layer.base_layer.weight, pristine("timm").get_submodule(name.split("model.", 2)[-1]).weight)
        for name, layer in adapter_layers(model)
    )


@every_host
def test_gradients_are_those_of_the_base_averaged_over_batches(host):
    model = trained(fresh("slora", host))
    flags = [p.requires_grad for p in model.parameters()]
    layers = dict(adapter_layers(model))
    found = weight_gradients(model, layers, losses(host, batches=3))
    base = copy.deepcopy(pristine(host))
    (sum(loss(base) for loss in losses(host, batches=3)) / 3).backward()
    for name in layers:
        expected = base.get_submodule(name.removeprefix("base_model.model.")).weight.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_identical_batches_do_not_change_the_mean():
    model = fresh("slora", "timm")
    layers, loss = dict(adapter_layers(model)), losses("timm", batches=1)
    one, three = weight_gradients(model, layers, loss), weight_gradients(model, layers, loss * 3)
    for name in layers:
        torch.testing.assert_close(one[name], three[name], rtol=1e-4, atol=1e-6)


def test_no_two_gradients_are_on_the_device_at_a_time():
    model = fresh("slora", "timm")
    layers = dict(adapter_layers(model))
    weights = [layer.base_layer.weight for layer in layers.values()]
    alive = []
    handles = []

    def watch(_):
        alive.append(sum(weight.grad is not None for weight in weights))

    for weight in weights:
        weight.requires_grad_()
        handles.append(weight.register_post_accumulate_grad_hook(watch))
    weight_gradients(model, layers, losses("timm"))
    assert len(alive) == 2 * len(weights)
    assert max(alive) == 1


def test_an_initializer_that_needs_gradients_says_so():
    with pytest.raises(UserError, match="lora_ga looks at gradients: give losses"):
        initialize(fresh("slora", "timm"), LoraGa())


@pytest.mark.parametrize("start", [LoraGa(), LoraSb(lr=1e-3)], ids=lambda each: each.type)
def test_a_gradient_of_zero_is_refused_by_name(start):
    zero = [lambda model: HOSTS["timm"].run(model).sum() * 0]
    with pytest.raises(UserError, match=r"no usable gradient at '.*blocks\.0\.attn\..*warm the head up"):
        initialize(fresh("slora", "timm"), start, zero)


@every_adapter
@pytest.mark.parametrize("start", [name for name, start in STARTS.items() if start.keeps_output])
def test_the_output_is_kept_under_autocast_too(start, adapter):
    model = started(adapter, "timm", start)
    with torch.autocast("cpu", torch.bfloat16):
        difference = (output(model, "timm") - output(pristine("timm"), "timm")).norm() / output(model, "timm").norm()
    assert difference < 1e-3


def test_a_method_that_defines_its_own_start_refuses_before_any_gradient_is_taken():
    def never(model):
        raise AssertionError("computed")

    base = copy.deepcopy(pristine("timm"))
    model = peft.get_peft_model(base, LolduConfig(target_modules=HOSTS["timm"].targets(base)))
    with pytest.raises(UserError, match="loldu defines its own start: leave the initializer out"):
        initialize(model, LoraGa(), [never])


def test_lora_with_options_of_pefts_that_an_offset_cannot_have_is_refused():
    with pytest.raises(UserError, match="cannot have layers_to_transform, use_dora too"):
        LoraConfig(r=2, use_dora=True, layers_to_transform=[0]).with_offset()
