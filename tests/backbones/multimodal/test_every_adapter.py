"""Every registered adapter on both towers of multimodal LLMs, and what only these need of core, coverage and export."""

import copy
import functools
import warnings

import peft
import pytest
import torch
import torch.nn.functional as F
from contracts.test_adapter_contract import ROWS
from fixtures.hosts import HOSTS
from fixtures.models import moved
from fixtures.multimodal import fresh, inputs_for

import vision_lowrank as vl
from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.kv_prefix import KvPrefixConfig
from vision_lowrank.adapters.lofit import LofitConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.mixlora import MixLoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.adapters.visual_prompt import VisualPromptConfig
from vision_lowrank.attention.split import fuse_attention, split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.backbones.multimodal.sizes import TINY
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora
from vision_lowrank.export.merged import export_merged

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

MAIN, QWENS = ("tiny-internvl3_5", "tiny-qwen2.5-vl"), ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
TOWERS = ("vision", "llm")
# Methods whose rows in the contract name modules of its hosts; a head of these LLMs is 16 wide.
WHOLE = {
    "lofit": LofitConfig,
    "mixlora": lambda: MixLoraConfig(r=2, experts=3),
    "visual_prompt": lambda: VisualPromptConfig(length=3),
    "visual_prompt shallow": lambda: VisualPromptConfig(length=3, deep=False),
    "kv_prefix": lambda: KvPrefixConfig(length=3),
    "kv_prefix gate": lambda: KvPrefixConfig(length=3, zero_init_gate=True),
}
CONFIGS = {
    **{name: lambda row=row: row.config(None) for name, row in ROWS.items() if row.hosts == tuple(HOSTS)},
    **WHOLE,
    "IA3": lambda: peft_method("IA3"),
}
STARTS = {name: ROWS[name].start if name in ROWS else 0.0 for name in CONFIGS}
# What cannot be: (method, arch, tower) -> why.
PLAIN, GATED = r"needs the blocks of a plain vision transformer.*method such as kv_prefix", "without gate"
REFUSED = {
    ("mixlora", "tiny-internvl3_5", "llm"): GATED,
    **{("mixlora", "tiny-qwen2.5-vl", tower): GATED for tower in TOWERS},
    **{
        (method, arch, tower): PLAIN
        for method in ("visual_prompt", "visual_prompt shallow")
        for arch, tower in (("tiny-internvl3_5", "llm"), *((MAIN[1], tower) for tower in TOWERS))
    },
}
CASES = [(method, arch, tower) for method in CONFIGS for arch in MAIN for tower in TOWERS]
OTHERS = [arch for arch in TINY if arch not in MAIN]
CASES += [(method, arch, tower) for method in ("kv_prefix", "lora") for arch in OTHERS for tower in TOWERS]
CASES += [("visual_prompt", "tiny-smolvlm", "vision"), ("visual_prompt shallow", "tiny-smolvlm", "vision")]


@functools.cache
def pristine(arch):
    return fresh(arch)


def attached(method, arch, tower):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        return vl.attach(copy.deepcopy(pristine(arch)), CONFIGS[method](), towers=[tower]).eval()


def tiles_of(backbone, count=2):
    size = backbone.preprocess.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def states(model):
    """Two pictures, the first in two tiles: states behind the LLM's last layer."""
    return model.image_states(tiles_of(model, 3), [2, 1], [model.state_layers])[0][0]


def loss(model, tower):
    """Of image states for the tower, of answers for the LLM."""
    if tower == "vision":
        return states(model).square().mean()
    return model.answer_loss(tiles_of(model), [1, 1], ["what?", "is it edited?"], ["a cat", "no"])


# every method ------------------------------------------------------------------------------------------------------


def test_every_registered_adapter_has_a_case():
    ours = {part.name for part in vl.methods("adapter")} - {"peft"}
    assert ours <= {method.partition(" ")[0] for method in CONFIGS}
    assert REFUSED.keys() <= set(CASES)


@pytest.mark.parametrize(("method", "arch", "tower"), [case for case in CASES if case not in REFUSED])
def test_attaches_starts_where_it_promises_trains_and_comes_back(method, arch, tower, tmp_path):
    with torch.no_grad():
        base = states(pristine(arch))
    model = attached(method, arch, tower)
    with torch.no_grad():
        start = states(model)
    assert start.shape == base.shape
    assert (start - base).abs().max() <= 20 * STARTS[method]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {model.tower_of(name) for name, p in model.get_base_model().named_parameters() if p.requires_grad} == {tower}
    optimizer = torch.optim.Adam(trained, lr=0.01)
    loss(model, tower).backward()
    optimizer.step()
    with torch.no_grad():
        after = states(model), loss(model, tower)
    assert (after[0] - start).abs().max() > 1e-4
    vl.save(model, tmp_path / "adapter")
    again = vl.load(tmp_path / "adapter", copy.deepcopy(pristine(arch)))
    tolerance = 10 * getattr(ROWS.get(method), "reload", 0.0)
    with torch.no_grad():
        torch.testing.assert_close(states(again), after[0], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(loss(again, tower), after[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("method", "arch", "tower"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason_and_leaves_the_backbone_as_it_was(method, arch, tower):
    backbone = copy.deepcopy(pristine(arch))
    with pytest.raises(UserError, match=REFUSED[method, arch, tower]):
        vl.attach(backbone, CONFIGS[method](), towers=[tower])
    assert not adapter_layers(backbone)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_refused_where_the_library_records_them(deep):
    with pytest.raises(UserError, match=r"a SiglipEncoderLayer: LLaVA-OneVision reads what transformers records"):
        vl.attach(fresh("tiny-llava-onevision"), VisualPromptConfig(deep=deep), towers=["vision"])


# kv_prefix ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", TINY)
@torch.no_grad()
def test_a_core_changes_no_bit_and_goes_again(arch):
    backbone = copy.deepcopy(pristine(arch))
    questions, tiles = ["what?", "is it edited?"], tiles_of(backbone, 3)

    def outputs(model):
        """With padding, where the library makes a mask, and without, where it leaves the past to its function."""
        alone = model.image_states(tiles[:1], [1], [model.state_layers])[0][0]
        return states(model), alone, model.generate(tiles, [2, 1], questions, 4)

    before = outputs(backbone)
    configs = {path: module.config for path, module in backbone.named_modules() if hasattr(module, "is_causal")}
    split_attention(backbone)
    cores = [path for path, _ in backbone.named_modules() if path.endswith(".core")]
    assert len(cores) == sum(len(tower.blocks) for tower in backbone.towers.values())
    model = vl.attach(copy.deepcopy(backbone), KvPrefixConfig(), modules=["attention"])
    with model.disable_adapter():
        for one in (backbone, model):
            after = outputs(one)
            assert torch.equal(after[0], before[0])
            assert torch.equal(after[1], before[1])
            assert after[2] == before[2]
    with pytest.raises(UserError, match=r"\.core' still carries an adapter"):
        fuse_attention(model)
    fuse_attention(backbone)
    assert not [path for path, _ in backbone.named_modules() if path.endswith(".core")]
    assert all(backbone.get_submodule(path).config is config for path, config in configs.items())
    assert torch.equal(states(backbone), before[0])


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("kind", ["free", "causal", "mask"])
@torch.no_grad()
def test_a_prefix_of_fewer_heads_follows_the_closed_form(gate, kind):
    config = KvPrefixConfig(length=3, zero_init_gate=gate)
    model = moved(vl.attach(fresh("tiny-internvl3_5"), config, towers=["llm"]).double())
    core = model.get_submodule(f"base_model.model.{model.towers['llm'].blocks[1]}.self_attn.core")
    q, k, v = (torch.randn(2, heads, 5, 16, dtype=torch.float64) for heads in (4, 2, 2))
    seen = torch.ones(5, 5, dtype=torch.bool)
    if kind != "free":
        seen = seen.tril()
    mask = seen.expand(2, 1, 5, 5) if kind == "mask" else None
    y, _ = core(q, k, v, mask, 0.0, kind == "causal", 0.3)
    update = core.weight_update["default"]
    Pk, Pv = (P.view(3, 2, 16) for P in (update.Pk, update.Pv))
    for head in range(4):
        group = head // 2
        own = torch.where(seen, torch.exp(0.3 * q[:, head] @ k[:, group].mT), 0.0)
        more = torch.exp(0.3 * q[:, head] @ Pk[:, group].T)
        if gate:
            expected = own @ v[:, group] / own.sum(-1, keepdim=True)
            expected += update.g[head].tanh() * (more @ Pv[:, group]) / more.sum(-1, keepdim=True)
        else:
            total = own.sum(-1, keepdim=True) + more.sum(-1, keepdim=True)
            expected = (own @ v[:, group] + more @ Pv[:, group]) / total
        torch.testing.assert_close(y[:, head], expected)


@pytest.mark.parametrize("arch", [*MAIN, "tiny-qwen3-vl", "tiny-smolvlm"])
@torch.no_grad()
def test_a_prefix_goes_with_the_cache_padding_and_packing(arch):
    model = moved(attached("kv_prefix", arch, "llm"))
    backbone, tiles = model.get_base_model(), tiles_of(model, 2)
    inputs = inputs_for(backbone, tiles, [1, 1], side="left")
    made = backbone.model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    ids, known = inputs["input_ids"], inputs["input_ids"].shape[1]
    for grown in range(4):  # the same without a cache, all tokens anew at every step
        more = {"attention_mask": F.pad(inputs["attention_mask"], (0, grown), value=1)}
        if "mm_token_type_ids" in inputs:
            more["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, grown))
        logits = backbone.model(**{**inputs, **more, "input_ids": ids}, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert ids.shape[1] == known + 4
    assert torch.equal(made, ids)
    tower = moved(attached("kv_prefix", arch, "vision"))
    together = tower.image_tokens(tiles)
    alone = torch.cat([tower.image_tokens(tile[None]) for tile in tiles])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


# visual_prompt -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("arch", ["tiny-internvl3_5", "tiny-smolvlm"])
@torch.no_grad()
def test_prompts_are_tokens_of_the_tower_that_the_projector_never_sees(arch, deep):
    """Against the tower's own blocks, called one by one on longer sequences."""
    model = moved(vl.attach(fresh(arch), VisualPromptConfig(length=3, deep=deep), towers=["vision"]))
    plain, tiles, entering = pristine(arch), tiles_of(model, 2), []
    blocks = [plain.get_submodule(path) for path in plain.towers["vision"].blocks]
    handle = blocks[0].register_forward_pre_hook(lambda block, args: entering.append(args))
    plain.image_tokens(tiles)
    handle.remove()
    (x, *rest), prompts = entering[0], dict(adapter_layers(model))
    number, z = x.shape[1], None
    for path, block in zip(model.towers["vision"].blocks, blocks, strict=True):
        P = prompts[f"base_model.model.{path}"].weight_update["default"].P
        z = P.expand(2, -1, -1) if P is not None else z
        y = block(torch.cat([x, z], dim=1), *rest)
        x, z = y[:, :number], y[:, number:]
    tower = plain.get_submodule(f"model.model.{plain.family.vision}")
    final, prefix = (tower.layernorm, 1) if arch == "tiny-internvl3_5" else (tower.post_layernorm, 0)
    torch.testing.assert_close(model.image_tokens(tiles), final(x)[:, prefix:], rtol=1e-5, atol=1e-5)


# coverage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", TINY)
def test_the_probe_reaches_projector_llm_and_head_on_its_own(arch):
    backbone = copy.deepcopy(pristine(arch))
    linears = [path for path, module in backbone.named_modules() if isinstance(module, torch.nn.Linear)]
    parts = tuple(f"model.model.{path}." for path in backbone.family.projector)
    projector = [path for path in linears if path.startswith(parts)]
    assert projector
    blocks = backbone.towers["llm"].blocks
    targets = [*projector, f"{blocks[0]}.mlp.up_proj", f"{blocks[-1]}.mlp.down_proj", "model.lm_head"]
    report = vl.coverage(vl.attach(backbone, LoraConfig(r=2, target_modules=targets)))
    assert len(report.rows) == len(targets)
    assert not report.dead


# export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [["q", "k", "v"], ["q", "v", "o", "fc1"]], ids=" ".join)
@pytest.mark.parametrize("config", [LoraConfig(r=3, alpha=2), BlockLoraConfig(r=4, blocks=2)], ids=["lora", "block"])
@pytest.mark.parametrize("arch", QWENS)
@torch.no_grad()
def test_vanilla_peft_loads_an_exported_lora_on_qwens_own_tower(arch, config, modules, tmp_path):
    model = moved(vl.attach(copy.deepcopy(pristine(arch)), config, towers=TOWERS, modules=modules))
    report = export_lora(model, tmp_path / "lora", fuse_qkv=True)
    assert report.exact
    assert any(name.endswith(".qkv") for name in report.ranks)
    assert not any(".qkv." in name for name in report.ranks)
    plain = copy.deepcopy(pristine(arch))
    peft.PeftModel.from_pretrained(plain.model, tmp_path / "lora").eval()
    torch.testing.assert_close(states(plain), states(model), rtol=1e-5, atol=1e-5)
    assert (states(plain) - states(pristine(arch))).abs().max() > 1e-2


@pytest.mark.parametrize("arch", QWENS)
@torch.no_grad()
def test_merged_is_the_librarys_own_model(arch, tmp_path):
    model = moved(vl.attach(copy.deepcopy(pristine(arch)), LoraConfig(r=3), modules=["q", "v", "o"]))
    merged = vl.merge(model)
    plain = copy.deepcopy(pristine(arch))
    assert merged.model.state_dict().keys() == plain.model.state_dict().keys()
    torch.testing.assert_close(states(merged), states(model), rtol=1e-5, atol=1e-5)
    again = load_backbone(f"hf:{arch}", export_merged(model, tmp_path / "merged.safetensors"))
    assert torch.equal(states(again), states(merged))


# names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("hf:tiny-internvl35", "random", "Did you mean 'tiny-internvl3_5'"),
        ("hf:OpenGVLab/InternVL3_5-1B", "random", "Did you mean 'OpenGVLab/InternVL3_5-1B-HF'"),
        ("hf:Qwen/Qwen2.5-VL-3B", "pretrained", "could not be fetched.*Did you mean 'Qwen/Qwen2.5-VL-3B-Instruct'"),
        ("hf", None, "backbone 'hf' lacks a model, as in 'hf:"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, weights, says, monkeypatch):
    import transformers

    def missing(*args, **kwargs):
        raise OSError("no such repository")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", missing)
    with pytest.raises(UserError, match=says):
        load_backbone(name, weights)


def test_a_missing_processor_names_the_extra(monkeypatch):
    backbone = copy.deepcopy(pristine("tiny-smolvlm"))
    monkeypatch.setattr(backbone, "native", None)
    with pytest.raises(UserError, match=r'pip install "vision-lowrank\[mllm\]"'):
        backbone.processor  # noqa: B018
