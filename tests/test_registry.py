import subprocess
import sys

import pytest

import vision_lowrank as vl
from vision_lowrank.errors import UserError
from vision_lowrank.registry import PACKAGES, Registry, registry


def test_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown adapter 'block_lroa'\. Did you mean 'block_lora'\?"):
        registry.get("adapter", "block_lroa")


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown kind 'adaptor'\. Did you mean 'adapter'\?"):
        registry.get("adaptor", "lora")


def test_a_name_cannot_be_taken_twice():
    own = Registry()
    own.register("adapter", "x", summary="one")(int)
    own.register("adapter", "x", summary="the same again")(int)
    with pytest.raises(UserError, match="registered twice"):
        own.register("adapter", "x", summary="another")(str)


def test_every_part_has_a_summary_of_one_line():
    parts = vl.methods()
    assert {part.kind for part in parts} == set(PACKAGES)
    for part in parts:
        assert part.summary, part
        assert "\n" not in part.summary, part
        assert len(part.summary) < 100, part


def test_listing_is_sorted_and_by_kind():
    adapters = [part.name for part in vl.methods("adapter")]
    assert adapters == sorted(adapters)
    assert {"lora", "block_lora", "comp_lora", "peft"} <= set(adapters)


def test_public_names_all_resolve():
    for name in vl.__all__:
        assert getattr(vl, name) is not None


def test_outside_package_registers_by_entry_point(tmp_path):
    (tmp_path / "outside.py").write_text(
        "from vision_lowrank import register\n"
        "@register('task', 'outside_task', summary='from another package')\n"
        "class Task: pass\n"
    )
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vision_lowrank]\noutside = outside\n")
    code = "import vision_lowrank as vl; print(vl.registry.get('task', 'outside_task').summary)"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "from another package", done.stderr


def test_importing_the_package_imports_no_torch():
    code = "import sys, vision_lowrank; print([m for m in ('torch', 'peft', 'timm', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
