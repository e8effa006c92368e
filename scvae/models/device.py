"""Where a model is to be."""

from __future__ import annotations

import os

import torch

from scvae.arguments import shown
from scvae.errors import ConfigError


def pick_device(device: str | None) -> torch.device:
    """Return the device asked for; None takes CUDA where there is one.

    Raises
    ------
    ConfigError
        If the device is unknown or not there.
    """
    if device is None:
        return _own(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={shown(device)} is not a device of torch; give 'cpu' or 'cuda'."
        ) from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r} is not supported; give 'cpu' or 'cuda'.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device!r}, but this torch ({torch.__version__}) finds "
            f"{torch.cuda.device_count()} CUDA devices. "
            "Give device='cpu', or install a CUDA build of torch."
        )
    return _own(chosen)


def _own(device: torch.device) -> torch.device:
    """Return a GPU with its number, where `torchrun` started a process for each; else as it is."""
    local = os.environ.get("LOCAL_RANK", "")
    if device.type != "cuda" or device.index is not None or not local.isdigit():
        return device
    return torch.device("cuda", int(local) % torch.cuda.device_count())
