"""Writes a small model as a GGUF file, as llama.cpp's converter lays it out, by the `gguf` package."""

import math
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedModel

import k_quants

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# The converter calls Mistral a Llama; every other family has its own name.
ARCHITECTURES = {"mistral": "llama"}


def gguf_name(name: str) -> str:
    plain, kind = name.rsplit(".", 1)
    if plain in NAMES:
        return f"{NAMES[plain]}.{kind}"
    layer, part = plain.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The converter's row order for Llama's queries and keys: rotation pairs lie side by side."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def llama3_divisors(config) -> np.ndarray:
    """`rope_freqs.weight`: what each pair's frequency is divided by (llama.cpp's conversion of Llama 3.1)."""
    rope = config.rope_parameters
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    original = rope["original_max_position_embeddings"]
    divisors = []
    for pair in range(config.head_dim // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * pair / config.head_dim)
        smooth = (original / wavelength - low) / (high - low)
        divisors.append(1.0 / min(1.0, max(1.0 / factor, (1 - smooth) / factor + smooth)))
    return np.array(divisors, dtype=np.float32)


def kind_of(name: str, types: dict[str, Type], parameter) -> Type:
    """The type of a tensor; vectors stay f32."""
    part = gguf_name(name).rsplit(".", 1)[0].split(".")[-1]
    return types.get(part, Type.F32) if parameter.dim() > 1 else Type.F32


def write(model: PreTrainedModel, path: pathlib.Path, types: dict[str, Type]) -> None:
    """`types` gives each matrix's type by its GGUF name without prefix (`attn_q`); the others are f32."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    write_facts(writer, config)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if architecture == "llama" and ".q_proj." in name:
            weight = interleave(weight, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            weight = interleave(weight, config.num_key_value_heads)
        if architecture == "gemma" and "norm." in name:
            weight = weight + 1
        kind = kind_of(name, types, parameter)
        if kind is Type.F32:
            writer.add_tensor(gguf_name(name), weight.astype(np.float32))
        else:
            writer.add_tensor(gguf_name(name), k_quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_facts(writer: gguf.GGUFWriter, config) -> None:
    rope, head_dim = config.rope_parameters, config.head_dim
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_bos_token_id(config.bos_token_id)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def dequantised(model: PreTrainedModel, types: dict[str, Type]) -> None:
    """Rounds the model's weights in place to what the file holds. Rows are quantised one by one, so their order does not matter."""
    for name, parameter in model.named_parameters():
        kind = kind_of(name, types, parameter)
        if kind is not Type.F32:
            quantised = k_quants.quantize(parameter.detach().numpy(), kind)
            values = gguf.quants.dequantize(quantised, kind).reshape(parameter.shape)
            parameter.data.copy_(parameter.data.new_tensor(values))
