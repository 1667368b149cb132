"""Where an update starts: from the weight alone, or from the gradient of the task's loss."""
