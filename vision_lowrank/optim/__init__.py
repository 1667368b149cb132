"""Gradient rules: how the gradients of a step are made, and what steps on them."""
