"""Bases: loading a Hugging Face checkpoint and naming it by digest.

The model is loaded in the widest float type that the checkpoint stores, so no stored value is rounded before
it becomes an integer, and the base digest covers the stored type and bytes of what the model loads
(docs/decisions/0003-base-digest-of-the-loaded-model.md).
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from fedzo.base.checkpoint_files import FLOAT_TYPES, require_model, widest_type
from fedzo.base.initial_weights import initialise
from fedzo.base.manifest import frame
from fedzo.base.paging import release
from fedzo.errors import CheckpointError
from fedzo.journal.records import Task
from fedzo.scopes.frozen import FrozenParameter

BASE_MAGIC = b"fedzo-base-1\n"

_TYPE_NAME = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded starting checkpoint, before it becomes a replica.

    `model` still holds its float weights; `Replica.from_base` takes them out one by one.
    """

    source: str
    model: Any
    digest: bytes
    head: "Head | None" = None
    """What it was loaded with."""


@dataclass(frozen=True, slots=True)
class Head:
    """A classification head that a base gets."""

    labels: tuple[str, ...]
    run_seed: int
    """What its weights are initialised from, where the checkpoint lacks them."""


def head_of(task: Task, run_seed: int) -> Head | None:
    """The head that a task asks for; None where the model has its language-model head."""
    return Head(task.labels, run_seed) if task.head else None


def load_base(source: str, head: Head | None = None) -> Base:
    """Load a model from a checkpoint directory or hub name: a causal language model, or one with a classification head.

    Args:
        source: directory with config.json and safetensors (one file or sharded), or a name on the hub.
        head: asks for one.

    Raises:
        CheckpointError: nothing loadable there, tensors are missing, or a weight cannot be represented.
    """
    dtype = widest_type(source)
    kind, options = ("causal language model", {}) if head is None else ("classifier", _head_config(head))
    factory = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    try:
        with _no_progress_bar():
            model, loading = factory.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot load a {kind} from {source!r}: {error}") from error
    model.eval()
    _complete(source, model, set(loading["missing_keys"]), head)
    return Base(source=source, model=model, digest=base_digest(model), head=head)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Transformers shows one for each load, however small."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _head_config(head: Head) -> dict[str, Any]:
    return {"id2label": dict(enumerate(head.labels)), "label2id": {label: k for k, label in enumerate(head.labels)}}


def _complete(source: str, model: Any, missing: set[str], head: Head | None) -> None:
    """Initialise what a new head lacks; anything else that is missing is an error."""
    if head is not None:
        _set_padding(model.config)
        backbone = f"{model.base_model_prefix}."
        for index, (name, parameter) in enumerate(unique_parameters(model).items()):
            new = not name.startswith(backbone) or name.startswith(f"{backbone}pooler.")
            if name in missing and new:
                initialise(parameter.data, name, index, head.run_seed)
                missing.discard(name)
    if missing:
        raise CheckpointError(
            f"checkpoint {source!r} lacks {min(missing)!r} ({len(missing)} tensors in all) that a "
            f"{type(model).__name__} needs; use a checkpoint of that architecture"
        )


def _set_padding(config: Any) -> None:
    """Decoders with a head need a padding token: the end token where they have none, else 0."""
    if config.pad_token_id is None:
        end = config.eos_token_id
        config.pad_token_id = (end[0] if isinstance(end, list) else end) or 0


def load_tokenizer(source: str) -> Any:
    """The tokenizer that lies beside a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    require_model(source)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"no tokenizer can be loaded from {source!r}: {error}") from error


def tokenizer_digest(tokenizer: Any) -> bytes:
    """BLAKE3 over the vocabulary (token, id) in order of id and the tokens of a probe text; 32 bytes."""
    hasher = blake3(b"fedzo-tokenizer-1\n")
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        encoded = token.encode()
        hasher.update(struct.pack(f"<II{len(encoded)}s", index, len(encoded), encoded))
    probe = tokenizer("The quick brown fox: 0123456789!\n\tÜber 東京 …")["input_ids"]
    hasher.update(struct.pack(f"<{len(probe)}I", *probe))
    return hasher.digest()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable, in its own type's byte order."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def unique_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Each parameter once, under the least of its names, sorted by the names' bytes; frozen ones are left out."""
    names: dict[int, str] = {}
    by_id: dict[int, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if isinstance(parameter, FrozenParameter):
            continue
        by_id[id(parameter)] = parameter
        known = names.get(id(parameter), name)
        names[id(parameter)] = min(known, name, key=str.encode)
    return dict(sorted(((names[key], by_id[key]) for key in names), key=lambda item: item[0].encode()))


def base_digest(model: torch.nn.Module) -> bytes:
    """BLAKE3 over all parameters and persistent buffers, sorted by name (docs/numerics.md, "Digests").

    Per tensor: `manifest.frame`, u8 length and name of the type as safetensors spells it, u64 byte count, bytes.
    """
    tensors: dict[str, torch.Tensor] = dict(unique_parameters(model))
    tensors.update(_persistent_buffers(model))
    hasher = blake3(BASE_MAGIC + struct.pack("<I", len(tensors)), max_threads=blake3.AUTO)
    for name in sorted(tensors, key=str.encode):
        tensor = tensors[name].detach().contiguous()
        kind = _TYPE_NAME.get(tensor.dtype)
        if kind is None:
            raise CheckpointError(
                f"tensor {name!r} has type {tensor.dtype}; fedzo trains float parameters "
                f"({', '.join(str(t) for t in FLOAT_TYPES.values())})"
            )
        encoded = kind.encode()
        hasher.update(frame(name, tuple(tensor.shape)))
        hasher.update(struct.pack(f"<B{len(encoded)}sQ", len(encoded), encoded, tensor.nbytes))
        hasher.update(raw_bytes(tensor))
        release(tensor)
    return hasher.digest()


def _persistent_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
