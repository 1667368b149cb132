"""The processes of a run part in good order."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import atexit, sys
atexit.register(lambda: print("group left:", not dist.is_initialized()))  # runs last
import torch.distributed as dist
import vision_lowrank.engine.runtime
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
"""


def test_the_process_group_is_left_before_python_ends(tmp_path):
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "store")], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "group left: True\n", result.stderr
