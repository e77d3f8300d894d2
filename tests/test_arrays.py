"""Arrays in files: written by us, read by the safetensors library, with a digest in between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load_file, save_file

from sparsekit import InputError
from sparsekit.training.arrays import digest, read_arrays, write_arrays

DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8", ">f4", ">u2"]
SHAPES = arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)
ARRAYS = arrays_of.arrays(st.sampled_from(DTYPES).map(np.dtype), SHAPES)


@given(arrays=st.dictionaries(st.text(min_size=1).filter(lambda name: name != "__metadata__"), ARRAYS))
def test_what_is_written_is_read(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    write_arrays(path, "model-1", arrays)
    for found in (read_arrays(path, "model-1"), load_file(path)):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].shape == array.shape
            assert found[name].dtype == array.dtype.newbyteorder("=")
            assert found[name].tobytes() == array.astype(found[name].dtype).tobytes()  # NaN is equal to itself
    again = path.with_name("b.safetensors")
    write_arrays(again, "model-1", dict(reversed(arrays.items())))
    assert again.read_bytes() == path.read_bytes()


def test_arrays_need_not_be_contiguous(tmp_path):
    arrays = {"a": np.arange(24.0).reshape(4, 6).T, "b": np.arange(10, dtype=np.int32)[::3]}
    write_arrays(tmp_path / "a.safetensors", "model-1", arrays)
    for name, array in read_arrays(tmp_path / "a.safetensors", "model-1").items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.flags.writeable


def test_the_digest_sees_names_dtypes_and_shapes():
    a = np.arange(6, dtype=np.int32)
    same = digest({"a": a, "b": a})
    assert same == digest({"b": a, "a": a.copy()})
    for other in ({"a": a}, {"a": a, "c": a}, {"a": a, "b": a.view(np.float32)}, {"a": a, "b": a.reshape(2, 3)}):
        assert digest(other) != same


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for metadata in (None, {"format": "pt"}, {"sparsekit": "model-0 abc"}):
        save_file({"a": np.zeros(3)}, path, metadata=metadata)
        with pytest.raises(
            InputError, match=r"a.safetensors is not a model of this version of sparsekit: format '.*'"
        ):
            read_arrays(path, "model-1")
    save_file({"a": np.zeros(3)}, path, metadata={"sparsekit": "model-1 abc"})
    with pytest.raises(InputError, match=r"a.safetensors is damaged: its contents do not match its digest"):
        read_arrays(path, "model-1")
