"""Our reader against our writer, against MindSpore's files, and against damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenlib.errors import Refused
from qwenlib.weights.checkpoint import CheckpointWriter
from qwenlib.weights.ckpt_read import read_table, value
from qwenlib.weights.tensors import Files


def write(path: Path, tensors: Any) -> Path:
    with CheckpointWriter(path) as out:
        for name, array in tensors.items():
            out.add(name, array)
    return path


def read(path: Path) -> Any:
    return {name: value(tensor) for name, tensor in read_table(path).items()}


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
KINDS = st.sampled_from(["float16", "float32", "float64", "int32", "int64", "int8", "uint8", "bool"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()),
        st.tuples(SHAPES, KINDS),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path: Path, plan: Any) -> None:
    draw = numpy.random.default_rng(0)
    tensors = {name: (draw.standard_normal(shape) * 50).astype(kind) for name, (shape, kind) in plan.items()}
    found = read(write(tmp_path / "x.ckpt", tensors))
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        same_shape = found[name].shape == array.shape or array.shape in ((), (0,))
        assert same_shape and found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()


def test_large_tensors_lie_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenlib.weights.checkpoint.SLICE_BYTES", 1000)
    array = numpy.arange(60 * 31, dtype=numpy.float32).reshape(60, 31)
    tensor = read_table(write(tmp_path / "x.ckpt", {"a": array, "b": array[:1]}))["a"]
    assert len(tensor.parts[0].extents) == 8
    with Files() as files:
        assert (files.rows(tensor, 17, 40)[0] == array[17:40]).all()
    assert (value(tensor) == array).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(raw)
    try:
        found = read_table(path)
    except Refused as error:
        assert str(path) in str(error)
    else:
        assert found


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_anywhere_inside_a_tensor_is_refused(tmp_path: Path, data: Any) -> None:
    tensors = {"model.a": numpy.ones((7, 5), numpy.float16), "model.b": numpy.ones(9, numpy.float32)}
    path = write(tmp_path / "x.ckpt", tensors)
    whole = path.read_bytes()
    first = len(write(tmp_path / "y.ckpt", {"model.a": tensors["model.a"]}).read_bytes())
    cut = data.draw(st.integers(0, len(whole) - 1).filter(lambda size: size != first))
    path.write_bytes(whole[:cut])
    with pytest.raises(Refused, match="byte"):
        read_table(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a.ckpt", {"a": numpy.ones(2), "b": numpy.ones(2)}).read_bytes()
    (tmp_path / "x.ckpt").write_bytes(one + one)
    with pytest.raises(Refused, match="a occurs twice"):
        read_table(tmp_path / "x.ckpt")


@pytest.mark.stack
def test_mindspore_files_are_read(tmp_path: Path) -> None:
    mindspore = pytest.importorskip("mindspore")
    tensors = {
        "half": numpy.arange(6, dtype=numpy.float16).reshape(2, 3),
        "single": numpy.arange(4, dtype=numpy.float32),
        "scalar": numpy.array(7, numpy.int32),
        "one": numpy.array([8], numpy.int64),
        "flag": numpy.array([True, False]),
    }
    rows: List[Any] = [{"name": name, "data": mindspore.Tensor(array)} for name, array in tensors.items()]
    rows.append({"name": "brain", "data": mindspore.Tensor([1.5, -2.25], mindspore.bfloat16)})
    for options in ({}, {"crc_check": True}):
        path = tmp_path / f"x{len(options)}.ckpt"
        mindspore.save_checkpoint(rows, str(path), **options)
        found = read(path)
        for name, array in tensors.items():
            assert found[name].shape == array.shape and (found[name] == array).all()
        table = read_table(path)
        assert table["brain"].kind == "bfloat16" and found["brain"].tolist() == [0x3FC0, 0xC010]


@pytest.mark.stack
def test_mindspore_reads_what_we_write(tmp_path: Path) -> None:
    mindspore = pytest.importorskip("mindspore")
    tensors = {"a.b": numpy.random.rand(3, 5).astype(numpy.float16), "c": numpy.random.rand(4).astype(numpy.float32)}
    found = mindspore.load_checkpoint(str(write(tmp_path / "x.ckpt", tensors)))
    assert list(found) == list(tensors)
    assert all((found[name].asnumpy() == array).all() for name, array in tensors.items())


@pytest.mark.stack
@pytest.mark.slow
def test_tensors_above_512_mib_go_both_ways(tmp_path: Path) -> None:
    mindspore = pytest.importorskip("mindspore")
    array = numpy.resize(numpy.arange(65521, dtype=numpy.uint16), (4200, 65536)).view(numpy.float16)  # 550 MB
    path = write(tmp_path / "ours.ckpt", {"big": array, "small": numpy.ones(3, numpy.float32)})
    found = mindspore.load_checkpoint(str(path))
    assert found["big"].asnumpy().tobytes() == array.tobytes()
    path.unlink()
    mindspore.save_checkpoint([{"name": "big", "data": found["big"]}], str(tmp_path / "theirs.ckpt"))
    del found
    tensor = read_table(tmp_path / "theirs.ckpt")["big"]
    assert len(tensor.parts[0].extents) == 2
    with Files() as files:
        for top in range(0, 4200, 700):
            assert files.rows(tensor, top, top + 700)[0].tobytes() == array[top : top + 700].tobytes()
