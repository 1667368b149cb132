import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_stays_short(path, tmp_path):
    assert len(path.read_text().splitlines()) < 150
    arguments = ["--steps", "2", "--shots", "2", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "merged:" in done.stdout
    accuracies = [line.split(": ")[1].split("%")[0] for line in done.stdout.splitlines() if "%" in line]
    assert accuracies[1] == accuracies[2]  # merging changes nothing
    assert (tmp_path / "lora" / "adapter_config.json").is_file()


def test_there_is_an_example():
    assert EXAMPLES
