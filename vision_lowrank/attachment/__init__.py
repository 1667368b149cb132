"""Putting adapters on backbones: attach, save and load, merge, phases of training, the config section."""
