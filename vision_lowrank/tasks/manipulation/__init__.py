"""Image manipulation: detect, localise, explain."""
