"""Clips that are drawn as they are read: what moves, how it moves, and how a frame is made of it."""
