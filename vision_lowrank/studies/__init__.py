"""Running configs: one run, and studies of many."""
