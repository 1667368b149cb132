"""Where an adapter may sit: select linears by tower and layer, check what is reached."""
