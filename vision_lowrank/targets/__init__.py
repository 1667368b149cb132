"""Where an adapter may sit: split and re-fuse attention, select linears by tower and layer, check what is reached."""
