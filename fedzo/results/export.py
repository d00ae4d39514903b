"""A replica as a directory that `from_pretrained` loads, without a model's worth of memory.

transformers writes the directory, for a model whose weights are memory that was never touched, and so takes none;
then the weights are written over what is in its files, a tensor at a time. Where it stores other tensors than the
model has, as it does of some mixtures of experts, only a whole model will do, and one is made.
"""

import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fedzo.base.checkpoint import Base, load_tokenizer, raw_bytes, unique_parameters
from fedzo.errors import ConfigError
from fedzo.results.rebuild import plain_model
from fedzo.scopes import Kind
from fedzo.state.replica import Replica


def export_model(replica: Replica, base: Base, out: Path, *, merge: bool = False) -> None:
    """Write the directory: safetensors float32, config and tokenizer; of an adapter, what peft writes.

    Args:
        replica: the weights.
        base: its model is used up.
        out: the directory.
        merge: add a LoRA adapter into the weights, and write the whole model.

    Raises:
        ConfigError: it holds something already, cannot be written, or there is no LoRA to merge.
    """
    check_export(out)
    if merge and replica.scope.kind is not Kind.LORA:
        raise ConfigError(f"scope {replica.scope.describe()} has no LoRA adapter to merge; leave --merge out")
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.resolve().parent))
        try:
            _write(replica, base, partial, merge)
            load_tokenizer(base.source).save_pretrained(partial)
            partial.chmod(0o755)
            partial.rename(out.resolve())
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{out}: cannot be written ({error}); nothing was left there") from error


def check_export(out: Path) -> None:
    """Raises ConfigError where a model cannot be written: something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is not empty; give a new directory")


def _write(replica: Replica, base: Base, directory: Path, merge: bool) -> None:
    if replica.scope.adapts:
        adapted = plain_model(replica, base)
        if merge:
            adapted.merge_and_unload().save_pretrained(directory)
        else:
            adapted.save_pretrained(directory, save_embedding_layers=False)
        return
    model = base.model
    if not getattr(model, "_weight_conversions", None) and not replica.scope.freezes:
        for parameter, spec in zip(unique_parameters(model).values(), replica.manifest, strict=True):
            parameter.data = torch.empty(spec.shape)
        model.float().save_pretrained(directory)
        if _fill(replica, model, directory):
            return
    plain_model(replica, base).save_pretrained(directory)


def _fill(replica: Replica, model: Any, directory: Path) -> bool:
    """Write every weight to its place; false where the files do not hold the model's own tensors.

    A safetensors file is: u64 length of its header, the header in JSON, the values.
    """
    index_of = {id(parameter): index for index, parameter in enumerate(unique_parameters(model).values())}
    indices = {name: index_of[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    missing = set(index_of.values())
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for name, place in json.loads(file.read(length)).items():
                if name in indices:
                    file.seek(8 + length + place["data_offsets"][0])
                    file.write(raw_bytes(replica.weights(indices[name])))
                    missing.discard(indices[name])
    return not missing
