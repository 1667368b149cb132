"""The hot path: linears with a low-rank update as one autograd function, and a Triton version of its product."""
