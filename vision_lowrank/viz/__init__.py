"""Plots and the HTML report of a run; both read finished numbers and compute none of their own."""

from __future__ import annotations

from .report import write_report

__all__ = ["write_report"]
