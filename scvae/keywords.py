"""Arguments by names that a function does not have: misspelt, or as other packages call them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

from scvae.arguments import shown
from scvae.errors import ArgumentError

P = ParamSpec("P")
T = TypeVar("T")

# What other packages of the field call what is here; the value says more where names are not all.
FOREIGN = {
    "batch_key": "batch",
    "sample_key": "batch",
    "batches": "batch",
    "categorical_covariate_keys": "covariates",
    "continuous_covariate_keys": "covariates",
    "covariate_keys": "covariates",
    "covariate": "covariates",
    "use_raw": "layer",
    "counts_layer": "layer",
    "use_layer": "layer",
    "layer_key": "layer",
    "hvg": "genes",
    "n_top_genes": "genes",
    "gene_list": "genes",
    "size_factor_key": "library_size",
    "use_observed_lib_size": "library_size",
    "gene_likelihood": "likelihood",
    "distribution": "likelihood",
    "latent_distribution": "prior",
    "n_latent_dims": "n_latent",
    "n_latents": "n_latent",
    "latent_dim": "n_latent",
    "n_dims": "n_latent",
    "n_components": "n_latent",
    "hidden_dim": "n_hidden",
    "n_hidden_dims": "n_hidden",
    "num_layers": "n_layers",
    "encode_covariate": "encode_covariates",
    "train_size": "validation",
    "validation_size": "validation",
    "max_epochs": "max_steps",
    "n_epochs": "max_steps",
    "epochs": "max_steps",
    "n_steps": "max_steps",
    "minibatch_size": "batch_size",
    "lr": "learning_rate",
    "early_stop": "early_stopping",
    "use_gpu": "device",
    "accelerator": "device",
    "gpu": "device",
    "random_state": "seed",
    "random_seed": "seed",
    "rng": "seed",
    "key": "key_added",
    "use_rep": "key",
    "obsm_key": "key_added",
    "verbose": "progress",
    "labels_key": "label",
    "label_key": "label",
    "unlabeled_category": "unlabelled",
    "n_samples": "samples",
    "transform_batch": "batch",
    "filename": "path",
    "dir_path": "path",
    "path_or_buf": "path",
}
MEANING = {
    "max_epochs": "in minibatches, not in passes over the cells; left out, it goes by their number",
    "train_size": "the share of the cells held out, not of those trained on",
    "use_gpu": "device='cuda' or device='cpu'; left out, the GPU where there is one",
    "use_raw": "layer='raw'",
    "n_top_genes": "a boolean column of adata.var: genes='highly_variable'",
    "use_observed_lib_size": "library_size='observed' or 'latent'",
}
MEANING |= dict.fromkeys(("n_epochs", "epochs"), MEANING["max_epochs"])
MEANING |= dict.fromkeys(("accelerator", "gpu"), MEANING["use_gpu"])


def named(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function, `name` to the user, say the right name of an argument that it has not.

    Its signature and documentation stay what they are.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters
        of_place = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            if not kwargs.keys() <= parameters.keys():
                wrong = next(word for word in kwargs if word not in parameters)
                raise ArgumentError(_advice(name, wrong, kwargs[wrong], [*parameters]))
            if len(args) > len(of_place):
                first = of_place[-1].name if of_place else ""
                raise ArgumentError(
                    f"{name} takes {len(of_place)} arguments by their place, the last of them "
                    f"{first}; {shown(args[len(of_place)])} needs its name: "
                    f"{name}({first}, {next(iter([*parameters][len(of_place) :]), '')}=...)"
                )
            return function(*args, **kwargs)

        return called

    return decorate


def named_methods(kind: type[T]) -> type[T]:
    """Do as `named` for all public methods of a class, those that it inherits among them; its
    objects are called as it, in small."""
    for name, method in inspect.getmembers_static(kind):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(kind, name, named(f"{kind.__name__.lower()}.{name}")(method))
    return kind


def meant(wrong: str, known: Sequence[str]) -> str | None:
    """Return the one of `known` names that another package's or a misspelt one stands for."""
    right = FOREIGN.get(wrong)
    if right in known:
        return right
    return next(iter(get_close_matches(wrong.lower(), known, n=1)), None)


def _advice(name: str, wrong: str, value: Any, known: Iterable[str]) -> str:
    """Return the error of an argument that `name` has not."""
    known = [word for word in known if word != "self"]
    right = meant(wrong, known)
    if right is None:
        return f"{name} has no argument {wrong!r}; it takes {', '.join(known)}."
    meaning = f" ({MEANING[wrong]})" if wrong in MEANING else f": {right}={shown(value)}"
    return f"{name} has no argument {wrong!r}; here it is {right}{meaning}"
