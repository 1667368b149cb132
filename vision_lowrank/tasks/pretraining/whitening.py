"""A patch embedding that starts from the pictures' own statistics, as a short pretraining needs.

With patches p (c = 3 · side² numbers) of some pictures, their mean m and covariance V diag(e) Vᵀ, e falling, and k of
them kept, k = min(c, d)::

    W = s · Q diag(e_i^-1/2 (e_i / e_1)^0.15) Vᵀ,    b = -W m,    Q (d, k) random with orthonormal columns

and s such that a token's numbers have variance 1. Drawn weights give tokens that tell little but a patch's mean colour,
as that is where almost all variance of pictures lies; here fine detail is heard from the first step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FALL = 0.15  # 0 would be full whitening, which hears noise as loud as shape
LEAST = 1e-6


@torch.no_grad()
def whiten_patches(embedding: nn.Conv2d, views: Tensor) -> None:
    """Set weight (d, 3, p, p) and bias of a patch embedding from views (n, 3, h, w), normalised; Q from torch's
    generator.
    """
    side = embedding.kernel_size
    patches = F.unfold(views, side, stride=side).transpose(1, 2).flatten(0, 1).double()
    mean = patches.mean(dim=0)
    centred = patches - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(patches))
    width = embedding.out_channels
    kept = min(width, len(mean))
    variances, directions = variances.flip(0)[:kept].clamp(min=LEAST), directions.flip(1)[:, :kept]
    gains = variances.rsqrt() * (variances / variances[0]) ** FALL
    turn = torch.linalg.qr(torch.randn(width, kept).double())[0]
    weight = turn @ (gains * directions).T
    weight = weight / (centred @ weight.T).std()
    embedding.weight.copy_(weight.reshape(embedding.weight.shape))
    if embedding.bias is not None:
        embedding.bias.copy_(-weight @ mean)
