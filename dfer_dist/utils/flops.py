"""How much of a GPU's peak a model uses: model FLOPs utilisation (MFU), as Chowdhery et al. define it ("PaLM", JMLR 24, 2023, appendix B)."""

from __future__ import annotations

import re

# Dense bf16 TFLOP/s with float32 accumulation, from NVIDIA's data sheets (those with sparsity halved; the RTX 4090 from the Ada whitepaper),
# by the whole name that the driver gives: variants of a chip (A10G, H100 NVL, H20, a MIG slice) have other peaks. A V100 has no bf16.
_PEAKS = {
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": 312.0,
    r"H100 80GB HBM3": 989.0,
    r"H100 PCIe": 756.0,
    r"H200": 989.0,
    r"L40S": 362.0,
    r"A10": 125.0,
    r"GeForce RTX 4090": 165.0,
}


def peak_flops(name: str) -> float | None:
    """Published dense bf16 operations a second of the GPU that torch calls ``name``; None if it is not known here."""
    own = name.removeprefix("NVIDIA ")
    return next(
        (1e12 * peak for pattern, peak in _PEAKS.items() if re.fullmatch(pattern, own)), None
    )


def mfu(flops: float, seconds: float, name: str) -> float | None:
    """The share of the bf16 peak of the GPU ``name`` that ``flops`` operations in ``seconds`` are; None if its peak is not known.

    Parameters
    ----------
    flops : float
        The model's own operations, a multiplication and an addition being two; what is computed twice to save memory counts once.
    """
    peak = peak_flops(name)
    return None if peak is None else flops / seconds / peak
