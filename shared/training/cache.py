"""Tensors computed once and kept on disk with a fingerprint of everything they depend on."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from shared.errors import UserError
from shared.run.folder import write_whole


def fingerprint(about: str, model: nn.Module, **inputs: Tensor) -> str:
    """SHA-256 of ``about``, of every weight of a model and of its inputs, in hexadecimal."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in [*sorted(model.state_dict().items()), *inputs.items()]:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored(
    path: Path, option: str, expected: str, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of a file, which is written first if it does not exist.

    Args:
        option: the option that names the file, for messages.
        expected: the fingerprint of everything the tensors depend on.
        make: computes them.

    Raises:
        UserError: the file has another fingerprint, or is damaged.
    """
    if not path.exists():
        tensors = {name: tensor.cpu().contiguous() for name, tensor in make().items()}
        write_whole(path, save(tensors, {"fingerprint": expected}))
    try:
        with safe_open(path, "pt") as file:
            mark = (file.metadata() or {}).get("fingerprint", "none")
            if mark == expected:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{option} {path}: cannot be read ({error}); delete it") from error
    raise UserError(
        f"{option} {path}: belongs to another teacher, other data or other options (fingerprint "
        f"{mark[:12]}, here {expected[:12]}); name another file or delete it"
    )
