"""Compiled kernels for decoding on the CPU, where a C compiler is at hand.

The source next to this file is compiled once for the machine's instruction set (about a
second) and kept in the user's cache folder. Without a compiler, when compilation fails,
when the result disagrees with torch on a small example, or with ``AGENT_R1_NATIVE=0``,
the engine computes the same with torch operations.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-ffinite-math-only",
    "-funroll-loops",
    "-shared",
    "-fPIC",
)
_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_LARGEST_HEAD = 512


class Native:
    """The kernels, on contiguous float32 tensors in main memory. See the C source."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._attend = library.agent_r1_attend
        self._attend.argtypes = [_P] * 12 + [_I] * 7 + [_F, _F, ctypes.c_int]
        self._add_norm = library.agent_r1_add_norm
        self._add_norm.argtypes = [_P] * 4 + [_I, _I, _F, ctypes.c_int]
        self._silu_mul = library.agent_r1_silu_mul
        self._silu_mul.argtypes = [_P, _P, _I, ctypes.c_int]
        for function in (self._attend, self._add_norm, self._silu_mul):
            function.restype = None

    @staticmethod
    def fits(query: Tensor, value: Tensor) -> bool:
        """Whether :meth:`attend` computes heads of this type and size."""
        dim = query.shape[-1]
        return (
            query.dtype == torch.float32
            and query.device.type == "cpu"
            and dim == value.shape[-1]
            and dim % 2 == 0
            and dim <= _LARGEST_HEAD
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        positions: Tensor,
        attending: int,
        scale: float,
        window: int | None = None,
        norms: tuple[Tensor, Tensor, float] | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Normalise and rotate heads where asked, store ``key``/``value``, attend.

        ``query[T, H, D]`` is overwritten by its normalised and rotated form. Returns
        ``[T, H, D]``, of which the first ``attending`` tokens are computed.
        """
        tokens, heads, dim = query.shape
        out = torch.empty_like(query)
        q_weight, k_weight, eps = norms or (None, None, 0.0)
        cos, sin = angles or (None, None)
        self._attend(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            _pointer(q_weight),
            _pointer(k_weight),
            _pointer(cos),
            _pointer(sin),
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
            positions.data_ptr(),
            out.data_ptr(),
            tokens,
            attending,
            heads,
            keys.shape[1],
            dim,
            keys.shape[2],
            window or 0,
            scale,
            eps,
            torch.get_num_threads(),
        )
        return out

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add ``delta`` to ``hidden[T, D]`` in place; its normalised form."""
        out = torch.empty_like(hidden)
        rows, dim = hidden.shape
        self._add_norm(
            hidden.data_ptr(),
            _pointer(delta),
            weight.data_ptr(),
            out.data_ptr(),
            rows,
            dim,
            eps,
            torch.get_num_threads(),
        )
        return out

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up`` in the memory of ``gate``."""
        self._silu_mul(gate.data_ptr(), up.data_ptr(), gate.numel(), torch.get_num_threads())
        return gate


@functools.cache
def load_native() -> Native | None:
    """The kernels, compiled on first use; None where that is not possible."""
    if os.environ.get("AGENT_R1_NATIVE", "1") == "0":
        return None
    try:
        native = Native(ctypes.CDLL(str(_library())))
        _verify(native)
    except (OSError, subprocess.SubprocessError, AttributeError, ArithmeticError) as error:
        _LOG.info("decoding with torch operations, native kernels are unavailable: %s", error)
        return None
    return native


def _library() -> Path:
    """Path of the compiled library, built unless it is there."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise OSError("no C compiler (cc, gcc or $CC)")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-r1"
    identity = repr((_SOURCE.read_bytes(), _FLAGS, compiler, _processor()))
    path = folder / f"decode-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / path.name
        command = [compiler, *_FLAGS, "-o", str(built), str(_SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        built.replace(path)
    return path


def _processor() -> str:
    """What the instruction set depends on: a cache folder may be shared between machines."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text().splitlines()
    return "\n".join(sorted({x for x in lines if x.startswith(("model name", "flags"))}))


def _verify(native: Native) -> None:
    """Compare with torch on a small example; raises ``ArithmeticError``."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    keys, values = random(2, 2, 8, 32), random(2, 2, 8, 32)
    query, key, value = random(2, 4, 32), random(2, 2, 32), random(2, 2, 32)
    slots, positions = torch.tensor([1, 0]), torch.tensor([6, 3])
    got = native.attend(query, key, value, keys, values, slots, positions, 2, 0.2)
    for row, (slot, position) in enumerate(zip([1, 0], [6, 3], strict=True)):
        seen = slice(0, position + 1)
        expected = F.scaled_dot_product_attention(
            query[row][:, None], keys[slot, :, seen], values[slot, :, seen],
            scale=0.2, enable_gqa=True,
        )  # fmt: skip
        if not torch.allclose(got[row], expected[:, 0], atol=1e-5):
            raise ArithmeticError("the compiled attention disagrees with torch")
    gate, up = random(100), random(100)
    expected = F.silu(gate) * up
    if not torch.allclose(native.silu_mul(gate, up), expected, atol=1e-5):
        raise ArithmeticError("the compiled activation disagrees with torch")


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
