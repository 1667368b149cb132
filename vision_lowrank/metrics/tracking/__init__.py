"""How well one target was followed: overlaps, centre errors, their curves, and the conventions of the benchmarks."""
