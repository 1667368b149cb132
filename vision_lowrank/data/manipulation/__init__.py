"""Photographs that were edited, and their originals: records, readers, generated edits, framing."""
