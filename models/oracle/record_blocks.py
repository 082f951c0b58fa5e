"""Records what the `gguf` package reads from blocks of each quantised type: arbitrary bytes with sane scales, and their values."""

import json
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

FIXTURE = pathlib.Path(__file__).parents[2] / "services/sidecar/crates/model/tests/fixtures/blocks.json"

# Where a block's f16 fields are.
SCALES_AT = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}


def record_blocks(path: pathlib.Path = FIXTURE) -> None:
    draw = np.random.default_rng(41)
    recorded = {}
    for kind, scales_at in SCALES_AT.items():
        length, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = draw.integers(0, 256, (64 // length or 1, size), dtype=np.uint8)
        for at in scales_at:
            blocks[:, at : at + 2] = draw.normal(0, 0.05, (len(blocks), 1)).astype("<f2").view(np.uint8)
        values = gguf.quants.dequantize(blocks.reshape(-1), kind).astype("<f4")
        recorded[kind.name] = {"ggml": int(kind), "bytes": blocks.tobytes().hex(), "f32": values.tobytes().hex()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recorded, indent=1) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")
