"""Metrics; each states its convention and is checked against a second implementation."""
