import json
import subprocess

from vision_lowrank.config import environment
from vision_lowrank.config.record import git_revision


def test_environment_is_plain_json_with_versions():
    record = json.loads(json.dumps(environment()))
    assert record["packages"]["torch"].startswith("2.")
    assert record["python"].count(".") == 2
    assert record["date"].endswith("+00:00")


def test_looking_at_the_checkout_takes_no_lock_of_it(monkeypatch):
    asked = []

    def note(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    git_revision()
    assert len(asked) == 2
    assert all(command[:2] == ["git", "--no-optional-locks"] for command in asked)
