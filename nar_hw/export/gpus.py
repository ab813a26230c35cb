"""GPUs that an engine of TensorRT for RTX can be built for without having them: compute capabilities, and the cards of each.

Source: NVIDIA's list of CUDA GPUs (developer.nvidia.com/cuda-gpus), and the members of TensorRT for RTX 1.7's ComputeCapability.
"""

import difflib
import re
from collections.abc import Sequence

from nar_hw.errors import UnknownNameError

CARDS = {
    "sm75": "GTX 1630, GTX 1650, GTX 1660, RTX 2060, RTX 2070, RTX 2080, TITAN RTX, Quadro RTX 4000, Quadro RTX 5000, "
    "Quadro RTX 6000, Quadro RTX 8000, T4",
    "sm80": "A100, A30",
    "sm86": "RTX 3050, RTX 3060, RTX 3070, RTX 3080, RTX 3090, RTX A2000, RTX A4000, RTX A4500, RTX A5000, RTX A6000, A2, A10, "
    "A16, A40",
    "sm89": "RTX 4050, RTX 4060, RTX 4070, RTX 4080, RTX 4090, RTX 2000 Ada, RTX 4000 Ada, RTX 4500 Ada, RTX 5000 Ada, "
    "RTX 6000 Ada, L4, L20, L40, L40S",
    "sm120": "RTX 5050, RTX 5060, RTX 5070, RTX 5080, RTX 5090, RTX PRO 2000 Blackwell, RTX PRO 4000 Blackwell, "
    "RTX PRO 4500 Blackwell, RTX PRO 5000 Blackwell, RTX PRO 6000 Blackwell",
    "sm121": "GB10",
}
"""Compute capability -> its cards; their variants (Ti, SUPER, Laptop) are of the same one."""

ELSEWHERE = {
    "sm70": "V100, TITAN V",
    "sm87": "Jetson Orin",
    "sm90": "H100, H200, H800, H20, GH200",
    "sm100": "B100, B200, GB200",
    "sm103": "B300, GB300",
    "sm110": "Jetson Thor",
}
"""The same for GPUs that TensorRT for RTX does not have: TensorRT 10 or 11 builds for them, on one of them."""


def number(capability: str) -> str:
    """ "8.9" for "sm89"."""
    return f"{capability[2:-1]}.{capability[-1]}"


def capabilities(gpus: Sequence[str], precision: str) -> tuple[str, ...]:
    """What is meant by names of capabilities ("sm89"), of cards ("RTX 4090") or "all", in the order of `CARDS`.

    "all" has Turing (sm75) in fp16 only: there TensorRT for RTX has no bf16 and no matrix products in fp32, which the ends of
    int8 networks need too. In fp8 it has the GPUs that compute in it, from Ada (sm89) on.

    Raises UnknownNameError in one line for other names, and for GPUs that TensorRT for RTX does not have.
    """
    found: set[str] = set()
    for name in gpus:
        found |= {key for key in CARDS if _computes(key, precision)} if name == "all" else {_capability(name)}
    if not found:
        raise UnknownNameError(f"there must be at least one GPU to build for: use some of {', '.join(CARDS)}, or all")
    return tuple(key for key in CARDS if key in found)


def _computes(capability: str, precision: str) -> bool:
    if precision == "fp8":
        return int(capability[2:]) >= 89
    return capability != "sm75" or precision == "fp16"


def _capability(name: str) -> str:
    known = {_short(key): key for key in (*CARDS, *ELSEWHERE)}
    known |= {_short(number(key)): key for key in (*CARDS, *ELSEWHERE)}
    known |= {_short(card): key for key, cards in {**CARDS, **ELSEWHERE}.items() for card in cards.split(", ")}
    capability = known.get(_short(name))
    if capability in CARDS:
        return capability
    if capability is not None:
        raise UnknownNameError(
            f"{name} is a GPU of {capability}, but TensorRT for RTX has {', '.join(CARDS)}: use --to tensorrt on such a GPU"
        )
    spelled = {_short(card): f"{card} ({key})" for key, cards in CARDS.items() for card in cards.split(", ")}
    spelled |= {key: key for key in CARDS}
    near = [spelled[match] for match in difflib.get_close_matches(_short(name), spelled, n=4, cutoff=0.6)] or list(CARDS)
    raise UnknownNameError(f"unknown GPU {name!r}: use one of {', '.join(near)}, or all")


def _short(name: str) -> str:
    """A name as people may write it, without its maker, its variant and its spaces: "rtx4090" for "GeForce RTX 4090 Ti"."""
    words = re.sub(r"nvidia|geforce|laptop|gpu|mobile|super|max-q|generation|(?<=\d)\s*ti\b", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)
