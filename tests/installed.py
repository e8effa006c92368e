"""What a fresh environment with the wheel alone must do: `python tests/installed.py`.

Run where no checkout is on the path, so that the package is the one that was installed.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distributions, version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import scvae


def main() -> None:
    home = Path(scvae.__file__).parent
    checkout = Path(__file__).resolve().parent.parent
    assert checkout not in home.parents or ".venv" in home.as_posix(), f"{home} is a checkout"
    assert scvae.__version__ == version("scvae-torch")
    assert (files(scvae) / "py.typed").is_file()
    assert scvae.datasets.pancreas().shape == (1_937, 14_738)
    adata = scvae.simulate(200, 50)
    model = scvae.fit(adata, batch="batch", max_steps=20, progress=False)
    with TemporaryDirectory() as folder:
        cells, out, path = (Path(folder, name) for name in ("in.h5ad", "out.h5ad", "m.scvae"))
        model.save(path)
        assert (scvae.load(path).embed(adata) == adata.obsm["X_scvae"]).all()
        adata.write_h5ad(cells)
        for command in ([Path(sys.executable).with_name("scvae")], [sys.executable, "-m", "scvae"]):
            said = subprocess.run([*command, "--version"], capture_output=True, text=True)
            assert said.stdout == f"scvae {scvae.__version__}\n", said
        subprocess.run([*command, "embed", path, cells, "-o", out, "--quiet"], check=True)
        assert out.is_file()
    names = {found.metadata["Name"].lower() for found in distributions()} - {"pip", "setuptools"}
    print(f"scvae {scvae.__version__}: {len(names)} distributions with it and all that it needs")


if __name__ == "__main__":
    main()
