import errno
import os
import resource
import signal

import pytest
import torch

from vision_lowrank.engine.checkpoint import Checkpoint, CheckpointStore, Position
from vision_lowrank.errors import ArtefactError

IDENTITY = {"seed": 1, "fit[0].steps": 300, "fit[0].betas": (0.9, 0.999)}


def checkpoint(step, *, finished=False, size=4):
    tensors = {"weight": torch.full((size,), float(step)), "half": torch.ones(2, dtype=torch.bfloat16)}
    loop = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [(0.9, 0.999)]}, "skipped": 2}
    return Checkpoint(Position(0, step, step, finished), tensors, None if finished else {"weight": torch.ones(4)}, loop)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_what_is_read_is_what_was_saved(store):
    saved = checkpoint(5)
    store.save(saved, IDENTITY)
    read = store.latest(IDENTITY)
    assert read.position == saved.position
    assert read.loop == saved.loop
    for one, other in ((read.trained, saved.trained), (read.kept, saved.kept)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_the_newest_two_steps_and_every_finished_stage_are_kept(store):
    for step in (1, 2, 3):
        store.save(checkpoint(step), IDENTITY)
    store.save(checkpoint(3, finished=True), IDENTITY)
    assert names(store) == ["stage-000", "step-000002", "step-000003"]
    assert store.latest(IDENTITY).position.finished
    assert store.finished(0, IDENTITY).position.step == 3


def test_an_empty_folder_has_no_checkpoint(store):
    assert store.latest(IDENTITY) is None
    with pytest.raises(ArtefactError, match="missing"):
        store.finished(0, IDENTITY)


def damage(folder, kind):
    if kind == "no state":
        (folder / "state.json").unlink()
    elif kind == "truncated state":
        (folder / "state.json").write_bytes((folder / "state.json").read_bytes()[:40])
    elif kind == "missing tensors":
        (folder / "trained.safetensors").unlink()
    else:
        content = bytearray((folder / "trained.safetensors").read_bytes())
        content = content[:-3] if kind == "truncated tensors" else content[:-1] + bytes([content[-1] ^ 1])
        (folder / "trained.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "kind", ["no state", "truncated state", "missing tensors", "truncated tensors", "one flipped bit"]
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_replaced_later(store, kind, caplog):
    for step in (1, 2):
        store.save(checkpoint(step), IDENTITY)
    damage(store.folder / "step-000002", kind)
    assert store.latest(IDENTITY).position.step == 1
    assert "step-000002 is damaged" in caplog.text
    store.save(checkpoint(2), IDENTITY)
    assert store.latest(IDENTITY).position.step == 2
    assert names(store) == ["step-000001", "step-000002"]


def test_nothing_but_damaged_checkpoints_is_an_error(store):
    damage(store.save(checkpoint(1), IDENTITY), "no state")
    with pytest.raises(ArtefactError, match=r"all checkpoints in .* are damaged"):
        store.latest(IDENTITY)


def test_the_leftover_of_a_killed_save_is_ignored_and_cleared(store):
    store.save(checkpoint(1), IDENTITY)
    leftover = store.folder / ".tmp-step-000002"
    leftover.mkdir()
    (leftover / "trained.safetensors").write_bytes(b"half")
    assert len(store) == 1
    assert store.latest(IDENTITY).position.step == 1
    store.save(checkpoint(2), IDENTITY)
    assert names(store) == ["step-000001", "step-000002"]


def test_a_checkpoint_of_other_settings_is_refused_by_name(store):
    store.save(checkpoint(1), IDENTITY)
    with pytest.raises(ArtefactError, match=r"fit\[0\]\.steps = 300, not 200: resume with"):
        store.latest(IDENTITY | {"fit[0].steps": 200})
    with pytest.raises(ArtefactError, match="extra = None, not 1"):
        store.latest(IDENTITY | {"extra": 1})


def test_a_full_disk_is_told_and_loses_nothing(store):
    """A limit on the size of files makes real writes fail half-way."""
    store.save(checkpoint(1), IDENTITY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ArtefactError, match=r"step-000002 could not be written \(File too large\): make room"):
            store.save(checkpoint(2, size=100_000), IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(store) == ["step-000001"]
    assert store.latest(IDENTITY).position.step == 1


def test_a_failed_rename_loses_nothing(store, monkeypatch):
    store.save(checkpoint(1), IDENTITY)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ArtefactError, match="No space left on device"):
            store.save(checkpoint(2), IDENTITY)
    assert names(store) == ["step-000001"]
    assert store.latest(IDENTITY).position.step == 1


def test_a_checkpoint_that_asks_for_code_to_run_is_refused(store, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    store.save(Checkpoint(Position(0, 1, 1), {"w": torch.ones(1)}, None, {"x": Evil()}), IDENTITY)
    with pytest.raises(ArtefactError, match="damaged"):
        store.latest(IDENTITY)
    assert not (tmp_path / "owned").exists()
