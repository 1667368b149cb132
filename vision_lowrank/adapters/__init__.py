"""Weight-update parametrisations, one file per method, and what they build on."""
