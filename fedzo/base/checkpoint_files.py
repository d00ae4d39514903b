"""The safetensors files of a checkpoint, in a directory or on the hub: where they are, and what they store."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from fedzo.errors import CheckpointError

FLOAT_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""As safetensors spells them."""
_WIDTH = {"F64": 3, "F32": 2, "BF16": 1, "F16": 1}


def require_model(source: str) -> None:
    """Raises CheckpointError where no model is: neither in a directory, nor in the hub's cache, nor on the hub."""
    if Path(source).is_dir() or _find(source, CONFIG_NAME) is not None:
        return
    raise CheckpointError(
        f"{source!r} is neither a directory here nor a model in the hub's cache, and cannot be fetched: there is no "
        f"network, HF_HUB_OFFLINE is set, or the hub has no {CONFIG_NAME} of that name; give a checkpoint's directory, "
        f"or fetch it where there is a network: hf download {source}"
    )


def stored_bytes(source: str) -> int:
    """Size of a checkpoint's safetensors files together.

    Raises:
        CheckpointError: there are none.
    """
    return sum(path.stat().st_size for path in _weight_files(source))


def widest_type(source: str) -> torch.dtype:
    """The widest float type that a checkpoint stores; float32 where that would be both of the half types.

    Raises:
        CheckpointError: there are no such files, or one cannot be read.
    """
    kinds: set[str] = set()
    for path in _weight_files(source):
        try:
            with safe_open(path, framework="pt") as tensors:
                kinds |= {str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    floats = [kind for kind in kinds if kind in _WIDTH]
    if {"BF16", "F16"} <= kinds:
        return max((FLOAT_TYPES[k] for k in floats if _WIDTH[k] > 1), default=torch.float32, key=lambda t: t.itemsize)
    return FLOAT_TYPES[max(floats, key=lambda kind: _WIDTH[kind])] if floats else torch.float32


def _weight_files(source: str) -> list[Path]:
    require_model(source)
    index = _find(source, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        names = _sharded_names(index)
        return [path for name in names if (path := _require(source, name))]
    return [_require(source, SAFE_WEIGHTS_NAME)]


def _sharded_names(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def _find(source: str, name: str) -> Path | None:
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        if isinstance(error.__cause__, ValueError):
            raise CheckpointError(f"{source!r}: there is no such directory, nor can it be a hub's name") from error
        raise CheckpointError(f"cannot read checkpoint {source!r}: {error}") from error
    return None if found is None else Path(found)


def _require(source: str, name: str) -> Path:
    found = _find(source, name)
    if found is None:
        if not Path(source).is_dir():
            raise CheckpointError(
                f"model {source!r}: {name} is not in the hub's cache and cannot be fetched; fedzo reads safetensors "
                f"only. Where the hub has it, fetch it where there is a network: hf download {source}"
            )
        raise CheckpointError(f"checkpoint {source!r} has no {name}; fedzo reads safetensors only")
    return found
