"""Attention split into four named linears and a core, exactly, and fused back; knows no backbone."""
