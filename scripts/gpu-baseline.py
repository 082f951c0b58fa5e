"""transformers with SDPA on this machine's GPU: seconds of a decode step and of a prompt for a Llama-3-8B of random weights.

Prints the table of docs/results/gpu.md. `--tiny` tries the script itself on a CPU. KV of the context is random: its values cost the same.
"""

import sys
import time

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

TINY = "--tiny" in sys.argv
DEVICE = "cpu" if TINY else "cuda"
STEPS, WARM_UP = (3, 1) if TINY else (20, 5)
CONTEXT, PROMPT, BATCHES = (40, 33, (1, 3)) if TINY else (4096, 8192, (1, 64))
SIZES = (
    {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    if TINY
    else {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def decode(model: LlamaForCausalLM, batch: int) -> float:
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        shape = (batch, config.num_key_value_heads, CONTEXT, size)
        keys, values = (torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
        cache.update(keys, values, layer)
    tokens = torch.ones((batch, 1), dtype=torch.long, device=DEVICE)
    times = []
    for _ in range(WARM_UP + STEPS):
        synchronize()
        began = time.perf_counter()
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
        tokens = logits[:, -1:].argmax(-1)
        synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[WARM_UP:])[STEPS // 2]


def prefill(model: LlamaForCausalLM) -> float:
    tokens = torch.arange(PROMPT, device=DEVICE)[None] % 97
    times = []
    for _ in range(4):
        synchronize()
        began = time.perf_counter()
        model(input_ids=tokens, use_cache=True, logits_to_keep=1)
        synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[1]


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, max_position_embeddings=PROMPT + 64, rope_theta=500_000.0, attn_implementation="sdpa")
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
    print(f"- transformers {transformers.__version__}, torch {torch.__version__}, SDPA, DynamicCache, eager")
    print("\n| whole model | ms | tokens/s |\n|---|---|---|")
    for batch in BATCHES:
        seconds = decode(model, batch)
        print(f"| decode step, {batch} of {CONTEXT} context | {seconds * 1e3:.3f} | {batch / seconds:.0f} |")
    seconds = prefill(model)
    print(f"| prefill of {PROMPT} tokens | {seconds * 1e3:.1f} | {PROMPT / seconds:.0f} |")


main()
