"""Pretraining: how the shipped tiny-clip is made."""
