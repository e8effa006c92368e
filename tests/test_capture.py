"""A step can be captured as a CUDA graph: it reads nothing from its device and brings it nothing.

Held without a GPU, by steps on torch's meta device, which has shapes and no values.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import scvae
from scvae.core.joint import joint_and_single_bounds
from scvae.train.loop import one_bound

MADE_HERE = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)
ASKED = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "bincount"}


class MakesNothing(TorchFunctionMode):
    """Refuses tensors made of Python's numbers, which are copied to the device."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert function not in MADE_HERE, f"{function} copies numbers to the device"
        return function(*args, **(kwargs or {}))


class AsksNothing(TorchDispatchMode):
    """Refuses what needs a value from the device, or a value of the host on it."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.split("::")[1]
        assert name not in ASKED, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1])
        if name == "_to_copy":
            device = (kwargs or {}).get("device", args[0].device)
            assert torch.device(device) == args[0].device, "copied between devices"
        return function(*args, **(kwargs or {}))


OPTIONS: list[dict[str, Any]] = [
    *({"likelihood": name} for name in ("nb", "zinb", "poisson")),
    {"library_size": "latent"},
    {"dispersion": "gene-batch", "batch": "batch"},
    {"dispersion": "gene-cell", "batch": "batch"},
    {"prior": "normal"},
    {"decoder": "linear"},
    {"robust": True},
    {"labels": "cell_type"},
]
KINDS: list[dict[str, Any]] = (
    [{"modalities": [kind]} for kind in ("protein", "chromatin")]
    + [
        {"modalities": ["rna", "protein", "chromatin"], "fusion": fusion, "batch": "batch"}
        for fusion in ("product", "mixture", "mixture-of-products")
    ]
    + [{"modalities": ["rna", "chromatin"], "likelihood": {"chromatin": "bernoulli"}}]
)


@pytest.mark.parametrize("options", [*OPTIONS, *KINDS], ids=str)
def test_a_step_reads_nothing_from_its_device_and_brings_it_nothing(
    options: dict[str, Any],
) -> None:
    kinds = options.get("modalities")
    missing = 0.3 if len(kinds or ()) > 1 else 0.0
    cells = scvae.simulate(
        60, 12, modalities=kinds, n_proteins=5, n_regions=30, missing=missing, seed=1
    )
    given = {key: value for key, value in options.items() if key != "modalities"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scvae.fit(cells, max_steps=2, progress=False, n_latent=4, n_hidden=8, **given)
    batch: Any = model.read(cells).cells(torch.arange(40))
    if "labels" in options:
        batch = dataclasses.replace(batch, label=torch.arange(40) % 3 - 1)
    batch = batch.map(lambda value: value.to("meta"))
    vae = model.vae.to("meta").train().requires_grad_(True)
    objective: Any = joint_and_single_bounds if len(kinds or ()) > 1 else one_bound
    beta = torch.zeros((), device="meta")
    with MakesNothing(), AsksNothing():
        _, bound, climbed = objective(vae, batch, None, beta)
        climbed.backward()
    assert bound.shape == ()
    assert all(p.grad is not None for p in vae.parameters())
