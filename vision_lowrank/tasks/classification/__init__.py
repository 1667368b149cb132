"""Image classification: zero-shot, few-shot, and the artefact that a trained classifier is saved as."""
