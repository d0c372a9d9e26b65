"""What to compute on, in which precision, and how memory is used again."""

import ctypes
from contextlib import suppress

import torch

from knnlm.errors import InputError


def reuse_memory() -> None:
    """Keep freed memory for the next batch instead of giving it back to the system.

    A batch needs the same large arrays as the one before it. Asking the system for fresh pages
    each time took a quarter of the time of training. Only the GNU C library can be told so.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter, size in ((-3, 1 << 28), (-1, 1 << 30), (-2, 1 << 26)):
            libc.mallopt(parameter, size)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to compute on: with ``"auto"`` a GPU where there is one."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(str(device).split(":")[0], False):
        raise InputError(f"There is no device {device!r} here. Use auto, or cpu.")
    return torch.device(device)


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type to multiply in: with ``"auto"`` bfloat16 where the hardware does, or float32.

    bfloat16 is several times faster on processors with AMX, and hundreds of times slower on
    processors that only imitate it.
    """
    if precision != "auto":
        if precision not in PRECISIONS:
            raise InputError(
                f"There is no precision {precision!r}. Use auto, {', '.join(PRECISIONS)}."
            )
        return PRECISIONS[precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = any(
            getattr(torch.cpu, probe, bool)()
            for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
