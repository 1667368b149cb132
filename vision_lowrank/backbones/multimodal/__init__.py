"""Multimodal LLMs of transformers as backbones: vision tower, projector and language model."""
