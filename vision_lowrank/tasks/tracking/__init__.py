"""Single-object tracking: LoRAT, and how a tracker follows a target."""
