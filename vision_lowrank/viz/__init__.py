"""Plots and the HTML report of a run; both read finished numbers and compute none of their own."""
