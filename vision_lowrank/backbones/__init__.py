"""Pretrained models of timm and open_clip, and the shipped tiny-clip, behind one protocol: :class:`.base.Backbone`."""
