"""Where was this picture edited? Metrics of maps (`pixels`) and of boxes (`boxes`)."""
