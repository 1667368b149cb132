"""What a loop of one's own does for the parts of a model is what the engine does, bit for bit; and who is reminded."""

import warnings

import pytest
import torch
from fixtures.gated_task import Pictures, backbone
from fixtures.tiny_tasks import settings
from torch import nn
from torch.utils.data import default_collate

import vision_lowrank as vl
from vision_lowrank import trained
from vision_lowrank.adapters.lofit import Lofit
from vision_lowrank.adapters.mixlora import MixLora
from vision_lowrank.adapters.sora import Sora
from vision_lowrank.engine import Engine
from vision_lowrank.engine.sampler import BatchPlan
from vision_lowrank.engine.seeding import Stream, seed_everything
from vision_lowrank.engine.task import Stage, Task

SEED, STEPS, SIZE = 3, 5, 4
REMINDER = "trains, but nothing calls its"

CONFIGS = {
    "sora": lambda: vl.SoraConfig(r=4, l1=0.1, lambdas=[0.5, 2.0], dropout=0.3),
    "lamda": lambda: vl.LamdaConfig(r=4, alpha=4.0, eta=0.6, dropout=0.3),
    "kasa": lambda: vl.KasaConfig(r=3, dropout=0.3, beta=0.1, gamma=0.1),
    "mixlora": lambda: vl.MixLoraConfig(r=2, experts=4, balance=0.5, dropout=0.3),
    "lofit": lambda: vl.LofitConfig(heads=2, l1=0.05),
}


class Net(nn.Module):
    """A vision tower with an adapter, and a head."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.model = vl.attach(backbone(), config)
        self.head = nn.Linear(8, 2)

    def loss(self, batch):
        return ((self.head(self.model.encode_image(batch["x"].float())) - batch["y"].float()) ** 2).mean()


class Phases(Task):
    """The same as a task, a stage for each phase."""

    def __init__(self, config):
        super().__init__()
        self.net = Net(config)

    def stages(self):
        return [Stage(phase, Pictures(10, 1), options) for phase, options in vl.phases(self.net.model).items()]

    def begin_stage(self, stage):
        vl.begin_phase(self.net.model, stage.name)

    def training_step(self, batch):
        return {"loss": self.net.loss(batch)}

    def eval_sets(self, split):
        return {}


def loop(net, *, served=True):
    """A training loop in plain PyTorch, which draws its batches and random numbers as the engine does."""
    data = Pictures(10, 1)
    for index, (phase, options) in enumerate(vl.phases(net.model).items()):
        seed_everything(SEED, Stream.STAGE, index)
        net.train()
        vl.begin_phase(net.model, phase)
        optimizer = torch.optim.AdamW(vl.parameter_groups(net), **({"lr": 0.05, "weight_decay": 0.1} | options))
        parts = vl.TrainedParts(net, optimizer, STEPS) if served else None
        for step in range(STEPS):
            batch = default_collate([data[item] for item in BatchPlan(10, SIZE, 1, SEED, index).batch(step)])
            seed_everything(SEED, Stream.STEP, index, step, 0, 0)
            loss = net.loss(batch)
            if parts:
                loss = loss + sum(parts.losses().values())
            optimizer.zero_grad()
            loss.backward()
            if parts:
                parts.clip(0.1)
            optimizer.step()
            if parts:
                parts.after_step()
    return net


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == again and torch.equal(a, b) for (name, a), (again, b) in pairs)


@pytest.fixture(autouse=True)
def _nobody_was_reminded(monkeypatch):
    monkeypatch.setattr(trained, "_REMINDED", set())


@pytest.mark.parametrize("method", CONFIGS)
def test_a_plain_loop_gives_what_the_engine_gives_bit_for_bit(method, tmp_path):
    task = Phases(CONFIGS[method]())
    options = {"steps": STEPS, "batch_size": SIZE, "lr": 0.05, "weight_decay": 0.1, "clip_norm": 0.1}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{REMINDER}")
        Engine(settings(schedule="constant", **options), task, tmp_path, seed=SEED).fit()
        plain = loop(Net(CONFIGS[method]()))
    assert same(task.net, plain)
    with pytest.warns(UserWarning, match=REMINDER):
        unserved = loop(Net(CONFIGS[method]()), served=False)
    assert not same(task.net, unserved)


def training_forward(config):
    net = Net(config).train()
    return net, lambda: net.model.encode_image(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(("method", "part", "asked"), [
    ("sora", Sora, "extra_losses and proximal_step"),
    ("lofit", Lofit, "extra_losses"),
    ("mixlora", MixLora, "extra_losses"),
])  # fmt: skip
def test_a_training_forward_that_nobody_serves_reminds_once(method, part, asked):
    _, forward = training_forward(CONFIGS[method]())
    with pytest.warns(UserWarning, match=f"{part.__name__} {REMINDER} {asked}: make parts = vl.TrainedParts") as caught:
        [forward() for _ in range(2)]
    assert [REMINDER in str(each.message) for each in caught] == [True]


@pytest.mark.parametrize("method", ["sora", "lofit", "mixlora"])
@pytest.mark.filterwarnings("error")
def test_no_reminder_where_nothing_trains_or_somebody_serves(method):
    net, forward = training_forward(CONFIGS[method]())
    vl.coverage(net.model)
    with torch.no_grad():
        forward()
    net.eval()
    forward()
    net.train()
    net.model.requires_grad_(False)
    forward()
    net.model.requires_grad_(True)
    with net.model.disable_adapter():
        forward()
    vl.TrainedParts(net, torch.optim.SGD(net.parameters(), 0.1), 1)
    forward()


@pytest.mark.filterwarnings("error")
def test_no_reminder_for_methods_that_ask_for_nothing():
    training_forward(vl.BlockLoraConfig())[1]()


@pytest.mark.parametrize("method", ["sora", "lofit"])
@pytest.mark.filterwarnings(f"error:.*{REMINDER}")
def test_a_compiled_forward_is_one_graph_and_reminds_nobody(method):
    net, _ = training_forward(CONFIGS[method]())
    torch.compile(net.model.encode_image, backend="eager", fullgraph=True)(torch.randn(2, 3, 8, 8))


def test_after_step_without_gradients_says_where_it_belongs():
    net, forward = training_forward(CONFIGS["sora"]())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    parts = vl.TrainedParts(net, optimizer, 2)
    forward().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(vl.UserError, match=r"call it after optimizer\.step\(\), before zero_grad\(\)"):
        parts.after_step()


def test_a_skipped_step_has_no_proximal_step_but_counts():
    net, forward = training_forward(CONFIGS["sora"]())
    parts = vl.TrainedParts(net, torch.optim.SGD(net.parameters(), 0.1), 2)
    forward().sum().backward()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    parts.after_step(stepped=False)
    assert parts.step == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_clipping_leaves_exempt_gradients_alone_and_gives_the_norm_of_the_others():
    net, forward = training_forward(CONFIGS["sora"]())
    parts = vl.TrainedParts(net, torch.optim.SGD(vl.parameter_groups(net), 0.1), 2)
    forward().square().sum().backward()
    gates = {name: p.grad.clone() for name, p in net.named_parameters() if name.endswith(".g") and p.grad is not None}
    others = [p for name, p in net.named_parameters() if not name.endswith(".g") and p.grad is not None]
    norm = torch.cat([p.grad.flatten() for p in others]).norm()
    assert gates
    torch.testing.assert_close(parts.clip(1e-3), norm)
    assert all(torch.equal(p.grad, gates[name]) for name, p in net.named_parameters() if name in gates)
    after = torch.cat([p.grad.flatten() for p in others]).norm()
    torch.testing.assert_close(after, torch.tensor(1e-3), rtol=1e-2, atol=0)
