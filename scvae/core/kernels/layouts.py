"""Which matrices every kernel takes: checked before an address is handed over.

A kernel reads and writes as many numbers as it is told there are. Told wrongly, it takes them from
memory of others, so that nothing is to reach one unchecked. A check is a few comparisons, and what
was once found to fit is remembered.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Size, Tensor

# Rows and columns of every matrix, in the order of the kernel's arguments; the first letter is the
# axis that is cut into parts. A letter is one size wherever it stands.
LAYOUTS = {
    "nb": ("n", "ng na nt rg n1 na nu ng"),
    "zinb": ("n", "ng na nt rg ng n1 na nu ng ng"),
    "poisson": ("n", "ng na n1 n1 na n1"),
    "product": ("n", "ng gh nh"),
    "csr_product": ("n", "n1 n1 e1 e1 gh nh"),  # of which the first three are bits of int32
    "csr_scaled_log1p": ("n", "n1 n1 e1 n1 e1"),  # of which the first two are
    "outer": ("g", "ng nh gh"),
    "scaled_log1p": ("n", "ng n1 ng"),
}


def laid_out(tensor: Tensor) -> Tensor:
    """Return a tensor, without its history, in memory as kernels take it."""
    return tensor.detach().contiguous().resolve_neg()


def demand(name: str, rows: int, matrices: tuple[Tensor, ...], device: str = "cpu") -> None:
    """Raise ValueError unless a kernel may be given these matrices."""
    for number, matrix in enumerate(matrices):
        if not _is_plain(matrix, device):
            raise _not_plain(name, number, matrix, device)
    _demand_shapes(name, rows, tuple([matrix.shape for matrix in matrices]))


def _is_plain(tensor: Tensor, device: str) -> bool:
    return (
        tensor.dtype is torch.float32
        and (tensor.is_cpu if device == "cpu" else tensor.device.type == device)
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _not_plain(name: str, number: int, matrix: Tensor, device: str) -> ValueError:
    stride = matrix.stride() if matrix.layout == torch.strided else matrix.layout
    return ValueError(
        f"The kernel {name!r} takes contiguous torch.float32 on {device}, but matrix {number} "
        f"is {matrix.dtype} on {matrix.device} with stride {stride}"
    )


@lru_cache(maxsize=4096)
def _demand_shapes(name: str, rows: int, shapes: tuple[Size, ...]) -> None:
    axis, layout = LAYOUTS[name][0], LAYOUTS[name][1].split()
    if len(shapes) != len(layout):
        raise ValueError(f"The kernel {name!r} takes {len(layout)} matrices, not {len(shapes)}")
    sizes = {"1": 1, axis: rows}
    for number, (shape, letters) in enumerate(zip(shapes, layout, strict=True)):
        wanted = tuple(
            sizes.setdefault(letter, size) for letter, size in zip(letters, shape, strict=False)
        )
        if wanted != tuple(shape) or len(shape) != len(letters):
            raise ValueError(
                f"The kernel {name!r} takes matrix {number} of shape ({', '.join(letters)}), here "
                f"{wanted}, but it is {tuple(shape)}"
            )
    _demand_sense(name, sizes)


def _demand_sense(name: str, sizes: dict[str, int]) -> None:
    """Raise ValueError unless the sizes that letters stand for are such as the kernel takes."""
    n, g, t = (sizes.get(letter, 0) for letter in "ngt")
    if sizes.get("r", 1) not in (1, n):
        raise ValueError(f"The kernel {name!r} takes 1 or {n} rows of r, not {sizes['r']}")
    if t > 1 or sizes.get("u", t) not in (t, 1):
        raise ValueError(
            f"The kernel {name!r} takes no total or 1 a row, not {t} with {sizes['u']} derivatives"
        )
    of_shares = t > 0 or name == "poisson"
    if "a" in sizes and (sizes["a"] < g or (not of_shares and sizes["a"] != g)):
        what = "logits of shares" if of_shares else "log-means"
        raise ValueError(f"The kernel {name!r} got {sizes['a']} {what} for {g} counts")
