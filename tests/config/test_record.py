import json

from vision_lowrank.config import environment


def test_environment_is_plain_json_with_versions():
    record = json.loads(json.dumps(environment()))
    assert record["packages"]["torch"].startswith("2.")
    assert record["python"].count(".") == 2
    assert record["date"].endswith("+00:00")
