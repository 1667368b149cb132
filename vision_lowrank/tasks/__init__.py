"""Tasks: each owns model, losses and protocol; the engine runs them all with one loop."""
