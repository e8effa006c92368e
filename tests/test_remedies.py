"""Remedies as one writes them in a shell."""

import pytest

from scvae.cli.remedies import Shell, as_options

SHELL = Shell(
    "embed",
    {
        "fit": {
            "layer": "--layer",
            "genes": "--genes",
            "n_latent": "--n-latent",
            "batch": "--batch",
        },
        "check": {"layer": "--layer"},
        "embed": {"layer": "--layer"},
    },
    {"fit": "scvae fit a -o b", "check": "scvae check a", "embed": "scvae embed m a -o b"},
    "a",
)
FIT = Shell("fit", SHELL.options, SHELL.files, "a")


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("some: scvae.fit(adata, layer='counts').", "some: --layer counts."),
        ("some: scvae.fit(adata, layer='my counts (raw)')", "some: --layer 'my counts (raw)'"),
        ("Leave it out: scvae.fit(adata).", "Leave it out: scvae fit a -o b."),
        ("look: scvae.check(adata)", "look: scvae check a"),
        ("scvae.fit(adata, genes=shared)", "--genes shared"),
        ("scvae.fit(adata, genes=['A', 'B'], n_latent=3)", "--genes A B --n-latent 3"),
        ("scvae.fit(adata, layer=...)", "--layer NAME"),
        ("n_latent=0, but at least 1: n_latent=30", "--n-latent 0, but at least 1: --n-latent 30"),
        ("no column 'x' (given as batch); did you mean batch='y'?",
         "no column 'x' (given as --batch); did you mean --batch y?"),
        ("or layer=None to use X", "or no --layer to use X"),
        ("genes=['A', 'B'] repeat", "--genes A B repeat"),
        ("p(n_latent=3) and my_batch=2 stay", "p(n_latent=3) and my_batch=2 stay"),
        ("scvae.fit(adata, unknown=3)", "scvae.fit(adata, unknown=3)"),
        ("an unclosed scvae.fit(adata, layer='x'", "an unclosed scvae.fit(adata, --layer x"),
    ],
)  # fmt: skip
def test_a_remedy_is_an_option(python: str, shell: str) -> None:
    assert as_options(python, FIT) == shell


def test_a_call_of_another_command_is_that_command() -> None:
    text = as_options("scvae.fit(adata, genes=shared), model.embed(adata, layer='x')", SHELL)
    assert text == "scvae fit a -o b --genes shared, --layer x"


@pytest.mark.parametrize(
    "python",
    ["adata = adata[adata.obs['b'].notna()].copy()", "sc.pp.filter_cells(adata, min_counts=1)",
     "adata.layers['x'] = adata.X", "adata.var_names_make_unique()"],
)  # fmt: skip
def test_where_python_alone_helps_it_is_said_how(python: str) -> None:
    text = as_options(f"Mend it: {python}", FIT)
    assert text.startswith(f"Mend it: {python} (In Python, between adata = anndata.read_h5ad('a')")
    assert "adata.write_h5ad('mended.h5ad')" in text
