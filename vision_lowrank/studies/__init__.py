"""Running configs: one run, and studies of many variants, seeds and learning rates as jobs."""
