"""Data sets, splits, few-shot samplers and transforms."""
