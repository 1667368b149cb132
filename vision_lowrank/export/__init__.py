"""Adapters for other software: plain LoRA files."""
