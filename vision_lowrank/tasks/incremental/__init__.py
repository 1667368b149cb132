"""Few-shot class-incremental learning: new classes arrive session after session."""
