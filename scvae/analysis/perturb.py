"""What a treatment would do to a group of cells, by arithmetic of latents; beside two baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvae.analysis.compare import arms_of
from scvae.analysis.samples import csr, names_of, sum_samples
from scvae.arguments import check_name, check_whole
from scvae.data.hold.cells import Cells, Dataset
from scvae.errors import DataError
from scvae.modalities.rna import KIND
from scvae.models.fitted import Fitted

if TYPE_CHECKING:
    from anndata import AnnData

FLOOR = 1e-5  # of a share, added before logarithms


@dataclass(frozen=True)
class Perturbation:
    """What `perturb` predicts; it prints itself.

    Attributes
    ----------
    table
        A row a gene: ``control``, ``model``, ``mean_shift`` and, where it is known, ``observed``
        expression, in log(counts per 10,000 + 0.1).
    errors
        Root mean square over genes of prediction less observation: ``model``, ``no_change``,
        ``mean_shift``; NaN where there is no observation.

    Examples
    --------
    >>> import pandas as pd
    >>> import scvae
    >>> errors = pd.Series({"model": 0.2, "no_change": 0.5, "mean_shift": 0.3})
    >>> found = scvae.analysis.Perturbation(pd.DataFrame(), errors)
    >>> print(found)
    model         0.2
    no_change     0.5
    mean_shift    0.3
    The model beats both baselines.
    >>> found.beats_baselines
    True
    """

    table: pd.DataFrame
    errors: pd.Series

    @property
    def beats_baselines(self) -> bool:
        """Whether the model is nearer to what was observed than both baselines."""
        return bool(self.errors["model"] < self.errors.drop("model").min())

    def __str__(self) -> str:
        if self.errors.isna().all():
            return "No treated cells of this group to compare with: nothing tells how good it is."
        said = "beats" if self.beats_baselines else "does not beat"
        return f"{self.errors.round(4).to_string()}\nThe model {said} both baselines."


def perturb(
    model: Fitted,
    adata: AnnData,
    condition: str,
    *,
    groups: str,
    target: str,
    levels: tuple[str, str] | None = None,
    min_cells: int = 10,
    layer: str | None = None,
) -> Perturbation:
    r"""Return what a treatment would make of a group, from what it makes of the others.

    .. math:: \delta = \frac{1}{C} \sum_{c \ne t} (\bar z_{c1} - \bar z_{c0}), \qquad
              \hat e_t = e_{t0} + \log\frac{\bar\rho(z_{t0} + \delta)}{\bar\rho(z_{t0})}

    (Lotfollahi, Wolf and Theis, "scGen predicts single-cell perturbation responses", Nature Methods
    2019). Beside it no change, :math:`e_{t0}`, and the mean shift of the others in log expression,
    :math:`e_{t0} + \frac1C \sum_c (e_{c1} - e_{c0})`. On cells treated with interferon (Kang et
    al., 2018) the model did not beat that shift, for B cells (errors alike) nor for CD14+ monocytes
    (larger by an eighth): look at ``errors`` before believing a prediction.

    Parameters
    ----------
    model
        A model fitted *without* the treated cells of the target, and without the condition among
        its covariates.
    adata
        Cells of both conditions; treated ones of the target, if there are any, are compared with.
    condition, levels
        As for `compare`.
    groups
        Column of groups.
    target
        The group to predict.
    min_cells
        Of a group in an arm to learn from.
    layer
        Where the counts are; as for `Model.embed`.

    Raises
    ------
    DataError
        If the target has no reference cells, or no other group enough of both.

    Examples
    --------
    >>> import numpy as np
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=300, n_genes=50)
    >>> adata.obs["stim"] = np.where(np.arange(300) % 2, "yes", "no")
    >>> model = scvae.fit(adata, max_steps=20, progress=False)
    >>> found = scvae.analysis.perturb(
    ...     model, adata, "stim", groups="cell_type", target="type_1"
    ... )
    >>> found.table.shape
    (50, 4)
    """
    least = check_whole("min_cells", min_cells, 10)
    arm, _, _ = arms_of(adata.obs, check_name("condition", condition, "stim"), levels)
    group = names_of(adata.obs, groups, "groups")
    dataset = model.read_rna(adata, layer)
    summed = sum_samples(csr(dataset), group, np.full(len(group), "all", dtype=object), arm)
    place = {(row.group, row.arm): i for i, row in enumerate(summed.table.itertuples())}
    cells = summed.table["cells"].to_numpy()
    if (target, 0) not in place:
        raise DataError(
            f"target={target!r} has no reference cells; groups are {sorted(set(group))[:9]}."
        )
    others = [
        name
        for name in sorted(set(group) - {target})
        if all((name, a) in place and cells[place[name, a]] >= least for a in (0, 1))
    ]
    if not others:
        raise DataError(
            f"No group besides {target!r} has {least} cells in both arms to learn from."
        )
    logs = np.log(summed.counts / summed.counts.sum(axis=1, keepdims=True) + FLOOR)
    pairs = [(place[name, 1], place[name, 0]) for name in others]
    control = logs[place[target, 0]]
    shift = np.mean([logs[one] - logs[zero] for one, zero in pairs], axis=0)
    table = pd.DataFrame({"control": control}, index=pd.Index(model.origin.genes, name="gene"))
    table["model"] = control + _decoded_shift(
        model, dataset, summed.of_cell, pairs, place[target, 0]
    )
    table["mean_shift"] = control + shift
    treated = place.get((target, 1))
    table["observed"] = np.nan if treated is None else logs[treated]
    errors = {
        name: float(np.sqrt(((table[column] - table["observed"]) ** 2).mean()))
        for name, column in (
            ("model", "model"),
            ("no_change", "control"),
            ("mean_shift", "mean_shift"),
        )
    }
    return Perturbation(table + np.log(1e4), pd.Series(errors, name="error"))


def _decoded_shift(
    model: Fitted, dataset: Dataset, of_cell: np.ndarray, pairs: list[tuple[int, int]], target: int
) -> np.ndarray:
    """Return the change of log expression that the latents' mean shift decodes to, ``(g,)``."""
    z = model.over(dataset, lambda cells: model.vae.encode(cells).mean)
    means = [z[of_cell == one].mean(0) - z[of_cell == zero].mean(0) for one, zero in pairs]
    delta = torch.from_numpy(np.mean(means, axis=0)).to(model.device)
    delta[model.architecture.n_latent :] = 0.0  # the library size, where that is a latent

    sums = np.zeros((2, len(model.origin.genes)))
    is_target = torch.from_numpy(of_cell == target).to(model.device)

    def add(cells: Cells) -> None:
        own = is_target[cells.rows].cpu().numpy()
        at = model.vae.encode(cells).mean
        amounts = model.amount_of(torch.stack([at, at + delta]), cells, [], KIND)
        sums[:] += amounts.cpu().numpy()[:, own].sum(1)

    model.over(dataset, add, samples=2)
    before, after = np.log(sums / is_target.sum().item() + FLOOR)
    shift: np.ndarray = after - before
    return shift
