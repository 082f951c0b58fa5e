"""Speed of the engines that a user would otherwise pick: llama.cpp and PyTorch eager on one GGUF file (PyTorch dequantised to f32), or PyTorch
eager on random bf16 weights in the shape of a model.

Prints one JSON object a line: {"engine", "phase", "batch" or "tokens", "tokens_per_second"}; the best repetition after one that warms up.
"""

import argparse
import ctypes
import json
import sys
import time

parser = argparse.ArgumentParser(description=__doc__)
model_argument = parser.add_mutually_exclusive_group(required=True)
model_argument.add_argument("--gguf")
model_argument.add_argument("--shape", choices=["llama-1b"])
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--batches", default="1,8,32")
parser.add_argument("--prompts", default="512,2048")
parser.add_argument("--context", type=int, default=512)
parser.add_argument("--steps", type=int, default=32)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--engines", default="llama.cpp,pytorch")
args = parser.parse_args()
batches = [int(x) for x in args.batches.split(",")]
prompts = [int(x) for x in args.prompts.split(",")]


def token(i: int) -> int:
    """A fixed, varied prompt; any ids serve, the arithmetic is the same."""
    return 1000 + (i * 7919) % 40000


def report(engine: str, phase: str, size: int, rates: list[float]) -> None:
    key = "batch" if phase == "decode" else "tokens"
    print(json.dumps({"engine": engine, "phase": phase, key: size, "tokens_per_second": max(rates)}), flush=True)


def llama_cpp_rates() -> None:
    import llama_cpp as lc

    @lc.llama_log_callback
    def quiet(_level, _text, _data):
        pass

    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(args.gguf.encode(), lc.llama_model_default_params())
    cp = lc.llama_context_default_params()
    cp.n_ctx = max(max(prompts), args.context + max(batches) * (args.steps * (args.repeats + 1) + 8)) + 256
    cp.n_batch = 2048
    cp.n_ubatch = 512
    cp.n_seq_max = max(batches)
    cp.n_threads = cp.n_threads_batch = args.threads
    if hasattr(cp, "kv_unified"):
        cp.kv_unified = True
    context = lc.llama_init_from_model(model, cp)
    memory = lc.llama_get_memory(context)
    batch = lc.llama_batch_init(2048, 0, 1)

    def put(i: int, tok: int, pos: int, seq: int, logits: bool) -> None:
        batch.token[i] = tok
        batch.pos[i] = pos
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = seq
        batch.logits[i] = logits

    def run(n: int) -> None:
        batch.n_tokens = n
        status = lc.llama_decode(context, batch)
        if status != 0:
            sys.exit(f"llama_decode answered {status}")
        lc.llama_synchronize(context)

    def prefill(n: int) -> None:
        for begin in range(0, n, 2048):
            count = min(2048, n - begin)
            for i in range(count):
                put(i, token(begin + i), begin + i, 0, begin + i == n - 1)
            run(count)

    for n in prompts:
        rates = []
        for _ in range(args.repeats + 1):
            lc.llama_memory_clear(memory, True)
            start = time.perf_counter()
            prefill(n)
            rates.append(n / (time.perf_counter() - start))
        report("llama.cpp", "prefill", n, rates[1:])
    for size in batches:
        lc.llama_memory_clear(memory, True)
        prefill(args.context)
        for seq in range(1, size):
            lc.llama_memory_seq_cp(memory, 0, seq, -1, -1)
        rates, position = [], args.context
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            for _ in range(args.steps):
                for seq in range(size):
                    put(seq, token(position + seq), position, seq, True)
                run(size)
                position += 1
            rates.append(size * args.steps / (time.perf_counter() - start))
        report("llama.cpp", "decode", size, rates[1:])


def pytorch_model():
    import os

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if args.gguf:
        directory, file = os.path.split(args.gguf)
        return AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.float32).eval()
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    # Made on "meta" and filled once: initialising 1.2 G weights by the library's rules takes longer than the measurements.
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    for weights in model.parameters():
        weights.data.uniform_(-0.02, 0.02)
    rotary = type(model.model.rotary_emb)(config)
    model.model.rotary_emb = rotary
    return model.eval()


def pytorch_rates() -> None:
    import torch
    from transformers import DynamicCache

    torch.set_num_threads(args.threads)
    model = pytorch_model()
    with torch.inference_mode():
        for n in prompts:
            ids = torch.tensor([[token(i) for i in range(n)]])
            rates = []
            for _ in range(args.repeats + 1):
                start = time.perf_counter()
                model(ids, use_cache=True, logits_to_keep=1)
                rates.append(n / (time.perf_counter() - start))
            report("pytorch", "prefill", n, rates[1:])
        ids = torch.tensor([[token(i) for i in range(args.context)]])
        for size in batches:
            cache = DynamicCache()
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(size)
            steps = max(4, args.steps // (1 if size == 1 else 4))
            rates, position = [], args.context
            for _ in range(args.repeats + 1):
                start = time.perf_counter()
                for _ in range(steps):
                    step_ids = torch.tensor([[token(position + seq)] for seq in range(size)])
                    logits = model(step_ids, past_key_values=cache, use_cache=True).logits
                    logits[:, -1].argmax(-1)
                    position += 1
                rates.append(size * steps / (time.perf_counter() - start))
            report("pytorch", "decode", size, rates[1:])


for engine in args.engines.split(","):
    {"llama.cpp": llama_cpp_rates, "pytorch": pytorch_rates}[engine]()
