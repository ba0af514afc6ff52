"""Tensor files come back as they were, are replaced durably, and hostile ones are refused."""

from __future__ import annotations

import hashlib
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tensor_files import HOSTILE, raw_file
from torch import Tensor

from densesiam_seg.errors import ModelError
from densesiam_seg.io.tensors import (
    digest_of,
    layout,
    read_layout,
    read_safetensors,
    write_safetensors,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def some_tensors() -> dict[str, Tensor]:
    tensors = {
        str(dtype): (torch.arange(6) - 2).clamp(min=0).to(dtype).reshape(2, 3) for dtype in DTYPES
    }
    return tensors | {
        "scalar": torch.tensor(-1.5),
        "empty": torch.empty(0, 4),
        "größe\n": torch.tensor([1, -(2**62)]),
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert layout(found) == layout(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_round_trip_through_the_library_and_back(tmp_path: Path) -> None:
    digest = write_safetensors(tmp_path / "a.safetensors", some_tensors())
    assert digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert_equal(read_safetensors(tmp_path / "a.safetensors"), some_tensors())
    assert_equal(safetensors.torch.load_file(tmp_path / "a.safetensors"), some_tensors())
    safetensors.torch.save_file(some_tensors(), tmp_path / "b", metadata={"format": "pt"})
    assert_equal(read_safetensors(tmp_path / "b"), some_tensors())
    write_safetensors(tmp_path / "empty", {})
    assert read_safetensors(tmp_path / "empty") == {}


def test_digests_of_tensors_in_memory() -> None:
    """Of names, types, shapes and values, neither of their order nor of how they lie in memory."""
    pair = {"b": torch.tensor([[1, 2]], dtype=torch.int16), "a": torch.tensor(True)}
    text = b"head" + b"a torch.bool []\n\x01" + b"b torch.int16 [1, 2]\n\x01\x00\x02\x00"
    assert digest_of(pair, b"head") == hashlib.sha256(text).hexdigest()
    own = some_tensors()
    strided = {name: value.t().contiguous().t() for name, value in reversed(own.items())}
    assert digest_of(strided) == digest_of(own)
    base = own["torch.bfloat16"]
    changes = (base + 1, base.reshape(3, 2), base.to(torch.float16), base.flatten())
    others = [own | {"torch.bfloat16": other} for other in changes]
    others.append({("scalar " if name == "scalar" else name): own[name] for name in own})
    assert len({digest_of(each) for each in (own, *others)}) == 1 + len(others)


def test_tied_strided_and_partial_tensors_are_written_out(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    tensors = {
        "a": base,
        "tied": base,
        "t": base.t(),
        "row": base[1],
        "wide": base[:, :1].expand(3, 9),
    }
    write_safetensors(tmp_path / "a", tensors | {"parameter": parameter})
    found = read_safetensors(tmp_path / "a")
    os.truncate(tmp_path / "a", 0)  # a mapped tensor would end the process at the next read
    assert_equal(found, {n: t.contiguous() for n, t in tensors.items()} | {"parameter": base})
    assert not found["parameter"].requires_grad


@pytest.mark.parametrize(("header", "data"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    path = raw_file(tmp_path / "evil.safetensors", header, data)
    with pytest.raises(ModelError, match=r"evil\.safetensors: ") as caught:
        read_safetensors(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200 + len(str(path))


@pytest.mark.parametrize("length", [0, 1, 3, 100, 2**20 + 1, 2**40, 2**63, 2**64 - 1])
def test_false_header_lengths_are_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelError, match="a: "):
        read_safetensors(raw_file(tmp_path / "a", b"{}", length=length))


def test_a_header_of_a_million_tensors_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write((68 << 20).to_bytes(8, "little") + b"{")
        file.truncate(69 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="header claims 71303168 bytes"):
            read_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_truncations_and_mutations_raise_nothing_but_a_model_error(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "a"
    write_safetensors(path, {"a": torch.arange(5), "b": torch.ones(2, 3, dtype=torch.float16)})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            read_safetensors(path)
    refused = 0
    for _ in range(400):
        mutant = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        path.write_bytes(mutant)
        try:
            read_safetensors(path)
        except ModelError:
            refused += 1
    assert 100 < refused < 400


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int8])
def test_large_values_are_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    """Even where their sum is not."""
    limit = torch.finfo(dtype).max if dtype.is_floating_point else 127
    weight = torch.full((3,), limit, dtype=dtype)
    write_safetensors(tmp_path / "a", {"weight": weight})
    assert_equal(read_safetensors(tmp_path / "a"), {"weight": weight})


@pytest.mark.parametrize("values", [[float("nan")], [float("-inf")], [float("inf"), -float("inf")]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, values: list[float], dtype: torch.dtype
) -> None:
    """Also infinities that cancel; where they may be, they keep every bit."""
    tensor = torch.tensor([-0.0, *values, 1e-45]).to(dtype)
    write_safetensors(tmp_path / "a", {"fine": torch.ones(2), "weight": tensor})
    with pytest.raises(ModelError, match="tensor weight holds NaN or infinite"):
        read_safetensors(tmp_path / "a")
    found = read_safetensors(tmp_path / "a", finite=False)["weight"]
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_the_layout_is_read_without_the_data(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.tensor(7), "c": torch.ones(1).bfloat16()}
    write_safetensors(tmp_path / "a", tensors)
    found = {"a": ((2, 3), "float32"), "b": ((), "int64"), "c": ((1,), "bfloat16")}
    assert read_layout(tmp_path / "a") == layout(tensors) == found
    os.truncate(tmp_path / "a", (tmp_path / "a").stat().st_size - 1)
    with pytest.raises(ModelError, match="bytes"):
        read_layout(tmp_path / "a")


def test_what_is_not_a_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "a" / "b", tmp_path / "pipe"):
        with pytest.raises(ModelError, match="cannot be read") as caught:
            read_safetensors(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": ((1,), torch.float32)}, "tensor c is missing"),
        ({"b": None}, "tensor b is not part of this model"),
        ({"a": ((3, 2), torch.float32)}, r"tensor a is .* \[2, 3\] instead of .* \[3, 2\]"),
        ({"b": ((1,), "float16")}, r"tensor b is float32 .* instead of float16"),
    ],
)
def test_differences_from_the_expected_tensors_are_named(
    tmp_path: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the data is read."""
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(1)}
    write_safetensors(tmp_path / "m", tensors)
    read_safetensors(tmp_path / "m", expected=layout(tensors))
    wanted = {**layout(tensors), **change}
    wanted = {name: each for name, each in wanted.items() if each is not None}
    monkeypatch.setattr(safetensors.torch, "load", None)
    with pytest.raises(ModelError, match=f"m: {message}"):
        read_safetensors(tmp_path / "m", expected=wanted)


def test_a_mapped_file_is_the_same_and_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
    write_safetensors(path, tensors)
    found = read_safetensors(path, mapped=True, expected=layout(tensors))
    write_safetensors(path, {"a": torch.zeros(2, 3), "b": torch.tensor([3, 4])})
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    found["a"][0] = 7.0  # in memory alone
    assert not read_safetensors(path)["a"].any()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError):
        read_safetensors(path, mapped=True)
    write_safetensors(path, {"a": torch.tensor([float("nan")])})
    with pytest.raises(ModelError, match="NaN"):
        read_safetensors(path, mapped=True)
