import subprocess
import sys

import pytest

import vision_lowrank as vl
from vision_lowrank.errors import UserError
from vision_lowrank.registry import PACKAGES, Registry, registering, registry


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
    kinds = {part.kind for part in parts}
    assert kinds <= set(PACKAGES)
    assert set(PACKAGES) - kinds <= {"hook", "model", "report"}  # kinds that may have no part yet
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


def test_an_outside_package_cannot_take_a_name_of_ours_and_is_named_where_it_is_broken(tmp_path):
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vision_lowrank]\nmine = outside\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport vision_lowrank as vl\n"
        "try:\n    vl.methods('data')\nexcept vl.UserError as error:\n    print(error)\n"
    )

    def said():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

    assert said().startswith("entry point 'mine = outside' cannot be imported (No module named 'outside')")
    (tmp_path / "outside.py").write_text(
        "from vision_lowrank import register\n@register('data', 'digits', summary='not ours')\nclass Digits: pass\n"
    )
    assert said().startswith("data 'digits' is registered twice, by vision_lowrank.data.digits and <class 'outside.")


def test_a_part_is_loaded_without_the_others_of_its_kind():
    code = (
        "import sys, vision_lowrank as vl\nprint(vl.registry.get('data', 'digits').target.__name__)\n"
        "print([name for name in ('digits', 'emoji', 'folder') if f'vision_lowrank.data.{name}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["digits", "['digits']"]


@pytest.mark.parametrize("index", ["{}", '{"data": {}}', "<<<<<<< HEAD", None])
def test_a_part_that_the_index_lacks_is_found(tmp_path, index):
    """The developer forgot `make parts`, or is in the middle of a merge."""
    if index is not None:
        (tmp_path / "parts.json").write_text(index)
    code = (
        "import pathlib, sys\nfrom vision_lowrank import registry, UserError\n"
        f"registry._index = pathlib.Path({str(tmp_path / 'parts.json')!r})\n"
        "print(registry.get('data', 'digits').summary)\n"
        "try:\n    registry.get('data', 'digitz')\nexcept UserError as error:\n    print(error)\n"
        "print(len([name for name in sys.modules if name.startswith('vision_lowrank.data.')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    summary, error, modules = done.stdout.splitlines()
    assert summary == registry.get("data", "digits").summary
    assert error.startswith("unknown data 'digitz'. Did you mean 'digits'?")
    assert int(modules) < 10  # what registers the name was imported, not all data sets


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('@register("data", "mine", summary="")\ndef read(): ...', True),
        ("@registry.register(\n    'data',\n    'mine',\n)\nclass Mine: ...", True),
        ('register("data", NAME, summary="")(read)', True),
        ('@register("data", "mine_too", summary="")\nclass Mine: ...', False),
        ('@register("task", "mine", summary="")\nclass Mine: ...', False),
        ('"""How to: @register("data", name) or @register("data", "mine")."""', False),
        ('kind = "data"', False),
    ],
)
def test_sources_say_what_they_register(tmp_path, monkeypatch, text, found):
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "data" / "inner" / "one.py").write_text(text)
    monkeypatch.setattr(sys.modules[Registry.__module__], "FOLDER", tmp_path)
    assert list(registering("data", "mine", ())) == (["data.inner.one"] if found else [])
    # a module that the index has is not imported again and again for a name that is no literal
    assert bool(list(registering("data", "mine", {"data.inner.one"}))) == (found and "NAME" not in text)


def test_importing_the_package_imports_no_torch():
    code = "import sys, vision_lowrank; print([m for m in ('torch', 'peft', 'timm', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
