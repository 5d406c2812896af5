"""What processors can do, as their vendors say it, and what they might cost.

Peaks are of dense bfloat16 matrix products; NVIDIA's pages print them with sparsity, twice as high, for H100 and L4.
- H100 SXM, 80 GB: https://www.nvidia.com/en-us/data-center/h100/ (1,979 TFLOPS with sparsity, 3.35 TB/s)
- A100 SXM, 80 GB: https://www.nvidia.com/en-us/data-center/a100/ (312 TFLOPS, 2,039 GB/s)
- L4, 24 GB: https://www.nvidia.com/en-us/data-center/l4/ (242 TFLOPS with sparsity, 300 GB/s)
- cpu, one core in float32: two 256-bit fused multiply-adds a cycle (AVX2) at 3 GHz are 96 GFLOPS; one channel of
  DDR4-3200 moves 25.6 GB/s. An example: what yours reaches, `benchmarks/train.py` measures.

Prices are examples to be replaced: they follow no offer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """peak: operations a second; memory: bytes; bandwidth: bytes a second; activation: bytes of an activation."""

    title: str
    peak: float
    memory: float
    bandwidth: float
    activation: int
    price_per_hour: float


DEVICES = {
    "h100": Device("H100 SXM 80 GB, bfloat16", 989.5e12, 80e9, 3.35e12, 2, 3.00),
    "a100": Device("A100 SXM 80 GB, bfloat16", 312e12, 80e9, 2.039e12, 2, 2.00),
    "l4": Device("L4 24 GB, bfloat16", 121e12, 24e9, 0.3e12, 2, 0.80),
    "cpu": Device("one core with AVX2 at 3 GHz and 8 GB, float32", 96e9, 8e9, 25.6e9, 4, 0.05),
}
