import multiprocessing

import peft
import pytest
import torch
import torch.distributed as dist

from vision_lowrank.config import load_config
from vision_lowrank.errors import ConfigError
from vision_lowrank.modes import rows_counting
from vision_lowrank.regularizers.base import alters_base, gather_rows


def loss_of(rows, labels):
    """Anything that mixes all rows."""
    return (100 + (rows.T @ rows).square().sum() + (rows.sum(dim=1) * labels).sum()).sqrt()


def gather_in_one(rank, where, rows, labels, shares, results):
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=len(rows))
    own = rows[rank].requires_grad_()
    with rows_counting(shares[rank] > 0):
        value = loss_of(gather_rows(own), gather_rows(labels[rank]))
    (shares[rank] * value).backward()
    results.put((rank, value.item(), own.grad.tolist()))
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [(0.75, 0.25), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_processes_with_unequal_parts_get_the_loss_and_gradient_of_one(tmp_path, shares):
    """A process of share 0 computes a filler, which is no row of the batch; where all do, nothing is learnt."""
    torch.manual_seed(0)
    rows = [torch.randn(n, 3, dtype=torch.float64) for n in (3, 1)]
    labels = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (str(tmp_path / "store"), rows, labels, shares, results)
    workers = [context.Process(target=gather_in_one, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    answers = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    counted = [bool(share) or not any(shares) for share in shares]
    leaves = [each.clone().requires_grad_() for each in rows]
    whole = torch.cat([each for each, count in zip(leaves, counted, strict=True) if count])
    value = loss_of(whole, torch.cat([each for each, count in zip(labels, counted, strict=True) if count]))
    expected = torch.autograd.grad(sum(shares) * value, leaves, allow_unused=True)
    for (_, other, own), gradient in zip(answers, expected, strict=True):
        assert other == pytest.approx(value.item(), rel=1e-12)
        own = torch.tensor(own, dtype=torch.float64)
        torch.testing.assert_close(own, torch.zeros_like(own) if gradient is None else gradient)


def test_one_process_keeps_its_rows():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows


STARTS = (True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "pissa_niter_2", "olora")
KASA = {"kasa_config": peft.tuners.lora.config.KasaConfig()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [*({"init_lora_weights": start} for start in STARTS), KASA], ids=str)
def test_what_alters_the_base_is_known(options):
    net, x = torch.nn.Sequential(torch.nn.Linear(12, 10)), torch.randn(4, 12)
    before = net(x)
    config = peft.LoraConfig(r=4, target_modules=["0"], **options)
    model = peft.get_peft_model(net, config)
    with model.disable_adapter():
        same = torch.equal(model(x), before)
    assert same == (alters_base(config) is None)


PISSA = "adapter.init_lora_weights=pissa"
LORA, BA = "adapter.type=lora", "regularizer.type=ba_lora"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task={type: zeroshot}", "adapter=null", BA], "task 'zeroshot' does not take one"),
        ([LORA, PISSA, BA], "init_lora_weights=pissa changes the frozen weights"),
        (["adapter={type: peft, name: LORA, init_lora_weights: pissa}", BA], "changes the frozen weights"),
        (["adapter={type: peft, name: OLORA}", BA], "init_lora_weights=olora changes"),
        (["adapter={type: peft, name: KASA}", BA], "KaSA changes the frozen weights"),
        ([BA, "engine.batch_size=1"], "one picture has no covariance"),
        ([BA, "engine.batch_size=6", "engine.accumulate=6"], "one picture has no covariance"),
        ([BA, "task.head=linear"], "dr_space=standardized"),
        ([BA, "task.head=cosine", "rule.type=glad"], "no adapter to work on"),
        (["regularizer.type=supervised_contrastive", "task.shots=1"], "task.views=2"),
        (["regularizer={type: ba_lora, l4: 1}"], "unknown key"),
        ([BA, "task.shots=0"], "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_together_is_refused_with_the_reason(recipe, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [LORA, PISSA, BA, "regularizer.l1=0"],
        [LORA, "initializer.type=pissa", BA],
        [LORA, "adapter.init_lora_weights=gaussian", BA],
        [BA, "task.head=linear", "regularizer.dr_space=standardized"],
        [BA, "task.head=cosine", "rule.type=glad", "regularizer.consistency=features"],
        ["regularizer.type=supervised_contrastive", "task.shots=1", "task.views=2"],
        [LORA, PISSA, "regularizer.type=supervised_contrastive"],
    ],
)
def test_what_makes_sense_is_accepted(recipe, overrides):
    assert load_config(recipe, overrides).regularizer is not None
