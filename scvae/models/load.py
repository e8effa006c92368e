"""scvae.load: from the file of a model to the model."""

from __future__ import annotations

import os

from scvae.arguments import check_path
from scvae.keywords import named
from scvae.models.device import pick_device
from scvae.models.keep.files import read_model
from scvae.models.model import Model


@named("scvae.load")
def load(path: str | os.PathLike[str], *, device: str | None = None) -> Model:
    """Read a model that `Model.save` wrote.

    Parameters
    ----------
    path
        A file written by `Model.save`. It is data only: nothing in it is executed.
    device
        "cuda", "cpu", or None for the GPU where there is one.

    Raises
    ------
    FileError
        If the file is missing, damaged, or not a model of scvae.

    Examples
    --------
    >>> import scvae, tempfile
    >>> model = scvae.fit(scvae.simulate(n_cells=200, n_genes=50), max_steps=20, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/cells.scvae")
    ...     again = scvae.load(f"{folder}/cells.scvae", device="cpu")
    >>> repr(again) == repr(model)
    True
    """
    chosen = pick_device(device)
    parts = read_model(check_path("path", path, "model.scvae"))
    return Model(
        parts.vae.to(chosen),
        parts.embedding.to(chosen),
        parts.architecture,
        parts.origin,
        parts.record,
        parts.reference,
    )
