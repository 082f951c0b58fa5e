//! Every kernel against its reference on the CPU: odd shapes, random numbers from a seed, outputs poisoned.
//!
//! References are the CPU engine's own functions where a kernel promises its bits, else plain sums in f64 over the same rounded inputs. A
//! tolerance is the sum of the roundings that the kernel is allowed: half a bf16 step of what it stores, and its sums in f32.

mod attention;
mod codec;
mod elementwise;
mod gemm;
mod harness;
mod kv;
mod rope;
mod sampling;

pub use codec::{kv_profile, kv_sample};
pub use harness::{Harness, Random};

/// A case: the seed decides its numbers and sizes. `Err` says what differs.
pub type Case = fn(&mut Harness<'_>) -> Result<(), String>;

/// All cases by name.
pub const CASES: &[(&str, Case)] = &[
    ("embedding", elementwise::embedding),
    ("rmsnorm", elementwise::rmsnorm),
    ("add_bias", elementwise::add_bias),
    ("gated", elementwise::gated),
    ("rope_table", rope::table),
    ("rotate_and_store", rope::rotate_and_store),
    ("relocate", kv::relocate),
    ("kv_copy", kv::copy),
    ("kv_copy, blocks side by side", kv::copy_joined),
    ("kv_deviation", kv::deviation),
    ("gemm", gemm::agrees_with_f64),
    ("gemm, any number of rows", gemm::rows_do_not_matter),
    ("attention of prompts", attention::prompts),
    ("attention at arbitrary positions", attention::arbitrary_positions),
    ("attention, decode", attention::decode),
    ("attention, decode and prompts alike", attention::decode_is_prompt),
    ("attention, shared prefix", attention::shared_prefix),
    ("attention, extreme scores", attention::extreme_scores),
    ("sample", sampling::sample),
    ("sample, ties and forbidden tokens", sampling::hard_rows),
    ("logprobs", sampling::logprobs),
    ("penalties", sampling::penalties),
    ("masks", sampling::masks),
    ("kv codec, lossless", codec::lossless),
    ("kv codec, fast levels", codec::fast),
    ("kv codec, dense levels", codec::dense),
    ("kv codec, what the host codes", codec::refused),
    ("xxh3", codec::digests),
    ("chosen_tokens", sampling::chosen_tokens),
];
