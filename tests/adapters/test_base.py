"""What PEFT's own code finds in configs of ours."""

import json

import peft
from torch import nn

from vision_lowrank import BlockLoraConfig


def test_a_peft_type_has_the_value_that_clients_of_peft_read():
    config = BlockLoraConfig(r=2, target_modules=["0"])
    assert config.peft_type == config.peft_type.value == config.peft_type.name == "BLOCK_LORA"
    assert type(config.peft_type.value) is str
    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)
    status = peft.get_model_status(model)
    assert (status.peft_types, status.active_adapters) == ({"default": "BLOCK_LORA"}, ["default"])
    assert json.loads(json.dumps(config.to_dict(), default=list))["peft_type"] == "BLOCK_LORA"
