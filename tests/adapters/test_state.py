"""What a checkpoint holds of every update."""

import peft
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank import CompLoraConfig
from vision_lowrank.adapters.state import pack_each, unpack_each
from vision_lowrank.adapters.tuner import PREFIX, adapter_layers


def test_layers_that_fsdp_wraps_are_packed_and_unpacked():
    """It puts a part into the names of modules that the names of tensors lack."""
    torch.manual_seed(0)
    host = nn.Sequential(nn.Sequential(nn.Linear(6, 6)))
    model = moved(peft.get_peft_model(host, CompLoraConfig(r=2, protect_rank=2, target_modules=["0.0"])))
    [(name, layer)] = adapter_layers(model)
    own = {
        f"{name}.{PREFIX}.default.{key}": tensor for key, tensor in layer.weight_update["default"].state_dict().items()
    }
    assert own[f"{name}.{PREFIX}.default.A"].shape == (2, 4)
    wrapped = [("_fsdp_wrapped_module." + name.replace("model.0.0", "model.0._fsdp_wrapped_module.0"), layer)]
    packed = pack_each(wrapped, PREFIX, "default", own)
    assert packed[f"{name}.{PREFIX}.default.A"].shape == (2, 6)
    torch.testing.assert_close(unpack_each(wrapped, PREFIX, "default", packed), own)
