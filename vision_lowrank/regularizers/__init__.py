"""Training-time penalties: losses of what the model computes, added to the task's own."""
