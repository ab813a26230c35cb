"""InsightFace's verification sets (lfw.bin, cfp_fp.bin, agedb_30.bin): a pickle of (encoded images, flags), never unpickled.

A pickle is a program. This interpreter makes lists, tuples, bytes, booleans and texts: it looks nothing up and calls nothing,
and refuses what would. Some sets hold each encoded image as a numpy array of bytes; where a program would make one, by the names
in ARRAYS and no others, the bytes are taken and all else about the array is a text that nobody reads.
"""

import pickletools
from pathlib import Path
from typing import Any

from nar_hw.errors import DataError

IGNORED = frozenset({"PROTO", "FRAME"})
BYTES = frozenset({"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"})
OLD_TEXT = frozenset({"BINSTRING", "SHORT_BINSTRING"})
"""Bytes as Python 2 wrote them."""
TEXTS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "NONE"})
"""Shapes, types and names of arrays."""
FLAGS = {"NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
CORES = ("numpy.core", "numpy._core")
FROM_BYTES = frozenset(f"{core}.numeric _frombuffer" for core in CORES)
ARRAYS = FROM_BYTES | {"numpy ndarray", "numpy dtype"} | {f"{core}.multiarray _reconstruct" for core in CORES}
"""Modules and names in the pickle of a numpy array."""


def read_bin(path: Path) -> tuple[list[bytes], list[bool]]:
    """Encoded images, two for each pair, and whether each pair is of one person.

    Raises:
        DataError: the file is absent, is not such a pickle, or would make anything but data.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"verification set {path} does not exist") from None
    try:
        value = _run(content, path)
    except DataError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as problem:
        raise DataError(f"verification set {path} is not a whole pickle ({type(problem).__name__}): download it again") from None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(part, list | tuple) for part in value):
        raise DataError(f"verification set {path} must hold a list of images and a list of flags, but does not")
    images, flags = value
    wrong = sum(not isinstance(image, bytes) for image in images) + sum(not isinstance(flag, bool) for flag in flags)
    if wrong or len(images) != 2 * len(flags):
        raise DataError(
            f"verification set {path} must hold two encoded images for each flag, but has {len(images):,} images and "
            f"{len(flags):,} flags, {wrong:,} of them of another kind"
        )
    return list(images), list(flags)


def _run(content: bytes, path: Path) -> Any:
    """What the program makes. Raises DataError for an instruction that makes something else than data."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, place in pickletools.genops(content):
        name = opcode.name
        if name in BYTES:
            stack.append(bytes(argument or b""))
        elif name in TEXTS or (name == "GLOBAL" and argument in ARRAYS):
            stack.append(str(argument))
        elif name == "STACK_GLOBAL" and (named := " ".join(stack[-2:])) in ARRAYS:
            stack[-2:] = [named]
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(arguments[0] if called in FROM_BYTES else "")
        elif name == "BUILD":
            last = stack.pop()[-1]
            stack[-1] = last if isinstance(last, bytes) else ""
        elif name in OLD_TEXT:
            stack.append(str(argument).encode("latin-1"))
        elif name in FLAGS:
            stack.append(FLAGS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name == "LIST":
            stack.append(above_mark())
        elif name == "APPENDS":
            items = above_mark()
            _list(stack).extend(items)
        elif name == "APPEND":
            item = stack.pop()
            _list(stack).append(item)
        elif name in PUTS:
            memo[int(argument or 0)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in GETS:
            stack.append(memo[int(argument or 0)])
        elif name == "STOP":
            return stack.pop()
        elif name not in IGNORED:
            raise DataError(
                f"verification set {path} must hold nothing but lists, bytes and flags, but its instruction {name} at byte "
                f"{place} would make something else: do not open it with pickle"
            )
    raise ValueError("no end")


def _list(stack: list[Any]) -> list[Any]:
    if not isinstance(stack[-1], list):
        raise TypeError("not a list")
    return stack[-1]
