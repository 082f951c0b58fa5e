"""A plain quantiser to K-quants, which the `gguf` package can only read: each sub-block's range in equal steps, scales rounded to 6 or 8 bits."""

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

BLOCK = 256


def quantize(weight: np.ndarray, kind: Type) -> np.ndarray:
    """Rows of whole blocks to their bytes, `[rows, bytes of a row]`."""
    if kind not in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return quants.quantize(weight, kind)
    blocks = weight.reshape(-1, BLOCK).astype(np.float32)
    encoded = _signed(blocks) if kind is Type.Q6_K else _with_minima(blocks, 4 if kind is Type.Q4_K else 5)
    return encoded.reshape(weight.shape[0], -1)


def _with_minima(blocks: np.ndarray, bits: int) -> np.ndarray:
    parts = blocks.reshape(-1, 8, 32)
    low = np.minimum(parts.min(axis=2), 0)
    step = (parts.max(axis=2) - low) / (2**bits - 1)
    d, scales = _six_bits(step)
    dmin, minima = _six_bits(-low)
    steps, lows = (d * scales)[:, :, None], (dmin * minima)[:, :, None]
    q = np.rint((parts + lows) / np.where(steps == 0, 1, steps)).clip(0, 2**bits - 1).astype(np.uint8)
    packed = np.zeros((len(blocks), 12), np.uint8)
    packed[:, 0:4] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    packed[:, 4:8] = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    packed[:, 8:12] = (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    fifth = np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[None, :, None], axis=1)
    return np.concatenate([_half(d), _half(dmin), packed, *([fifth] if bits == 5 else []), nibbles], axis=1)


def _signed(blocks: np.ndarray) -> np.ndarray:
    parts = blocks.reshape(-1, 16, 16)
    step = np.abs(parts).max(axis=2) / 31
    d = (step.max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    scales = np.rint(step / np.where(d == 0, 1, d)).clip(0, 127).astype(np.int8)
    steps = (d * scales)[:, :, None]
    q = (np.rint(parts / np.where(steps == 0, 1, steps)).clip(-32, 31) + 32).astype(np.uint8)
    halves = q.reshape(-1, 2, 4, 32)
    low = (halves[:, :, :2] & 15) | (halves[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce((halves >> 4) << (2 * np.arange(4, dtype=np.uint8))[None, None, :, None], axis=2)
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), _half(d)], axis=1)


def _six_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    d = (values.max(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    return d, np.rint(values / np.where(d == 0, 1, d)).clip(0, 63).astype(np.uint8)


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view(np.uint8)
