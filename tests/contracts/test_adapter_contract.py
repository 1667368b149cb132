"""The adapter contract: the same behaviours for every method on every kind of host.

A method joins by one line in ROWS (PEFT's: its name and options; ours: its config, closed form and parameter count),
a host by one line in HOSTS.
"""

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import peft
import pytest
import scipy.linalg
import torch
from fixtures.hosts import HOSTS, WIDTH

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.comp_lora import CompLoraConfig
from vision_lowrank.adapters.kasa import KasaConfig
from vision_lowrank.adapters.kv_prefix import KvPrefixConfig
from vision_lowrank.adapters.lamda import LamdaConfig
from vision_lowrank.adapters.lofit import LofitConfig
from vision_lowrank.adapters.loldu import LolduConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.lora_xs import LoraXsConfig
from vision_lowrank.adapters.mixlora import MixLoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.adapters.rand_lora import RandLoraConfig
from vision_lowrank.adapters.slora import SloraConfig
from vision_lowrank.adapters.sora import SoraConfig
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.adapters.visual_prompt import VisualPromptConfig
from vision_lowrank.export.lora import export_lora

# --- methods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        config: target modules -> config.
        delta: (weight, trained tensors by last name, layer) -> ΔW in float64, written independently; None for PEFT's.
        count: (out, in) -> trained parameters of a layer.
        start: how far the output may be from the base's when attached; infinite where the method starts elsewhere.
        keeps_base: whether disabling gives the base back bit for bit.
        reload: how far a reloaded model may be off.
        true_gradient: whether the method's gradient is that of its forward; DoRA's paper treats a norm as a constant.
        hosts: where it can be.
        merges: whether it can be merged.
        exact: whether it is a plain LoRA.
    """

    config: Callable[[list[str]], peft.PeftConfig]
    delta: Callable | None = None
    count: Callable[[int, int], int] | None = None
    start: float = 0.0
    keeps_base: bool = True
    reload: float = 0.0
    true_gradient: bool = True
    hosts: tuple[str, ...] = tuple(HOSTS)
    merges: bool = True
    exact: bool = True


def numpy(tensor):
    return tensor.detach().double().numpy()


def lora_delta(weight, own, layer):
    return 3 / np.sqrt(2) * numpy(own["lora_B"]) @ numpy(own["lora_A"])


def block_delta(weight, own, layer):
    A, arms = numpy(own["A"]), numpy(own["B"])
    return 3 / np.sqrt(4) * sum(arm @ A for arm in arms)


def comp_delta(weight, own, layer):
    """Through the bases that the layer drew, which must be bases of the complement of W's own SVD."""
    P, _, Qt = np.linalg.svd(numpy(weight))
    k = min(weight.shape) // 2
    update = layer.weight_update["default"]
    U_c, V_c = numpy(update.U_c), numpy(update.V_c)
    np.testing.assert_allclose(U_c @ U_c.T, Qt[k:].T @ Qt[k:], atol=1e-5)
    np.testing.assert_allclose(V_c @ V_c.T, P[:, k:] @ P[:, k:].T, atol=1e-5)
    return 3 / np.sqrt(2) * V_c @ numpy(own["B"]) @ numpy(own["A"]) @ U_c.T


def projector_delta(weight, own, layer):
    P, _, Qt = np.linalg.svd(numpy(weight))
    k = min(weight.shape) // 2
    out_c, in_c = P[:, k:] @ P[:, k:].T, Qt[k:].T @ Qt[k:]
    return 3 / np.sqrt(2) * out_c @ numpy(own["B"]) @ numpy(own["A"]) @ in_c


def best(weight, r):
    """U (out, r), σ (r,) and Vᵀ (r, in) of the r largest singular triplets."""
    U, sigma, Vt = np.linalg.svd(numpy(weight), full_matrices=False)
    return U[:, :r], sigma[:r], Vt[:r]


def xs_delta(weight, own, layer):
    """The core sits in a basis whose signs are the layer's own, so they are read off its A."""
    U, sigma, Vt = best(weight, 2)
    A = numpy(layer.weight_update["default"].A)
    np.testing.assert_allclose(abs(A), abs(sigma[:, None] * Vt), atol=1e-6)
    signs = np.sign((A * Vt).sum(axis=1))
    return 3 / 2 * (U * signs) @ numpy(own["core"]) @ (sigma[:, None] * Vt * signs[:, None])


def slora_delta(weight, own, layer):
    return 3 / 2 * numpy(own["B"]) @ numpy(own["core"]) @ numpy(own["A"])


def inttune_delta(weight, own, layer):
    W = numpy(weight)
    return 3 / 2 * W[:, :2] @ numpy(own["core"]) @ W[:2]


def lamda_delta(weight, own, layer):
    """W - U Σ Vᵀ plus the trained product, whatever the signs of the frozen A."""
    U, sigma, Vt = best(weight, 2)
    return 3 / 2 * numpy(own["B"]) @ numpy(own["core"]) @ numpy(layer.weight_update["default"].A) - U * sigma @ Vt


def kasa_delta(weight, own, layer):
    U, sigma, Vt = np.linalg.svd(numpy(weight), full_matrices=False)
    removed = U[:, -2:] * sigma[-2:] @ Vt[-2:]
    return 3 / 2 * numpy(own["B"]) @ np.diag(numpy(own["sigma"])) @ numpy(own["A"]) - removed


def sora_delta(weight, own, layer):
    return 3 / 2 * numpy(own["B"]) @ np.diag(numpy(own["g"])) @ numpy(own["A"])


def loldu_delta(weight, own, layer):
    """From SciPy's factors."""
    P, L, U = scipy.linalg.lu(numpy(weight))
    start = np.diag(U)
    return 3 / 4 * (P @ L)[:, :4] @ np.diag(numpy(own["z"]) - start[:4]) @ (U / start[:, None])[:4]


def lofit_delta(weight, own, layer):
    return numpy(weight) * numpy(own["a"]).reshape(-1)


def by_name(name, **options):
    return lambda targets: peft_method(name, target_modules=targets, **options)


VISION_BLOCKS = r"(.*visual\.transformer\.resblocks|blocks|layers)\.\d+"

OURS = {
    "lora": Row(lambda t: LoraConfig(r=2, alpha=3, target_modules=t), lora_delta, lambda o, i: 2 * (o + i)),
    "block_lora": Row(
        lambda t: BlockLoraConfig(r=4, blocks=2, alpha=3, target_modules=t), block_delta, lambda o, i: 2 * i + 4 * o
    ),
    "comp_lora": Row(
        lambda t: CompLoraConfig(r=2, alpha=3, target_modules=t),
        comp_delta,
        lambda o, i: 2 * (o + i - min(o, i)),
        reload=1e-4,
    ),
    "comp_lora projector": Row(
        lambda t: CompLoraConfig(r=2, alpha=3, form="projector", target_modules=t),
        projector_delta,
        lambda o, i: 2 * (o + i),
        reload=1e-4,
    ),
    "lora_xs": Row(lambda t: LoraXsConfig(r=2, alpha=3, target_modules=t), xs_delta, lambda o, i: 4, start=1e-3),
    "kasa": Row(
        lambda t: KasaConfig(r=2, alpha=3, target_modules=t), kasa_delta, lambda o, i: 2 * (o + i) + 2, start=np.inf
    ),
    "slora": Row(lambda t: SloraConfig(r=2, alpha=3, target_modules=t), slora_delta, lambda o, i: 2 * (o + i) + 4),
    "slora middle": Row(
        lambda t: SloraConfig(r=2, alpha=3, train="middle", target_modules=t),
        inttune_delta,
        lambda o, i: 4,
        start=np.inf,
    ),
    "lamda": Row(
        lambda t: LamdaConfig(r=2, alpha=3, target_modules=t), lamda_delta, lambda o, i: 4 + 2 * o, start=1e-5
    ),
    "sora": Row(lambda t: SoraConfig(r=2, alpha=3, target_modules=t), sora_delta, lambda o, i: 2 * (o + i) + 2),
    "loldu": Row(lambda t: LolduConfig(r=4, alpha=3, target_modules=t), loldu_delta, lambda o, i: 4),
    "lofit": Row(
        lambda t: LofitConfig(target_modules=r".*\.(out_proj|o_proj)"),
        lofit_delta,
        lambda o, i: i,
        start=1e-2,
        hosts=("timm", "open_clip", "hf"),
        exact=False,
    ),
    "mixlora": Row(
        lambda t: MixLoraConfig(r=2, alpha=3, experts=3, target_modules=[*t, "mlp"]),
        start=1e-5,
        hosts=("timm", "open_clip", "hf"),
        merges=False,
        exact=False,
    ),
    "visual_prompt": Row(
        lambda t: VisualPromptConfig(length=3, target_modules=VISION_BLOCKS),
        start=np.inf,
        hosts=("timm", "open_clip", "hf"),
        merges=False,
        exact=False,
    ),
    "visual_prompt shallow": Row(
        lambda t: VisualPromptConfig(length=3, deep=False, target_modules=VISION_BLOCKS),
        start=np.inf,
        hosts=("timm", "open_clip", "hf"),
        merges=False,
        exact=False,
    ),
    "kv_prefix": Row(
        lambda t: KvPrefixConfig(length=3, target_modules=["core"]),
        start=np.inf,
        hosts=("timm", "open_clip"),
        merges=False,
        exact=False,
    ),
    "kv_prefix gate": Row(
        lambda t: KvPrefixConfig(length=3, zero_init_gate=True, target_modules=["core"]),
        hosts=("timm", "open_clip"),
        merges=False,
        exact=False,
    ),
}
PEFTS = {
    "DORA": Row(by_name("DORA", r=2), count=lambda o, i: 2 * (o + i) + o, start=1e-5, true_gradient=False),
    "PISSA": Row(by_name("PISSA", r=2), count=lambda o, i: 2 * (o + i), start=1e-4, keeps_base=False, reload=1e-4),
    "LOHA": Row(by_name("LOHA", r=2), count=lambda o, i: 4 * (o + i)),
    "LOKR": Row(by_name("LOKR", r=2)),
    "VERA": Row(by_name("VERA", r=4), count=lambda o, i: 4 + o),
    "RANDLORA": Row(by_name("RANDLORA", r=4)),
    "rand_lora": Row(
        lambda t: RandLoraConfig(r=5, target_modules=t), count=lambda o, i: -(-min(o, i) // 5) * (5 + min(o, i))
    ),
    "OFT": Row(by_name("OFT", r=0, oft_block_size=8), start=1e-5),
    "HIRA": Row(by_name("HIRA", r=2), count=lambda o, i: 2 * (o + i)),
    "MISS": Row(by_name("MISS", r=4), count=lambda o, i: 4 * o),
    "DELORA": Row(by_name("DELORA", r=2), count=lambda o, i: 2 * (o + i) + 1, start=1e-5),
}
ROWS = {**OURS, **PEFTS}

everywhere = pytest.mark.parametrize("host", HOSTS)
every_method = pytest.mark.parametrize("method", ROWS)
our_methods = pytest.mark.parametrize("method", OURS)
every_mergeable = pytest.mark.parametrize("method", [name for name, row in ROWS.items() if row.merges])
our_mergeable = pytest.mark.parametrize("method", [name for name, row in OURS.items() if row.merges])
our_exact = pytest.mark.parametrize("method", [name for name, row in OURS.items() if row.exact])

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@functools.cache
def pristine(host):
    torch.manual_seed(0)
    return HOSTS[host].build().eval()


def base_of(host):
    return copy.deepcopy(pristine(host))


def attached(method, host, dtype=torch.float32):
    """A fresh adapter on a fresh host; PEFT's methods are written for float32 and become double afterwards."""
    if host not in ROWS[method].hosts:
        pytest.skip(f"{method} has nothing to adapt there")
    base = base_of(host).to(dtype if method in OURS else torch.float32)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, ROWS[method].config(HOSTS[host].targets(base)))
    return (model.double() if dtype == torch.float64 else model).eval()


@torch.no_grad()
def trained(model, seed=2, amount=0.05):
    """As after training: every trainable tensor moved."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainables(model):
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * amount)
    return model


def trainables(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def own_tensors(layer):
    """Trained tensors of one layer under the last meaningful part of their names."""
    names = [(name.replace(".default", "").replace(".weight", ""), p) for name, p in layer.named_parameters()]
    return {name.rpartition(".")[2]: p for name, p in names if p.requires_grad}


@torch.no_grad()
def output(model, host):
    return HOSTS[host].run(model)


# --- behaviours ------------------------------------------------------------------------------------------------------


@everywhere
@every_method
def test_output_at_the_start_equals_the_base(method, host):
    difference = (output(attached(method, host), host) - output(base_of(host), host)).abs().max()
    assert difference <= ROWS[method].start


@everywhere
@our_mergeable
def test_forward_is_that_of_a_model_with_the_closed_form_weight(method, host):
    model = trained(attached(method, host, torch.float64))
    reference = base_of(host).double()
    for path, layer in tuner_layers(model):
        linear = reference.get_submodule(path.removeprefix("base_model.model."))
        delta = ROWS[method].delta(linear.weight, own_tensors(layer), layer)
        linear.weight.data += torch.from_numpy(delta)
    torch.testing.assert_close(output(model, host), output(reference, host), rtol=1e-9, atol=1e-9)
    assert (output(model, host) - output(base_of(host).double(), host)).abs().max() > 1e-3


@everywhere
@pytest.mark.parametrize("method", [name for name, row in ROWS.items() if row.true_gradient])
def test_gradient_equals_central_difference(method, host):
    model = trained(attached(method, host, torch.float64))
    parameters = trainables(model)
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    weights = torch.randn(output(model, host).shape, generator=generator, dtype=torch.float64)

    def loss():
        return (HOSTS[host].run(model) * weights).sum()

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((gradient * d).sum() for gradient, d in zip(gradients, direction, strict=True))

    @torch.no_grad()
    def moved(step):
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.add_(d, alpha=step)
        value = loss()
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.sub_(d, alpha=step)
        return value

    difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert abs(slope) > 1e-6
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-6)


@everywhere
@every_mergeable
def test_merged_forward_equals_unmerged(method, host):
    model = trained(attached(method, host))
    before = output(model, host)
    model.merge_adapter()
    torch.testing.assert_close(output(model, host), before, rtol=1e-4, atol=1e-4)


@everywhere
@our_mergeable
def test_merge_and_unmerge_restore_the_weight(method, host):
    model = trained(attached(method, host))
    before = {path: layer.get_base_layer().weight.clone() for path, layer in tuner_layers(model)}
    model.merge_adapter()
    changed = [not torch.equal(layer.get_base_layer().weight, before[path]) for path, layer in tuner_layers(model)]
    model.unmerge_adapter()
    assert all(changed)
    for path, layer in tuner_layers(model):
        if method == "lora":  # PEFT's own layer subtracts: rounding remains
            torch.testing.assert_close(layer.get_base_layer().weight, before[path], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(layer.get_base_layer().weight, before[path])


@everywhere
@every_method
def test_disabled_is_the_base_bit_for_bit(method, host):
    model = trained(attached(method, host))
    base = output(base_of(host), host)
    assert not torch.equal(output(model, host), base)
    with model.disable_adapter():
        assert torch.equal(output(model, host), base) == ROWS[method].keeps_base


def loaded(folder, host, **options):
    """The adapter in a folder on a base of its own, as PEFT loads it."""
    return peft.PeftModel.from_pretrained(base_of(host), folder, **options).eval()


@everywhere
@every_method
def test_save_and_reload_give_the_same_output(method, host, tmp_path):
    model = trained(attached(method, host))
    model.save_pretrained(tmp_path)
    again = loaded(tmp_path, host)
    tolerance = ROWS[method].reload
    torch.testing.assert_close(output(again, host), output(model, host), rtol=tolerance, atol=tolerance)


@everywhere
@our_methods
def test_loading_into_empty_tensors_gives_the_same_output(method, host, tmp_path):
    model = trained(attached(method, host))
    model.save_pretrained(tmp_path)
    plain, lean = loaded(tmp_path, host), loaded(tmp_path, host, low_cpu_mem_usage=True)
    assert not any(tensor.is_meta for tensor in (*lean.parameters(), *lean.buffers()))
    torch.testing.assert_close(dict(lean.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    expected = output(model, host)
    tolerance = max(ROWS[method].reload, 1e-5)  # tensors of a file lie elsewhere in memory, so rounding differs
    torch.testing.assert_close(output(lean, host), expected, rtol=tolerance, atol=tolerance)
    plain.load_adapter(tmp_path, "second", low_cpu_mem_usage=True)
    plain.set_adapter("second")
    torch.testing.assert_close(output(plain.eval(), host), expected, rtol=tolerance, atol=tolerance)


@everywhere
@pytest.mark.parametrize("method", [name for name, row in ROWS.items() if row.count])
def test_parameter_count_follows_the_formula(method, host):
    model = attached(method, host)
    shapes = [layer.get_base_layer().weight.shape for _, layer in tuner_layers(model)]
    assert sum(p.numel() for p in trainables(model)) == sum(ROWS[method].count(*shape) for shape in shapes)


@everywhere
@every_method
def test_every_trainable_tensor_receives_a_gradient(method, host):
    model = trained(attached(method, host))
    HOSTS[host].run(model).square().sum().backward()
    assert trainables(model)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trainables(model))
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@everywhere
@our_exact
def test_export_to_plain_lora_is_exact(method, host, tmp_path):
    model = trained(attached(method, host))
    report = export_lora(model, tmp_path / "lora")
    assert report.exact
    plain = loaded(tmp_path / "lora", host)
    assert plain.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(output(plain, host), output(model, host), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in PEFTS if name != "PISSA"])
def test_export_to_plain_lora_reports_its_error(method, tmp_path):
    """The reported error is that of the file, measured against ΔW from the merged model."""
    model = trained(attached(method, "mlp"))
    report = export_lora(model, tmp_path / "lora", rank=8)
    plain = peft.PeftModel.from_pretrained(base_of("mlp"), tmp_path / "lora")
    base, merged = base_of("mlp").double(), copy.deepcopy(model).double().merge_and_unload()
    for name in ("fc1", "fc2"):
        delta = merged.get_submodule(name).weight - base.get_submodule(name).weight
        written = plain.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        error = float((delta - written).norm() / delta.norm())
        assert report.ranks[name] == 8
        assert report.errors[name] == pytest.approx(error, abs=1e-4)


@our_methods
def test_compiles_as_one_graph(method):
    torch.compiler.reset()  # all methods share one forward, and it is compiled only so many times
    model = trained(attached(method, "mlp"))
    compiled = torch.compile(model.base_model.model.fc1, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, WIDTH)
    torch.testing.assert_close(compiled(x), model.base_model.model.fc1(x), rtol=1e-6, atol=1e-6)


@everywhere
@our_methods
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_with_float32_adapter(method, host, dtype):
    half = trained(attached(method, host, dtype))
    rounded = base_of(host).to(dtype).float()
    torch.manual_seed(1)
    full = trained(peft.get_peft_model(rounded, ROWS[method].config(HOSTS[host].targets(rounded))).eval())
    assert {p.dtype for p in trainables(half)} == {torch.float32}
    result = output(half, host)
    assert result.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(result.float(), output(full, host), rtol=tolerance, atol=tolerance)


@everywhere
@every_method
def test_two_adapters_switch_cleanly(method, host):
    if not ROWS[method].keeps_base:
        pytest.skip("its attaching changes the frozen weight, so two adapters cannot share it")
    model = trained(attached(method, host))
    first = output(model, host)
    torch.manual_seed(7)
    model.add_adapter("second", ROWS[method].config(HOSTS[host].targets(base_of(host))))
    model.set_adapter("second")
    model.eval()
    assert (output(model, host) - output(base_of(host), host)).abs().max() <= ROWS[method].start
    second = output(trained(model, seed=11, amount=0.1), host)
    assert not torch.equal(first, second)
    model.set_adapter("default")
    assert torch.equal(output(model, host), first)
    model.set_adapter("second")
    assert torch.equal(output(model, host), second)
    model.delete_adapter("default")
    assert torch.equal(output(model, host), second)


@our_methods
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3, 2)])
def test_accepts_any_leading_shape(method, shape):
    layer = trained(attached(method, "mlp")).base_model.model.fc1
    x = torch.randn(*shape, WIDTH)
    flat = torch.stack([layer(row) for row in x.reshape(-1, WIDTH)]).reshape(*shape, 2 * WIDTH)
    torch.testing.assert_close(layer(x), flat, rtol=1e-5, atol=1e-5)
