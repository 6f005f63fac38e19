"""NVIDIA cards: what the driver reports and what they can do.

memory_mib is nvidia-smi's memory.total, as its output on such cards is printed in many places (in
public issues and logs; ECC, where it is on, takes a sixteenth of GDDR memory); bandwidth is from
the makers' data sheets, compute capability from developer.nvidia.com/cuda-gpus. A card's own
facts, when a host reports them, go before this table.
"""

from __future__ import annotations

import re

# name as nvidia-smi prints it, without "NVIDIA ": memory_mib, bandwidth GB/s, compute capability
CARDS = {
    # data centres
    "B200": (183359, 8000, 10.0),
    "GH200 480GB": (97871, 4000, 9.0),
    "H200": (143771, 4800, 9.0),
    "H200 NVL": (143771, 4800, 9.0),
    "H20-3e": (143771, 4800, 9.0),
    "H20": (97871, 4000, 9.0),
    "H100 NVL": (95830, 3900, 9.0),
    "H100 80GB HBM3": (81559, 3350, 9.0),
    "H100 PCIe": (81559, 2039, 9.0),
    "H800": (81559, 3350, 9.0),
    "H800 PCIe": (81559, 2039, 9.0),
    "A100-SXM4-80GB": (81920, 2039, 8.0),
    "A100 80GB PCIe": (81920, 1935, 8.0),
    "A800-SXM4-80GB": (81920, 2039, 8.0),
    "A800 80GB PCIe": (81920, 1935, 8.0),
    "A100-SXM4-40GB": (40960, 1555, 8.0),
    "A100-PCIE-40GB": (40960, 1555, 8.0),
    "A30": (24576, 933, 8.0),
    "L40S": (46068, 864, 8.9),
    "L40": (46068, 864, 8.9),
    "L20": (46068, 864, 8.9),
    "L4": (23034, 300, 8.9),
    "A40": (46068, 696, 8.6),
    "A10": (23028, 600, 8.6),
    "A10G": (23028, 600, 8.6),
    "A16": (15356, 200, 8.6),  # each of its four GPUs
    "A2": (15356, 200, 8.6),
    "Tesla T4": (15360, 320, 7.5),
    "Tesla V100-SXM2-32GB": (32768, 900, 7.0),
    "Tesla V100-SXM2-16GB": (16384, 900, 7.0),
    "Tesla V100-PCIE-32GB": (32768, 900, 7.0),
    "Tesla V100-PCIE-16GB": (16384, 900, 7.0),
    "Tesla V100S-PCIE-32GB": (32768, 1134, 7.0),
    "Tesla P100-SXM2-16GB": (16384, 732, 6.0),
    "Tesla P100-PCIE-16GB": (16384, 732, 6.0),
    "Tesla P100-PCIE-12GB": (12288, 549, 6.0),
    "Tesla P40": (23040, 346, 6.1),
    # workstations
    "RTX PRO 6000 Blackwell Workstation Edition": (97887, 1792, 12.0),
    "RTX PRO 6000 Blackwell Max-Q Workstation Edition": (97887, 1792, 12.0),
    "RTX PRO 6000 Blackwell Server Edition": (97887, 1597, 12.0),
    "RTX 6000 Ada Generation": (49140, 960, 8.9),
    "RTX 5000 Ada Generation": (32760, 576, 8.9),
    "RTX 4000 Ada Generation": (20475, 360, 8.9),
    "RTX A6000": (49140, 768, 8.6),
    "RTX A5000": (24564, 768, 8.6),
    "RTX A4500": (20470, 640, 8.6),
    "RTX A4000": (16376, 448, 8.6),
    # desktops
    "GeForce RTX 5090": (32607, 1792, 12.0),
    "GeForce RTX 5080": (16303, 960, 12.0),
    "GeForce RTX 5070 Ti": (16303, 896, 12.0),
    "GeForce RTX 4090 D": (24564, 1008, 8.9),
    "GeForce RTX 4090": (24564, 1008, 8.9),
    "GeForce RTX 4080 SUPER": (16376, 736, 8.9),
    "GeForce RTX 4080": (16376, 717, 8.9),
    "GeForce RTX 4070 Ti SUPER": (16376, 672, 8.9),
    "GeForce RTX 4070 Ti": (12282, 504, 8.9),
    "GeForce RTX 4070": (12282, 504, 8.9),
    "GeForce RTX 4060 Ti": (16380, 288, 8.9),
    "GeForce RTX 4060": (8188, 272, 8.9),
    "GeForce RTX 3090 Ti": (24564, 1008, 8.6),
    "GeForce RTX 3090": (24576, 936, 8.6),
    "GeForce RTX 3080 Ti": (12288, 912, 8.6),
    "GeForce RTX 3080": (10240, 760, 8.6),
    "GeForce RTX 3070": (8192, 448, 8.6),
    "GeForce RTX 3060": (12288, 360, 8.6),
    "GeForce RTX 2080 Ti": (11264, 616, 7.5),
}

# What CUDA offers a program is less than nvidia-smi's total: 0.47 GiB on an H100 80GB
# (81,559 MiB reported, 79.18 GiB usable), 0.35 to 0.50 on the cards of 12 to 48 GB.
DRIVER_RESERVE_MIB = 512
DRIVER_RESERVE_MIB_OF = {"A100": 870, "A800": 870, "H100": 481, "H800": 481}

# lowest compute capability
NEEDS = {"bf16": 8.0, "awq": 7.5, "gptq": 7.5, "fp8": 8.9}
KV_FP8_NEEDS = 8.9
ENGINE_NEEDS = {"vllm": 7.5, "sglang": 8.0, "ollama": 5.0, "llamacpp": 5.0}

# An unknown card: the slowest bandwidth seen in its class, per GiB of memory.
_UNKNOWN_GBS_PER_GIB = 13


def lookup(name):
    """Return (memory_mib, bandwidth, capability) of a card's name, or None."""
    plain = name.replace("NVIDIA", "").strip().lower()
    for card in sorted(CARDS, key=len, reverse=True):
        if re.search(rf"(?<!\w){re.escape(card.lower())}(?!\w)", plain) or (
            len(plain) > 1 and plain == card.split()[-1].lower()
        ):
            return CARDS[card]
    return None


def bandwidth(name, memory_mib):
    """GB/s of a card; a cautious guess from its size when it is not in the table."""
    known = lookup(name)
    return known[1] if known else _UNKNOWN_GBS_PER_GIB * memory_mib / 1024


def slice_bandwidth(name, memory_mib, whole_mib):
    """GB/s of a MIG slice: its share of the memory, in eighths of the card.

    A slice has memory controllers of its own, one for each of the card's memory slices: eight on
    most cards, four on an A30 (NVIDIA's MIG user guide, "Supported MIG Profiles").
    """
    return bandwidth(name, whole_mib) * max(1, round(8 * memory_mib / whole_mib)) / 8


def usable_mib(name, memory_mib):
    """MiB that CUDA offers a program on a card whose driver reports memory_mib."""
    for part, reserve in DRIVER_RESERVE_MIB_OF.items():
        if part in name:
            return memory_mib - reserve
    return memory_mib - DRIVER_RESERVE_MIB
