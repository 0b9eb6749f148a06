"""Damage to files of tensors: limbeck's safetensors with their headers, and the pickles of torch.save."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torture.mutations import TRACE, Hostile, change_value, damage_bytes, mutate_bytes

from limbeck.core.tensors import CHECKSUM, HEADER, digest

# --- limbeck's files of tensors

TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda t: torch.full_like(t.float(), float("nan")),
    "inf": lambda t: torch.full_like(t.float(), float("inf")),
    "empty": lambda t: t.reshape(-1)[:0],
    "flat": lambda t: t.reshape(-1).clone(),
    "one more dimension": lambda t: t[None].clone(),
    "scalar": lambda t: t.reshape(-1)[0].clone() if t.numel() else t,
    "bool": lambda t: t.bool(),
    "int64": lambda t: t.nan_to_num().long() if t.is_floating_point() else t.long(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float64": lambda t: t.double(),
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "complex": lambda t: t.to(torch.complex64),
    "huge": lambda t: t.float() * 1e38,
    "negative": lambda t: -t.float() - 1,
    "zero": torch.zeros_like,
    "no rows": lambda t: t[:0] if t.ndim else t.reshape(-1)[:0],
    "one row": lambda t: t[:1].clone() if t.ndim else t,
    "twice": lambda t: torch.cat([t, t]) if t.ndim else t,
    "negative int64": lambda t: torch.full_like(t, -5).long(),
    "large int64": lambda t: torch.full(t.shape, 2**62),
    "uint8": lambda t: t.to(torch.uint8),
}
"""What a tensor becomes."""

NAMES = ("x", "set.x", "extra.x.y", "extra.x", "optimiser.0.0.momentum_buffer", "optimiser.0.x.y", "optimiser.0.7.z")
LENGTHS = (0, 1, 2**31, 2**63, 2**64 - 1, 99_999_999, 100_000_001)
"""Claimed bytes of a header."""


def mutate_tensors(content: bytes, generator: Random) -> tuple[bytes, str]:
    """A safetensors file of limbeck: its bytes, its header, or limbeck's header or a tensor with a right checksum."""
    kind = generator.randrange(10)
    if kind < 2:
        return mutate_bytes(content, generator)
    length = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + length])
    if kind < 4:
        if generator.random() < 0.2:
            claimed = generator.choice((*LENGTHS, length + 1, length - 1))
            return struct.pack("<Q", claimed) + content[8:], f"header of {claimed} bytes"
        changed, change = change_value(outer, generator)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :], f"outer header: {change}"
    header, tensors = json.loads(outer["__metadata__"][HEADER]), load(content)
    if kind < 8:
        header, change = change_value(header, generator)
    else:
        change = _change_tensor(tensors, generator)
    if isinstance(header, dict):
        header.pop(CHECKSUM, None)
        with suppress(ValueError, TypeError):  # NaN has no place in a digest
            header[CHECKSUM] = digest(header, tensors)
    return save(tensors, metadata={HEADER: json.dumps(header)}), change


def _change_tensor(tensors: dict[str, Tensor], generator: Random) -> str:
    name, how = generator.choice(sorted(tensors)), generator.choice([*TENSORS, "dropped", "renamed"])
    tensor = tensors.pop(name)
    if how == "renamed":
        tensors[generator.choice((*NAMES, "preprocess.x"))] = tensor
    elif how != "dropped":
        tensors[name] = TENSORS[how](tensor)
    return f"tensor {name}: {how}"


# --- files of torch.save


def _like(base: Any) -> Tensor:
    return base if isinstance(base, Tensor) else torch.randn(2, 3)


def _as_matrix(base: Any) -> Tensor:
    tensor = _like(base).float()
    return tensor.reshape(len(tensor) if tensor.ndim else 1, -1)


VALUES: dict[str, Callable[[Any], Any]] = {
    **{
        f"{value!r}"[:20]: lambda base, value=value: value
        for value in (None, "x", 3.5, [], [[[[]]]], [None], {1, 2}, b"a")
    },
    **{name: lambda base, change=change: change(_like(base)) for name, change in TENSORS.items()},
    "dict": lambda base: {"a": base},
    "dict of numbers": lambda base: dict.fromkeys(range(3), base),
    "tuple": lambda base: (base,),
    "sparse": lambda base: _as_matrix(base).to_sparse(),
    "sparse rows": lambda base: _as_matrix(base).to_sparse_csr(),
    "meta": lambda base: _like(base).to("meta"),
    "expanded": lambda base: torch.zeros(1).expand(1_000_000, 1_000_000),
    "expanded rows": lambda base: torch.zeros(1).expand(10**9, *_like(base).shape[1:]),
    "quantised": lambda base: torch.quantize_per_tensor(_like(base).float(), 0.1, 0, torch.quint8),
    "parameter": lambda base: torch.nn.Parameter(_like(base).float()),
    "strided": lambda base: _like(base).float().transpose(0, -1) if _like(base).ndim > 1 else _like(base),
    "with gradient": lambda base: _like(base).float().requires_grad_(),
    "uint16": lambda base: _like(base).abs().to(torch.uint16),
    "conjugated": lambda base: _like(base).to(torch.complex64).conj(),
    "code": lambda base: Hostile(),
    "device": lambda base: torch.device("cuda"),
    "dtype": lambda base: torch.float32,
    "size": lambda base: torch.Size([1, 2]),
    "nested tensor": lambda base: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}
"""What torch.save can store beside what a reader expects."""

PICKLES: tuple[Callable[[], bytes], ...] = (
    *(lambda protocol=protocol: pickle.dumps(Hostile(), protocol) for protocol in (0, 2, 4)),
    *(
        lambda content=content: content
        for content in (
            f"cos\nsystem\n(S'touch {TRACE}'\ntR.".encode(),
            b"cbuiltins\neval\n(S'1'\ntR.",
            b"(" * 100_000 + b".",
            b"]" * 100_000 + b"a" * 99_999 + b".",
            b"ctorch.serialization\nload\n(S'/etc/passwd'\ntR.",
            b"\x80\x02ctorch\nload\nq\x00.",
            b"\x80\x02]q\x00h\x00a.",
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNtR.",
            b"\x80\x02B\xff\xff\xff\x7fabc.",
            b"\x80\x04\x95" + b"\xff" * 8 + b".",
            b"\x80\x02K\x01K\x02\x86" + b"2\x86" * 40 + b".",
        )
    ),
)
"""Pickles that run code, load files, claim memory, or are nested."""

NUMBERS = (
    *(b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"K\x00", b"\x8a\x09" + b"\xff" * 8 + b"\x00"),
    *(b"\x8a\x08" + b"\xff" * 7 + b"\x0f", b"N", b"]", b"G" + struct.pack(">d", float("nan"))),
)
"""Pickled values that take the place of a whole number: shapes, strides and offsets among them."""


def mutate_pickle(content: bytes, generator: Random) -> tuple[bytes, str]:
    """A file of torch.save: bytes, the pickle inside a right archive, a value in it, or a hostile pickle."""
    kind = generator.randrange(10)
    if kind < 2:
        return mutate_bytes(content, generator)
    if kind < 6:
        return _mutate_archive(content, generator)
    if kind == 6:
        hostile = generator.choice(PICKLES)()
        if generator.random() < 0.5:
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("x/data.pkl", hostile)
                file.writestr("x/version", "3\n")
            return archive.getvalue(), f"zip of the pickle {hostile[:30]!r}"
        return hostile, f"pickle {hostile[:30]!r}"
    value = torch.load(io.BytesIO(content), weights_only=False)  # our own file, which is right
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value, change = _change_saved(value, generator)
        file = io.BytesIO()
        try:
            torch.save(value, file, _use_new_zipfile_serialization=generator.random() < 0.8)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):  # what torch cannot save
            return content[:-1], "cut"
    return file.getvalue(), change


def _change_saved(value: Any, generator: Random) -> tuple[Any, str]:
    """The value, of which one element, perhaps deep inside, is another."""
    name = generator.choice(sorted(VALUES))
    if isinstance(value, dict) and generator.random() < 0.7:
        key = generator.choice(sorted(value))
        inner, change = _change_saved(value[key], generator)
        return {**value, key: inner}, f"{key}: {change}"
    if not isinstance(value, list):
        return VALUES[name](value), name
    part = value
    for _ in range(generator.randrange(4)):
        if part and isinstance(part[0], list):
            part = part[generator.randrange(len(part))]
    if not part:
        return [*value, None], "another length"
    place = generator.randrange(len(part))
    if generator.random() < 0.3:
        part[place : place + 1] = generator.choice(([], [part[place]] * 3, [[part[place]]]))
        return value, "another length"
    part[place] = VALUES[name](part[place])
    return value, name


def _mutate_archive(content: bytes, generator: Random) -> tuple[bytes, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = generator.choice([*[name for name in parts if name.endswith("data.pkl")] * 3, *parts])
    if name.endswith("data.pkl") and generator.random() < 0.5:
        parts[name] = _replace_whole_number(parts[name], generator)
    else:
        parts[name] = damage_bytes(parts[name], generator)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for part, inner in parts.items():
            archive.writestr(part, inner)
    return file.getvalue(), f"{name} inside"


def _replace_whole_number(content: bytes, generator: Random) -> bytes:
    widths = {b"K": 1, b"M": 2, b"J": 4}  # opcodes of whole numbers, and their bytes
    places = [i for i in range(len(content) - 1) if content[i : i + 1] in widths]
    place = generator.choice(places) if places else 0
    width = widths.get(content[place : place + 1], 1)
    return content[:place] + generator.choice(NUMBERS) + content[place + 1 + width :]
