"""Weight-update parametrisations, one file per method, and what attaches, saves, merges and describes them."""
