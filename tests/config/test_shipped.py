"""Recipes are found by file and by shipped name, from a checkout and from a wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.config import read_recipe
from vision_lowrank.config.shipped import describe_recipe, find_recipe, shipped_recipes
from vision_lowrank.errors import ConfigError
from vision_lowrank.paths import shipped

ROOT = Path(__file__).parents[2]
LORA = shipped("configs") / "fewshot" / "emoji_lora.yaml"
WHEEL = """
import json, sys
from pathlib import Path

import vision_lowrank
from vision_lowrank.cli.main import main
from vision_lowrank.config import check_settings, read_recipe
from vision_lowrank.config.shipped import shipped_recipes

for name in shipped_recipes():
    check_settings(*read_recipe(name))
print(json.dumps([vision_lowrank.__file__, list(shipped_recipes())]))
main(["list", "recipes"])
"""


@pytest.mark.parametrize(
    "name", ["fewshot/emoji_lora", "fewshot/emoji_lora.yaml", "configs/fewshot/emoji_lora.yaml", LORA]
)
def test_shipped_recipe_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == LORA
    assert read_recipe(name).tree["adapter"]["type"] == "lora"
    assert find_recipe("emoji_visual_prompt").stem == "emoji_visual_prompt"


def test_a_file_of_the_users_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("fewshot/emoji_lora", "configs/fewshot/emoji_lora.yaml"):
        Path(place).parent.mkdir(parents=True)
        Path(place).write_text("name: mine\n")
        assert find_recipe(place) == Path(place)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("emoji_lora", "several shipped recipes are called so: write fewshot/emoji_lora or incremental/emoji_lora."),
        ("fewshot/emoji_lroa", "no such config file. Did you mean 'fewshot/emoji_lora'? `vision-lowrank list recipes`"),
        ("_base_/coact", "no such config file."),
    ],
)
def test_names_that_lead_to_no_recipe(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        find_recipe(name)
    assert str(refused.value).startswith(f"{name}: {message}")


def test_every_recipe_is_listed_with_what_it_does(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["list", "recipes"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert len(shipped_recipes()) > 50
    assert all(name in shown for name in shipped_recipes())
    assert describe_recipe(LORA) == "LoRA on q, k, v of both towers, as CLIP-LoRA (arXiv 2405.18541)"
    assert all(describe_recipe(path) for path in shipped_recipes().values())


def test_a_wheel_holds_all_recipes(tmp_path, monkeypatch):
    build = pytest.importorskip("hatchling.build", reason="needs hatchling")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        wheel.extractall(tmp_path / "installed", [name for name in wheel.namelist() if "/_data/emoji/" not in name])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    done = subprocess.run([sys.executable, "-c", WHEEL], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place, names = json.loads(done.stdout.splitlines()[0])
    assert place.startswith(str(tmp_path / "installed"))
    assert names == list(shipped_recipes())
    assert "incremental/emoji_coact" in done.stdout.partition("\n")[2]
