"""Mixtures of experts: heads that ask several networks, all of them or a few for every row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from scvae.core.distributions import Mixture
from scvae.core.heads import Family
from scvae.core.networks import Linear


class MixtureOfExperts(nn.Module):
    r"""Map activations ``(..., n_in)`` to a mixture of what several experts say of them.

    .. math:: p(y \mid h) = \sum_i \mathrm{softmax}(\mathrm{gate}(h))_i\, p_i(y \mid h), \qquad
              p_i = N(\mu_i(h), \Sigma_i(h)) \text{ or another family}

    Parameters
    ----------
    n_in, n_out
        Width of the activations, entries of the event.
    family
        Of every expert: `GAUSSIAN`, `FULL_GAUSSIAN`, `BERNOULLI`, and so on.
    experts
        Networks from ``(rows, n_in)`` to ``(rows, family.size(n_out))``; a number makes as many
        linear layers.
    gate
        Network from ``(..., n_in)`` to one number an expert; None makes a linear layer.
    n_active
        Experts used for each row, those of the highest gates, whose weights are renormalised; the
        others are not computed for that row. None uses all. A single active expert always weighs 1,
        so that its gate learns nothing but by `switch`.
    switch
        Whether the numbers that an expert gives are multiplied by its gate, softmax over all
        experts. By this factor the gates learn, even where one expert alone is active. Add
        `load_balance` to the loss, or few experts take all rows; inside a model, a forward hook on
        `gate` is told its numbers.
    generator
        Source of the initial weights.

    References
    ----------
    Jacobs, Jordan, Nowlan and Hinton. Adaptive mixtures of local experts. Neural Computation, 1991.
    Shazeer et al. Outrageously large neural networks: the sparsely-gated mixture-of-experts layer.
    ICLR, 2017.
    Fedus, Zoph and Shazeer. Switch transformers: scaling to trillion parameter models with simple
    and efficient sparsity. JMLR, 2022.

    Examples
    --------
    >>> moe = MixtureOfExperts(8, 3, GAUSSIAN, 16, n_active=1, switch=True)
    >>> h, y = torch.randn(5, 8), torch.randn(5, 3)
    >>> loss = -moe(h).log_prob(y).mean() + load_balance(moe.gate(h))
    >>> loss.shape
    torch.Size([])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        family: Family,
        experts: int | Sequence[nn.Module],
        *,
        gate: nn.Module | None = None,
        n_active: int | None = None,
        switch: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_out, self.family, self.switch = n_out, family, switch
        if isinstance(experts, int):
            experts = [Linear(n_in, family.size(n_out), generator) for _ in range(experts)]
        self.experts = nn.ModuleList(experts)
        self.gate = Linear(n_in, len(self.experts), generator) if gate is None else gate
        self.n_active = len(self.experts) if n_active is None else n_active
        if not 1 <= self.n_active <= len(self.experts):
            raise ValueError(
                f"n_active={n_active}, but it must be between 1 and the {len(self.experts)} experts"
            )

    def forward(self, h: Tensor) -> Mixture:
        gates = self.gate(h)
        if gates.shape[-1] != len(self.experts):
            raise ValueError(
                f"The gate gives {gates.shape[-1]} numbers for {len(self.experts)} experts; "
                "it must give one for each."
            )
        logits, chosen = self._choose(gates)
        numbers = self._numbers(h.reshape(-1, h.shape[-1]), chosen.reshape(-1, self.n_active))
        numbers = numbers.view(*logits.shape, numbers.shape[-1])
        if self.switch:
            numbers = numbers * torch.softmax(gates, -1).gather(-1, chosen)[..., None]
        return Mixture(logits, self.family.of(numbers, self.n_out))

    def _choose(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gates and the numbers of the experts used, ``(..., n_active)``."""
        if self.n_active < len(self.experts):
            return gates.topk(self.n_active, dim=-1)
        return gates, torch.arange(self.n_active, device=gates.device).expand(gates.shape)

    def _numbers(self, h: Tensor, chosen: Tensor) -> Tensor:
        """Return what the chosen experts say of every row, ``(rows, n_active, size)``.

        Rows are sorted by expert, so that the work grows with the active experts alone."""
        wanted = self.family.size(self.n_out)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        loads = torch.bincount(flat, minlength=len(self.experts)).tolist()
        parts = zip(self.experts, (order // self.n_active).split(loads), strict=True)
        said = [expert(h[rows]) for expert, rows in parts if len(rows)]
        for numbers in said:
            if numbers.shape[-1] != wanted:
                raise ValueError(
                    f"An expert gives {numbers.shape[-1]} numbers, but the family needs {wanted} "
                    f"for n_out={self.n_out}: make its last layer that wide"
                )
        joined = torch.cat(said)[order.argsort()] if said else h.new_empty(0, wanted)
        return joined.view(*chosen.shape, wanted)


def load_balance(gates: Tensor, n_active: int = 1) -> Tensor:
    r"""Return :math:`E \sum_{i=1}^E f_i P_i`, a penalty on experts of unequal load.

    Over all rows, :math:`f_i` is the share of the choices that fall on expert i, and :math:`P_i`
    the mean of its gate. It is 1 where all experts are alike, E where one takes everything; its
    gradient, through P alone, shuts the gates that are chosen too often (Fedus, Zoph and Shazeer,
    "Switch transformers", JMLR 2022, equation 4).

    Parameters
    ----------
    gates
        Numbers of the gate before the softmax, ``(..., E)``, as ``MixtureOfExperts.gate`` gives.
    n_active
        Experts chosen for every row.

    Raises
    ------
    ValueError
        If there are no rows, or not so many experts.

    Examples
    --------
    >>> load_balance(torch.tensor([[9.0, 0.0], [0.0, 9.0]])).item()
    1.0
    """
    n_experts = gates.shape[-1]
    if not 1 <= n_active <= n_experts:
        raise ValueError(f"n_active={n_active}, but it must be between 1 and {n_experts} experts")
    if not gates.numel():
        raise ValueError(f"gates of shape {tuple(gates.shape)} hold no rows: give one at least")
    chosen = gates.detach().topk(n_active, dim=-1).indices
    opened = torch.softmax(gates, dim=-1)
    share = torch.zeros_like(opened).scatter(-1, chosen, 1 / n_active)  # no count: no wait for CUDA
    f, p = (of_rows.reshape(-1, n_experts).mean(0) for of_rows in (share, opened))
    return n_experts * (f * p).sum()
