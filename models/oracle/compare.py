"""Compares the engine with transformers, prints what it finds, and writes it as Markdown. Exit code 1 when a promise does not hold.

Usage: compare.py --sidecar BINARY --smollm2 DIRECTORY --work DIRECTORY [--results FILE.md] [--only tiny|smollm2]

Promises, in f32 with KV in f32: every logit within 1e-3 of transformers', over a prompt and 128 generated tokens, in chunks of any size; the 128
greedy tokens identical, alone and in a mixed batch of 8. Computing on quantised weights directly is judged by the Kullback-Leibler divergence
to the dequantised model in f32, and by how often both choose the same next token.
"""

import argparse
import pathlib
import sys
import time

import numpy as np
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer
from transformers.utils import logging

import reference
import tiny_gguf
from engine import Engine
from report import Comparison, Divergence, write_report
from tiny_models import COMPARED, LINEAR_ROPE, LLAMA3_ROPE, YARN_ROPE, TinyModel

GREEDY_TOKENS = 128
BATCH = 8
CHUNKS = (7, 64, 512)
BATCH_CHUNK = 19

# Files that transformers reads itself: the reference is its own reading.
TINY_GGUF = [
    (
        TinyModel("GGUF in Q4_0, Q4_1, Q8_0", seed=31),
        {"token_embd": Type.Q8_0, "attn_q": Type.Q4_0, "attn_k": Type.Q4_1, "attn_v": Type.Q8_0, "attn_output": Type.Q4_1,
         "ffn_gate": Type.Q4_0, "ffn_up": Type.Q8_0, "ffn_down": Type.Q4_1},
    ),
    (
        TinyModel("GGUF in F16, F32, Q8_0, untied", seed=32, tied=False, heads=2, kv_heads=1),
        {"token_embd": Type.F16, "attn_q": Type.F16, "attn_k": Type.Q8_0, "ffn_gate": Type.Q8_0, "output": Type.Q8_0},
    ),
]
# Files that it does not, or not with these keys: the reference is the model with its weights rounded alike.
WIDE = {"hidden": 256, "intermediate": 256, "head_dim": 32}
ROUNDED_GGUF = [
    (
        TinyModel("GGUF with RoPE divisors", seed=33, tied=False, rope=LLAMA3_ROPE),
        {"attn_q": Type.Q8_0, "attn_k": Type.Q8_0, "ffn_down": Type.Q4_0},
    ),
    (
        TinyModel("GGUF of Llama with biases, linear RoPE, Q4_K, Q6_K", seed=34, rope=LINEAR_ROPE, options={"attention_bias": True}, **WIDE),
        {"token_embd": Type.Q6_K, "attn_q": Type.Q4_K, "attn_k": Type.Q4_K, "attn_v": Type.Q6_K, "ffn_gate": Type.Q4_K, "ffn_up": Type.Q4_K,
         "ffn_down": Type.Q6_K},
    ),
    (
        TinyModel("GGUF of Qwen2, YaRN, Q5_0, Q5_1, Q8_0", seed=35, family="qwen2", rope=YARN_ROPE),
        {"token_embd": Type.Q8_0, "attn_q": Type.Q5_0, "attn_k": Type.Q5_1, "attn_v": Type.Q8_0, "attn_output": Type.Q5_0,
         "ffn_gate": Type.Q5_1, "ffn_up": Type.Q5_0, "ffn_down": Type.Q5_1},
    ),
    (
        TinyModel("GGUF of Qwen3, Q4_K, Q5_K, Q6_K", seed=36, family="qwen3", tied=False, **WIDE),
        {"token_embd": Type.Q4_K, "output": Type.Q6_K, "attn_q": Type.Q5_K, "attn_k": Type.Q5_K, "attn_v": Type.Q6_K, "ffn_gate": Type.Q5_K,
         "ffn_up": Type.Q5_K, "ffn_down": Type.Q6_K},
    ),
    (
        TinyModel("GGUF of Phi-3, Q5_K, Q4_K", seed=37, family="phi3", tied=False, **WIDE),
        {"token_embd": Type.F16, "attn_qkv": Type.Q5_K, "ffn_up": Type.Q4_K, "ffn_down": Type.Q6_K},
    ),
    (
        TinyModel("GGUF of Gemma, Q4_0, Q8_0", seed=38, family="gemma", kv_heads=1),
        {"token_embd": Type.Q8_0, "attn_q": Type.Q4_0, "ffn_up": Type.Q4_0},
    ),
]


def compare(name: str, engine: Engine, model, prompts: list[list[int]]) -> Comparison:
    """All promises on one model; `prompts` are the batch."""
    started = time.monotonic()
    expected = [reference.greedy(model, prompt, GREEDY_TOKENS) for prompt in prompts]
    alone = [engine.greedy([prompt], GREEDY_TOKENS, CHUNKS[-1])[0] for prompt in prompts]
    together = engine.greedy(prompts, GREEDY_TOKENS, BATCH_CHUNK)
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    text = prompts[longest] + expected[longest]
    theirs = reference.logits(model, text)
    ours = [engine.logits(text, chunk) for chunk in CHUNKS]
    comparison = Comparison(
        name=name,
        positions=len(text),
        logit_range=float(np.ptp(theirs, axis=1).mean()),
        logit_difference=float(np.abs(ours[0] - theirs).max()),
        chunks_identical=all(np.array_equal(ours[0], other) for other in ours[1:]),
        tokens=sum(map(len, expected)),
        same_alone=sum(map(same_count, alone, expected)),
        same_together=sum(map(same_count, together, expected)),
    )
    print(f"{comparison.line()} ({time.monotonic() - started:.0f} s)", flush=True)
    return comparison


def same_count(ours: list[int], expected: list[int]) -> int:
    """Tokens before the first that differs."""
    for index, (left, right) in enumerate(zip(ours, expected)):
        if left != right:
            return index
    return min(len(ours), len(expected))


def divergence(name: str, theirs: np.ndarray, ours: np.ndarray) -> Divergence:
    """KL(theirs ‖ ours) in nats at each position, in f64."""
    log_theirs, log_ours = log_softmax(theirs), log_softmax(ours)
    kl = (np.exp(log_theirs) * (log_theirs - log_ours)).sum(axis=1)
    agreement = float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean())
    result = Divergence(name, len(kl), float(kl.mean()), float(kl.max()), agreement, float(np.abs(ours - theirs).max()))
    print(result.line(), flush=True)
    return result


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def random_prompts(seed: int, vocab: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocab, length).tolist() for length in (1, 2, 9, 32, 33, 77, 130, 300)]


def tiny(sidecar: pathlib.Path, work: pathlib.Path) -> tuple[list[Comparison], list[Divergence]]:
    found, converted = [], []
    for spec in COMPARED:
        directory = work / f"tiny-{spec.seed}"
        spec.save(directory)
        found.append(compare(spec.name, Engine(sidecar, directory), reference.load(directory), random_prompts(spec.seed, spec.vocab)))
    for spec, types in TINY_GGUF:
        directory = work / f"tiny-{spec.seed}"
        directory.mkdir(parents=True, exist_ok=True)
        tiny_gguf.write(spec.make(), directory / "model.gguf", types)
        # The reference is transformers' own reading of the file, not the weights that it was written from.
        model = reference.load(directory, "model.gguf")
        found.append(compare(spec.name, Engine(sidecar, directory), model, random_prompts(spec.seed, spec.vocab)))
    for spec, types in ROUNDED_GGUF:
        directory = work / f"tiny-{spec.seed}"
        directory.mkdir(parents=True, exist_ok=True)
        model = spec.make()
        tiny_gguf.write(model, directory / "model.gguf", types)
        tiny_gguf.dequantised(model, types)
        prompts = random_prompts(spec.seed, spec.vocab)
        found.append(compare(spec.name, Engine(sidecar, directory), model, prompts))
        stored = Engine(sidecar, directory, weights="stored")
        converted.append(divergence(spec.name, reference.logits(model, prompts[-1]), stored.logits(prompts[-1], CHUNKS[0])))
    return found, converted


def smollm2(sidecar: pathlib.Path, source: pathlib.Path, work: pathlib.Path) -> tuple[list[Comparison], list[Divergence]]:
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    text = (pathlib.Path(__file__).parent / "text.txt").read_text()
    passages = [tokenizer.encode(part, add_special_tokens=False).ids for part in text.split("\n\n")]
    prompts = (passages + [ids[: len(ids) // 2] for ids in passages])[:BATCH]
    model = reference.load(source, "model.gguf")
    dequantised = work / "smollm2-f32"
    reference.save_dequantised(model, dequantised)
    found = [compare("SmolLM2-135M-Instruct, dequantised, f32", Engine(sidecar, dequantised), model, prompts)]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    theirs = reference.logits(model, ids)
    divergences = [
        divergence(name, theirs, Engine(sidecar, path, kv_dtype, weights).logits(ids, 128))
        for name, path, kv_dtype, weights in (
            ("f32 weights, f32 KV", dequantised, "f32", "stored"),
            ("quantised weights, f32 KV", source / "model.gguf", "f32", "stored"),
            ("quantised weights, f16 KV", source / "model.gguf", "f16", "stored"),
            ("quantised weights, bf16 KV", source / "model.gguf", "bf16", "stored"),
            ("rounded to 8 bits at load, f32 KV", dequantised, "f32", "q8_0"),
        )
    ]
    return found, divergences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidecar", type=pathlib.Path, required=True)
    parser.add_argument("--smollm2", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--only", choices=["tiny", "smollm2"])
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    comparisons: list[Comparison] = []
    divergences: list[Divergence] = []
    converted: list[Divergence] = []
    if args.only != "smollm2":
        comparisons, converted = tiny(args.sidecar, args.work)
    if args.only != "tiny":
        more, divergences = smollm2(args.sidecar, args.smollm2, args.work)
        comparisons += more
    kept = sum(comparison.is_kept() for comparison in comparisons)
    print(f"{kept} of {len(comparisons)} models agree with transformers")
    if args.results and args.only is None:
        write_report(args.results, comparisons, divergences, converted)
        print(f"written to {args.results}")
    return 0 if kept == len(comparisons) else 1


sys.exit(main())
