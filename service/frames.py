"""What crosses a process boundary: frames of a 4-byte little-endian length and msgpack, with numpy arrays; no pickle.

The price against shared memory: an array is copied twice on each side, some 10 ms per 50 MB.
"""

import struct
from typing import Any

import msgpack
import numpy as np

from service.errors import InvalidInputError

LENGTH = struct.Struct("<I")
_ARRAY = 1  # msgpack ext type: packed [dtype, shape, bytes]


def pack(message: Any) -> bytes:
    """A frame of None, booleans, numbers, strings, bytes, lists, dicts and numpy arrays of plain numbers.

    Raises:
        InvalidInputError: a lone surrogate, an integer beyond 64 bits, nesting beyond 1,000 levels, over 4 GiB.
        TypeError: a value of another type.
    """
    try:
        # the packer goes one level deeper than the unpacker: pack inside one more list and leave its first byte out
        body = memoryview(msgpack.packb([message], default=_pack_numpy))[1:]
        return b"".join((LENGTH.pack(len(body)), body))
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"a lone surrogate at character {error.start} is not text; remove it") from error
    except (OverflowError, ValueError, struct.error) as error:
        raise InvalidInputError(f"a value is beyond what can be stored: {error}") from error


def unpack(body: bytes) -> Any:
    """The message of a frame without its length. Tuples arrive as lists, arrays as fresh writable arrays."""
    return msgpack.unpackb(body, ext_hook=_unpack_numpy, strict_map_key=False)


def _pack_numpy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return msgpack.ExtType(_ARRAY, msgpack.packb([value.dtype.str, value.shape, value.tobytes()]))
    if isinstance(value, int):  # msgpack asks here what to do with an integer beyond 64 bits
        raise OverflowError(f"an integer of {value.bit_length()} bits; the limit is 64")
    raise TypeError(f"{type(value).__name__} cannot be carried to another process")


def _unpack_numpy(kind: int, data: bytes) -> Any:
    if kind != _ARRAY:
        raise ValueError(f"unknown ext type {kind}")
    dtype, shape, values = msgpack.unpackb(data)
    return np.frombuffer(values, dtype=dtype).reshape(shape).copy()
