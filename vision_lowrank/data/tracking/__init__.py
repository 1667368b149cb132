"""Clips to track an object in: what a clip is, and the readers of the field's data sets."""
