"""Strategies for files that were damaged or made up: they start from sound ones, random bytes get nowhere."""

import gzip
import io
import json
import math
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from hypothesis import strategies as st

HUGE = [0, 1, 2**7, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
COUNTS = st.one_of(st.integers(-2, 9), st.sampled_from([*HUGE, -(2**31), -(2**63)]))


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """The content with up to four edits: bits, counts, cuts, splices; or any bytes at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    new = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(new) - 1, 0)))
        kind = draw(st.sampled_from(["bit", "byte", "count", "cut", "remove", "insert", "splice"]))
        if kind == "bit" and new:
            new[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and new:
            new[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, *b"019aAn-[{\"',.\n"]))
        elif kind == "count":
            width, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            value = draw(st.sampled_from(HUGE)) % 256**width
            new[place : place + width] = value.to_bytes(width, order)
        elif kind == "cut":
            del new[place:]
        elif kind == "remove":
            del new[place : place + draw(st.integers(1, 60))]
        elif kind == "insert":
            new[place:place] = draw(st.binary(min_size=1, max_size=20))
        else:
            start = draw(st.integers(0, max(len(content) - 1, 0)))
            new[place:place] = content[start : start + draw(st.integers(1, 400))]
    return bytes(new)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    COUNTS,
    st.floats(),
    st.text(max_size=6),
    st.sampled_from([10**30, "../x", "nan", "\n"]),
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3), max_leaves=5
)


@st.composite
def changed(draw, value):
    """What JSON has (lists, dictionaries, scalars) with a part replaced, removed, added or wrapped in itself."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if (kind := draw(st.integers(0, 11))) == 0:
            return {name: part for name, part in value.items() if name != key}
        if kind == 1:
            return value | {draw(st.text(max_size=5)): value[key]}
        return value | {key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        if (kind := draw(st.integers(0, 7))) == 0:
            return value[:place] + value[place + 1 :]
        if kind == 1:
            return value[: place + 1] + value[place:]
        return [*value[:place], draw(changed(value[place])), *value[place + 1 :]]
    if isinstance(value, int) and draw(st.booleans()):
        return draw(COUNTS)
    return draw(st.one_of(VALUES, st.just([value]), st.just({"layers": value, "type": "Sequential"})))


NESTED = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b"1" * 5000, b"1e999", b"NaN", b"\xff\xfe"]


def json_bytes(value) -> st.SearchStrategy[bytes]:
    """JSON that was changed, damaged, or is nested without an end."""
    sound = json.dumps(value).encode()
    made_up = changed(value).map(lambda new: json.dumps(new).encode())
    return st.one_of(made_up, made_up, damaged(sound), st.sampled_from(NESTED))


ARRAYS = st.builds(
    lambda shape, dtype, value: np.full(shape, value % 100).astype(dtype),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(["f4", "f8", "u1", "u2", "i4", "i8", "bool"]),
    st.integers(0, 99),
)


@st.composite
def changed_array(draw, array: np.ndarray) -> np.ndarray:
    """Of another value somewhere, another dtype, another shape, shorter, or another array."""
    kind = draw(st.integers(0, 5))
    if kind == 0 or array.size == 0:
        return draw(ARRAYS)
    if kind == 1:
        return array.astype(draw(st.sampled_from(["f4", "f8", "u2", "i4", "i8", "bool"])))
    if kind == 2:
        return array[: draw(st.integers(0, len(array)))] if array.ndim else array.reshape(1)
    if kind == 3:
        return array.reshape(draw(st.sampled_from([(-1,), (1, -1), (-1, 1), array.T.shape])))
    array = array.copy()
    place = draw(st.integers(0, array.size - 1))
    special = [0, 1, 7, 100] if array.dtype.kind in "iub" else [0.0, -1.0, 1e30, math.inf, math.nan]
    array.reshape(-1)[place] = draw(st.sampled_from(special))
    return array


@st.composite
def changed_arrays(draw, arrays: dict[str, np.ndarray], json_name: str, about) -> dict[str, np.ndarray]:
    """Arrays by name, of which some are changed, gone or new; the JSON in one of them too."""
    new = dict(arrays)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(arrays)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            new.pop(name, None)
        elif kind == 1:
            new[draw(st.sampled_from(["", "extra.", f"{name}x", f"extra.{name}", "extra.optimizer.x.y"]))] = (
                new.get(name, arrays[name])
            )
        else:
            new[name] = draw(changed_array(arrays[name]))
    if json_name and draw(st.integers(0, 3)):
        new[json_name] = np.frombuffer(draw(json_bytes(about)), dtype=np.uint8)
    return new


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@st.composite
def idx_headers(draw) -> bytes:
    """A header of any numbers, and some values."""
    sizes = draw(st.lists(st.sampled_from([s for s in HUGE if s < 2**32]) | st.integers(0, 9), max_size=18))
    n_dimensions = draw(st.just(len(sizes)) | st.integers(0, 255))
    kind = draw(st.sampled_from([8, 8, 8, 9, 13]))
    return struct.pack(f">HBB{len(sizes)}I", 0, kind, n_dimensions, *sizes) + draw(st.binary(max_size=100))


NAMES = [
    "x.npy",
    "y.npy",
    "x",
    "y",
    "x_test.npy",
    "class_names.npy",
    "../x.npy",
    "/y.npy",
    "a/../x.npy",
    "x.npy.npy",
]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
SHAPES = [
    "(6, 4)",
    "(6,)",
    "(24,)",
    "()",
    "(0,)",
    "(-1, 4)",
    "(6, 4, 1)",
    "(2**40,)",
    f"({2**40},)",
    "6",
    "(6, 4.0)",
]
SHAPES += [f"({2**62}, {2**62})", "(" * 200, "[6, 4]", "'a'", "(True,)"]
DTYPES = [
    "'<f4'",
    "'<f8'",
    "'|u1'",
    "'<i8'",
    "'|O'",
    "'<U4'",
    "'|S0'",
    "'|V2147483647'",
    "'<U500000000'",
    "'<M8[s]'",
]
DTYPES += ["[('a', '<f4')]", "'<f16'", "'<c8'", "3", "'" + "(" * 99 + "'"]


@st.composite
def npy(draw) -> bytes:
    """A .npy file with any header, or a sound one, damaged or not."""
    if draw(st.integers(0, 2)) == 0:
        stream = io.BytesIO()
        np.save(stream, draw(ARRAYS))
        return draw(st.one_of(st.just(stream.getvalue()), damaged(stream.getvalue())))
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    order = draw(st.sampled_from(["False", "True", "2"]))
    header = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode() + b"\n"
    version = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    length = draw(st.sampled_from([len(header), len(header), len(header), 0, 1, 65535]))
    packed = struct.pack("<H" if version == 1 else "<I", length)
    return (
        b"\x93NUMPY" + bytes([version, 0]) + packed + header + draw(st.sampled_from([b"", bytes(24), bytes(96)]))
    )


@st.composite
def npz(draw) -> bytes:
    """A zip archive of such members, by any name and more than once."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for _ in range(draw(st.integers(0, 4))):
            content = draw(st.one_of(npy(), npy(), st.binary(max_size=30)))
            if draw(st.integers(0, 9)) == 0:
                content = stream.getvalue() + b"PK\5\6" + bytes(18)  # an archive in the archive
            info = zipfile.ZipInfo(draw(st.sampled_from(NAMES)))
            info.external_attr = draw(st.sampled_from([0, 0o120777 << 16]))  # a symbolic link
            if info.filename not in archive.namelist() or draw(st.booleans()):
                _write(archive, info, content, draw(st.sampled_from(METHODS)))
    return draw(st.one_of(st.just(stream.getvalue()), damaged(stream.getvalue())))


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes, method: int) -> None:
    archive.NameToInfo.pop(info.filename, None)  # so that it says nothing of a second one of that name
    archive.writestr(info, content, compress_type=method)


KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
KINDS += [
    tarfile.FIFOTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_SPARSE,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    b"Z",
]
PAX = [
    b"30 GNU.sparse.realsize=99999999\n",
    b"22 GNU.sparse.major=1\n",
    b"19 size=9999999999\n",
    b"9" * 2000,
    b"0 a=b\n",
]


@st.composite
def tar_members(draw, files: dict[str, bytes]) -> bytes:
    """The members of a tar archive: those of `files`, some with another header or another content, and others."""
    parts = []
    for name, content in files.items():
        if draw(st.integers(0, 7)) == 0:
            extra = draw(st.sampled_from(["../../evil", "/etc/evil", "a/../" + name, name, "x" * 99]))
            parts.append(_member(draw, extra, draw(st.sampled_from([b"", *PAX, content]))))
        kind = draw(st.integers(0, 11))
        if kind == 0:
            continue  # it is missing
        sound = kind > 3
        parts.append(_sound_member(name, content) if sound else _member(draw, name, draw(damaged(content))))
    return b"".join(parts) + draw(st.sampled_from([bytes(1024), b"", bytes(512), b"x" * 512]))


def _sound_member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf() + content + bytes(-len(content) % 512)


def _member(draw, name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = draw(st.sampled_from(KINDS))
    info.linkname = draw(st.sampled_from(["", "/etc/passwd", name]))
    info.size = draw(
        st.one_of(st.just(len(content)), st.integers(0, 2000), st.sampled_from([2**28, 2**33, 2**62]))
    )
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if draw(st.integers(0, 3)) == 0:
        header[124:136] = draw(
            st.sampled_from([b"\xff" * 12, b"-0000000001\0", b"\x80" + b"\xff" * 11, b"x" * 12])
        )
        checksum = 256 + sum(header[:148]) + sum(header[156:512])
        header[148:156] = b"%06o\0 " % checksum
    return bytes(header) + content + bytes(-len(content) % 512)


def packed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=1, mtime=0)


OPERATIONS = [
    b"(",
    b".",
    b"0",
    b"1",
    b"2",
    b"}",
    b"]",
    b")",
    b"N",
    b"\x88",
    b"\x89",
    b"R",
    b"b",
    b"a",
    b"e",
    b"s",
    b"u",
]
OPERATIONS += [
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"h\x00",
    b"q\x00",
    b"j\0\0\0\0",
    b"r\xff\xff\xff\x0f",
    b"r\0\0\0\0",
]
OPERATIONS += [
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cos\nmkdir\n",
]
OPERATIONS += [
    b"cbuiltins\nexec\n",
    b"ios\nmkdir\n",
    b"\x93",
    b"\x81",
    b"o",
    b"P0\n",
    b"Q",
    b"\x82\1",
    b"\x84\1\0\0\0",
]
OPERATIONS += [
    b"U\4data",
    b"U\6labels",
    b"U\x08executed",
    b"K\1",
    b"M\0\x0c",
    b"J\xff\xff\xff\x7f",
    b"T\xff\xff\xff\x7f",
]
OPERATIONS += [b"T\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"\x8a\1\1", b"X\4\0\0\0data", b"B\xff\xff\xff\xff"]
OPERATIONS += [
    b"\x96" + b"\xff\xff\xff\x3f" + bytes(4),
    b"\x95" + b"\xff" * 8,
    b"\x94",
    b"I1\n",
    b"L1L\n",
    b"S'a'\n",
]
OPERATIONS += [pickle.dumps([1], protocol=5), b"\x80\2", b"\x80\5"]
PROGRAMS = st.lists(st.sampled_from(OPERATIONS), max_size=30).map(b"".join)


@st.composite
def pickles(draw, content: bytes) -> bytes:
    """A sound pickle, damaged or with operations put in, or a program of operations alone."""
    if draw(st.integers(0, 2)) == 0:
        return b"\x80\2" + draw(PROGRAMS) + draw(st.sampled_from([b"", b"."]))
    place = draw(st.integers(0, 260)) if draw(st.booleans()) else draw(st.integers(0, len(content)))
    return draw(st.one_of(damaged(content), PROGRAMS.map(lambda p: content[:place] + p + content[place:])))


TOML_VALUES = [
    "1",
    "-1",
    "0",
    "true",
    '"x"',
    '"../x"',
    '"\\u0000"',
    "[]",
    "[1, 2]",
    '["a"]',
    "{a = 1}",
    "inf",
    "nan",
]
TOML_VALUES += [
    "9" * 30,
    "0x" + "f" * 20,
    "0x" + "f" * 5000,
    "9" * 5000,
    "1e400",
    "2020-01-01",
    "00:00:00",
    "[" * 3000,
]
TOML_VALUES += [
    "1_000",
    "[[[[1]]]]",
    '"1,2"',
    '"' + "9" * 5000 + '"',
    "'''\n'''",
    "0.5",
    "[true]",
    "[-1]",
    "[9e99]",
    "",
]


def toml_files(names: list[str], sound: bytes) -> st.SearchStrategy[bytes]:
    """Settings of any values, some of them unknown, or a sound file that is damaged."""
    keys = st.sampled_from([*names, *names, "seeds", '"a\\nb"', "a.b", "[a]", "[[a]]", "é", "", "#"])
    line = st.builds(lambda key, value: f"{key} = {value}", keys, st.sampled_from(TOML_VALUES))
    made_up = st.lists(line, max_size=3).map(lambda lines: "\n".join(lines).encode())
    return st.one_of(made_up, made_up, damaged(sound))


CELLS = [
    "",
    "1",
    "-1",
    "nan",
    "inf",
    "1e999",
    "x",
    "é",
    '"',
    '"a\nb"',
    "1,2",
    "\0",
    "9" * 5000,
    "0x1",
    "1_0",
    "a" * 140_000,
]


@st.composite
def csv_files(draw, sound: bytes) -> bytes:
    """A sound table that is damaged, or with other cells."""
    rows = [line.split(b",") for line in sound.splitlines()]
    if draw(st.booleans()):
        return draw(damaged(sound))
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        if row:
            row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(CELLS)).encode()
        if draw(st.integers(0, 5)) == 0:
            row.append(b"1")
    return b"\n".join(b",".join(row) for row in rows)
