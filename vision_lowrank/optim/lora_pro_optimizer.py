r"""The optimiser of LoRA-Pro: the step of (A, B) whose effect on W comes closest to a step of full fine-tuning.

Paper: "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", arXiv 2407.18242. For W = W0 + s B A with A (r, in) and
B (out, r), let g = dL/dW (out, in), never computed, and gA = s Bᵀ g, gB = s g Aᵀ, which autograd gives. Moving (A, B)
along -(a, b) moves W along minus the *equivalent gradient* e = s B a + s b A. For any X (r, r)

    a = (1/s²) (BᵀB)⁻¹ gA + X A,      b = (1/s²) (I - B (BᵀB)⁻¹ Bᵀ) gB (AAᵀ)⁻¹ - B X

minimises ‖e - g‖, and e = P_B g + (I - P_B) g P_A is the projection of g on the tangent space, whatever X. The modes::

    sylvester  (BᵀB) X + X (AAᵀ) = -(1/s²) (BᵀB)⁻¹ gA Aᵀ: least ‖a - gA‖² + ‖b - gB‖², near LoRA's own gradients
    symmetry   X = -(1/2s²) (BᵀB)⁻¹ Bᵀ gB (AAᵀ)⁻¹: P_B g P_A comes half from a, half from b
    zero       X = 0

Both r × r matrices are diagonalised, BᵀB = U diag(p) Uᵀ and AAᵀ = V diag(q) Vᵀ, so X = U [(UᵀCV)_ij / (p_i + q_j)] Vᵀ.
An inverse is that of the matrix plus λ I, λ = ε · trace / r (``relative``) or ε (``absolute``); directions below the
rounding error are left out. At B = 0 this is the first step's rule, a = gA = 0 and b = (1/s²) gB (AAᵀ)⁻¹. Where A is
frozen (LoRA-FA) b has that form throughout and e = s b A. Where R (r, r) trains alone in W = W0 + s B R A (LoRA-XS)

    ρ = (1/s²) (BᵀB)⁻¹ gR (AAᵀ)⁻¹,      gR = s Bᵀ g Aᵀ,      e = s B ρ A = P_B g P_A

and there is no X. Of a convolution, A (r, in, h, w) and B (out, r, 1, 1) are taken as (r, in h w) and (out, r). With
gR and ρ in the places of (gA, gB) and (a, b) for a core, a step is one of::

    adamw, weight    e from X = 0;  G = Adam(e), moments (out, in);  (a, b) from gA' = s Bᵀ G, gB' = s G Aᵀ
    adamw, factor    (a, b) from gA, gB, then Adam of a and of b, moments (r, in) and (out, r)
    sgd              (a, b) from gA, gB

and then A ← (1 - lr wd) A - lr a, the same for B and R. All other parameters get torch's own AdamW or SGD.

Reconstructed: the weight decay of the factors, the SGD step without momentum, and the mode ``symmetry``.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from ..errors import UserError
from .tensors import Pair

Variant = Literal["adamw", "sgd"]
MomentumSpace = Literal["weight", "factor"]
XMode = Literal["sylvester", "symmetry", "zero"]
DampingKind = Literal["relative", "absolute"]
DAMPING_EPS = {"relative": 1e-6, "absolute": 1e-8}


class Spectrum(NamedTuple):
    """A symmetric r × r matrix: eigenvalues (r,), eigenvectors (r, r) in columns and damped inverse (r, r)."""

    values: Tensor
    vectors: Tensor
    inverse: Tensor


class Geometry(NamedTuple):
    """Of one pair: BᵀB and AAᵀ."""

    left: Spectrum
    right: Spectrum


def geometries(pairs: Sequence[Pair], damping: DampingKind = "relative", eps: float = 1e-6) -> list[Geometry]:
    """Compute BᵀB and AAᵀ of each pair, eigenvectors and damped inverses; one batched ``eigh`` for pairs of a rank."""
    members = defaultdict(list)
    for index, pair in enumerate(pairs):
        members[pair.A.shape[0], pair.A.dtype, pair.A.device].append(index)
    found: dict[int, Geometry] = {}
    for indices in members.values():
        factors = [pairs[i].matrices for i in indices]
        left = _spectra(torch.stack([B.T @ B for _, B in factors]), damping, eps)
        right = _spectra(torch.stack([A @ A.T for A, _ in factors]), damping, eps)
        found |= {i: Geometry(*both) for i, *both in zip(indices, left, right, strict=True)}
    return [found[i] for i in range(len(pairs))]


def closest(
    pair: Pair, geometry: Geometry, gA: Tensor | None, gB: Tensor, x_mode: XMode = "sylvester"
) -> tuple[Tensor | None, Tensor]:
    """Find (a, b) whose equivalent gradient is closest to the g with gA = s Bᵀ g (r, in) and gB = s g Aᵀ (out, r).

    ``gA=None`` stands for a frozen A: then a is None too.
    """
    (A, B), s = pair.matrices, pair.scale
    whole = gB @ geometry.right.inverse / s**2
    if gA is None:
        return None, whole
    a = geometry.left.inverse @ gA / s**2
    b = whole - B @ (geometry.left.inverse @ (B.T @ whole))
    X = X_MODES[x_mode](pair, geometry, a, whole)
    return a + X @ A, b - B @ X


def equivalent_gradient(pair: Pair, a: Tensor | None, b: Tensor) -> Tensor:
    """Compute e = s B a + s b A (out, in); a = None is a frozen A."""
    A, B = pair.matrices
    e = b @ A
    return pair.scale * (e if a is None else e.addmm(B, a))


def directions(pair: Pair, geometry: Geometry, gradients: Sequence[Tensor], x_mode: XMode) -> list[Tensor]:
    """Compute the directions of A and B, B alone or R alone, whichever train, with e closest to the gradients' g."""
    if pair.core is not None:
        return [geometry.left.inverse @ gradients[0] @ geometry.right.inverse / pair.scale**2]
    a, b = closest(pair, geometry, *_both(gradients), x_mode)
    return [b] if a is None else [a, b]


def effect(pair: Pair, moves: Sequence[Tensor]) -> Tensor:
    """Compute e (out, in) of directions of what trains."""
    if pair.core is not None:
        A, B = pair.matrices
        return pair.scale * (B @ moves[0] @ A)
    return equivalent_gradient(pair, *_both(moves))


def pulled_back(pair: Pair, G: Tensor) -> list[Tensor]:
    """Pull G (out, in) back from W: the gradients that what trains would have if G were that of W."""
    (A, B), G = pair.matrices, pair.scale * G
    if pair.core is not None:
        return [B.T @ G @ A.T]
    return [B.T @ G, G @ A.T] if pair.A.requires_grad else [G @ A.T]


def _both(each: Sequence[Tensor]) -> tuple[Tensor | None, Tensor]:
    """Return those of A and of B; None for a frozen A."""
    return (None, each[0]) if len(each) == 1 else (each[0], each[1])


def _sylvester(pair: Pair, geometry: Geometry, a: Tensor, whole: Tensor) -> Tensor:
    left, right = geometry
    C = -a @ pair.matrices[0].T
    sums = left.values[:, None] + right.values
    return left.vectors @ (left.vectors.T @ C @ right.vectors * _reciprocal(sums, sums.amax())) @ right.vectors.T


def _symmetric(pair: Pair, geometry: Geometry, a: Tensor, whole: Tensor) -> Tensor:
    return -(geometry.left.inverse @ (pair.matrices[1].T @ whole)) / 2


def _zero(pair: Pair, geometry: Geometry, a: Tensor, whole: Tensor) -> Tensor:
    return torch.zeros_like(geometry.left.inverse)


X_MODES: dict[str, Callable[[Pair, Geometry, Tensor, Tensor], Tensor]] = {
    "sylvester": _sylvester,
    "symmetry": _symmetric,
    "zero": _zero,
}


def _spectra(grams: Tensor, damping: DampingKind, eps: float) -> list[Spectrum]:
    """Compute the spectra of positive semidefinite matrices (n, r, r)."""
    values, vectors = torch.linalg.eigh(grams)
    values = values.clamp_min(0)
    damped = values + (eps * values.mean(-1, keepdim=True) if damping == "relative" else eps)
    inverses = (vectors * _reciprocal(damped, damped.amax(-1, keepdim=True))[:, None, :]) @ vectors.mT
    return [Spectrum(*each) for each in zip(values, vectors, inverses, strict=True)]


def _reciprocal(x: Tensor, largest: Tensor) -> Tensor:
    """Compute 1 / x, and 0 where x cannot be told from 0 beside `largest`: a zero B gives the pseudo-inverse, 0."""
    return torch.where(x > torch.finfo(x.dtype).eps * largest, 1 / x, 0)


class LoraProOptimizer(Optimizer):
    """LoRA-Pro on pairs of factors, torch's AdamW or SGD on every other parameter.

    Learning rate and weight decay are those of each parameter's own group. A pair whose gradients are None is left
    alone. Where a pair's gradient is not finite the whole step is left out, with a warning: nothing changes.

    Args:
        params: parameters or groups, as for any optimiser of torch; every trained A and B among them.
        pairs: what :func:`~vision_lowrank.optim.tensors.pairs` found; s is each pair's own. Frozen is what requires
            no gradient.
        lr: learning rate.
        variant: ``adamw`` or ``sgd``, of the pairs and of all else.
        momentum_space: where AdamW's moments live: on e, ``weight``, or on a and b, ``factor``.
        x_mode: how X is chosen.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: decoupled; of other parameters with ``sgd`` it is torch's, coupled.
        momentum: of SGD on the other parameters; the pairs have none.
        nesterov: that momentum in Nesterov's form.
        damping: of the inverses: ``relative`` to the mean eigenvalue, or ``absolute``.
        damping_eps: ε; None is 1e-6 for ``relative`` and 1e-8 for ``absolute``. 0 gives pseudo-inverses.

    Raises:
        UserError: pairs that share a factor, are left out of `params`, have s = 0 or fewer than 32 bits, or options
            that do not fit together.
    """

    def __init__(
        self,
        params: Iterable[Any],
        pairs: Sequence[Pair],
        lr: float = 1e-4,
        *,
        variant: Variant = "adamw",
        momentum_space: MomentumSpace = "weight",
        x_mode: XMode = "sylvester",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        nesterov: bool = False,
        damping: DampingKind = "relative",
        damping_eps: float | None = None,
    ) -> None:
        check_options(variant, momentum_space, x_mode, damping, momentum)
        params = list(params)
        if variant == "adamw":
            self._others: Optimizer = AdamW(params, lr, betas, eps, weight_decay)
        else:
            self._others = SGD(params, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)
        super().__init__(self._others.param_groups, self._others.defaults)
        self.pairs = list(pairs)
        self.x_mode: XMode = x_mode
        self.damping: DampingKind = damping
        self.damping_eps = DAMPING_EPS[damping] if damping_eps is None else damping_eps
        spaces = {"weight": self._adam_of_weight, "factor": self._adam_of_factors}
        self._direction = spaces[momentum_space] if variant == "adamw" else self._projected
        self._check_pairs()
        if momentum and not any(group["params"] for group in self._groups_of_others()):
            raise UserError("LoRA-Pro: the momentum of SGD is that of other parameters, and none train: set it to 0.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure` returns, as torch's optimisers do.

        Raises:
            torch.linalg.LinAlgError: a factor is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = [pair for pair in self.pairs if all(p.grad is not None for p in _trained(pair))]
        if not _finite([p.grad for pair in due for p in _trained(pair)]):
            warnings.warn("LoRA-Pro: the gradient of a pair is not finite, so this step is left out.", stacklevel=2)
            return loss
        groups = {id(p): group for group in self.param_groups for p in group["params"]}
        for pair, geometry in zip(due, geometries(due, self.damping, self.damping_eps), strict=True):
            trained = _trained(pair)
            steps = self._direction(pair, geometry, [p.grad.flatten(1) for p in trained], groups)
            for parameter, direction in zip(trained, steps, strict=True):
                group = groups[id(parameter)]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction.reshape(parameter.shape), alpha=group["lr"])
        self._step_others()
        return loss

    def _projected(
        self, pair: Pair, geometry: Geometry, gradients: list[Tensor], groups: dict[int, Any]
    ) -> list[Tensor]:
        """Compute directions from the raw gradients."""
        return directions(pair, geometry, gradients, self.x_mode)

    def _adam_of_weight(
        self, pair: Pair, geometry: Geometry, gradients: list[Tensor], groups: dict[int, Any]
    ) -> list[Tensor]:
        """Compute directions from Adam's step on the equivalent gradient; the moments are kept with B or R."""
        e = effect(pair, directions(pair, geometry, gradients, "zero"))
        G = self._adam(_trained(pair)[-1], e, groups)
        return directions(pair, geometry, pulled_back(pair, G), self.x_mode)

    def _adam_of_factors(
        self, pair: Pair, geometry: Geometry, gradients: list[Tensor], groups: dict[int, Any]
    ) -> list[Tensor]:
        """Compute Adam's steps on the directions from the raw gradients."""
        raw = self._projected(pair, geometry, gradients, groups)
        return [self._adam(p, each, groups) for p, each in zip(_trained(pair), raw, strict=True)]

    def _adam(self, owner: Tensor, g: Tensor, groups: dict[int, Any]) -> Tensor:
        """Compute Adam's direction for the gradient `g`, with moments of its shape in the state of `owner`."""
        state, group = self.state[owner], groups[id(owner)]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(g), exp_avg_sq=torch.zeros_like(g))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        first = state["exp_avg"].lerp_(g, 1 - beta1) / (1 - beta1 ** state["step"])
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2) / (1 - beta2 ** state["step"])
        return first / (second.sqrt() + group["eps"])

    def _step_others(self) -> None:
        """Take torch's own step on what is in no pair; groups and state are shared: loading a state replaces both."""
        self._others.state = self.state
        self._others.param_groups = self._groups_of_others()
        self._others.step()

    def _groups_of_others(self) -> list[dict[str, Any]]:
        paired = {id(p) for pair in self.pairs for p in _trained(pair)}
        return [group | {"params": [p for p in group["params"] if id(p) not in paired]} for group in self.param_groups]

    def _check_pairs(self) -> None:
        known = {id(p) for group in self.param_groups for p in group["params"]}
        seen: set[int] = set()
        for pair in self.pairs:
            name, letter, last = pair.name, *(("B", pair.B) if pair.core is None else ("R", pair.core))
            trained = {id(p) for p in _trained(pair)}
            if id(last) not in trained:
                raise UserError(f"LoRA-Pro: {letter} of '{name}' is frozen: let it train.")
            if trained & seen:
                raise UserError(f"LoRA-Pro: '{name}' shares a factor with another pair: give each layer its own.")
            if not trained <= known:
                raise UserError(f"LoRA-Pro: a factor of '{name}' is not among the parameters: give all that train.")
            if pair.scale == 0:
                raise UserError(f"LoRA-Pro: the scale of '{name}' is 0, so no step of it moves W: set alpha above 0.")
            if torch.finfo(last.dtype).bits < 32:
                raise UserError(f"LoRA-Pro: the factors of '{name}' are {last.dtype}: keep adapters in float32.")
            seen |= trained


def check_options(
    variant: str, momentum_space: str, x_mode: str = "sylvester", damping: str = "relative", momentum: float = 0.0
) -> None:
    """Refuse options that LoRA-Pro does not know or that do not fit together.

    Raises:
        UserError: such an option.
    """
    known = {"adamw", "sgd"}, {"weight", "factor"}, X_MODES.keys(), DAMPING_EPS.keys()
    for value, choices in zip((variant, momentum_space, x_mode, damping), known, strict=True):
        if value not in choices:
            raise UserError(f"LoRA-Pro: unknown option '{value}': choose from {', '.join(sorted(choices))}.")
    if variant == "sgd" and momentum_space == "factor":
        raise UserError("LoRA-Pro: variant=sgd has no moments to keep: leave momentum_space out.")
    if variant == "adamw" and momentum:
        raise UserError("LoRA-Pro: momentum is SGD's, and variant=adamw has betas: set momentum to 0, or variant=sgd.")


def _trained(pair: Pair) -> list[Tensor]:
    return [p for p in (pair.A, pair.B, pair.core) if p is not None and p.requires_grad]


def _finite(tensors: list[Tensor]) -> bool:
    """Tell whether all values are finite, with one wait for the device."""
    return not tensors or bool(torch.stack([t.isfinite().all().to(tensors[0].device) for t in tensors]).all())
