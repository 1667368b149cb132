"""The processes of a run part in good order."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vision_lowrank.engine.runtime import Runtime

# A worker thread of gloo that is alive when the interpreter ends may abort a process that did everything right.
SCRIPT = """
import atexit, pathlib, sys
threads = lambda: sum("gloo" in path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm"))
atexit.register(lambda: print("left:", threads()))  # runs last
import torch
import vision_lowrank.engine.runtime
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
torch.distributed.all_reduce(weight.grad)
torch.optim.AdamW([weight]).step()  # imports modules that may hold on to the group
print("working:", threads() > 0)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux's /proc")
def test_no_thread_of_the_process_group_is_left_when_python_ends(tmp_path):
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "store")], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "working: True\nleft: 0\n", result.stderr


def test_half_precision_on_a_cpu_trains_without_the_fused_attention_and_evaluates_with_it():
    runtime = Runtime()
    if runtime.device.type != "cpu":
        pytest.skip("for CPUs")
    for precision, gradients, fused in (("bf16", True, False), ("bf16", False, True), ("fp32", True, True)):
        with torch.set_grad_enabled(gradients), runtime.autocast(precision):
            assert torch.backends.cuda.flash_sdp_enabled() is fused
        assert torch.backends.cuda.flash_sdp_enabled()
