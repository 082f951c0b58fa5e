//! Kernels of the CPU backend: threads, packed matrices, norms, rotation, paged attention, and KV memory.
//!
//! The one crate of the workspace with `unsafe`; every such block says why it is sound. The promise that all kernels keep: **the bits of a
//! row's result depend on that row's inputs only**, not on the batch it came in, on how a prompt was chunked, on threads, on block size, or
//! on the instruction set. Sums run in one fixed order; see each kernel.

// Loops over lanes, registers and tiles are written by index, as the formulas are.
#![allow(clippy::needless_range_loop)]

mod aligned;
mod attention;
mod batch;
mod bias;
mod coding;
mod convert;
mod cpu;
mod embedding;
mod error;
mod gemm;
mod heap;
mod isa;
mod kv_pool;
mod kv_shards;
mod logits;
mod math;
mod norm;
mod place;
mod pool_error;
mod remote_kv;
mod roofline;
mod rope;
mod simd;
mod swap_space;
mod thread_pool;

pub use aligned::{AlignedBytes, AlignedF32};
pub use attention::attention;
pub use batch::{Batch, BatchError, Span};
pub use bias::add_bias;
pub use coding::{
    AxisScale, Blocks, Columns8, ExponentWindows, KeyTurns, Matrix8, OutOfRange, PackedShape, RANS_BITS, RANS_LANES,
    RANS_SYMBOLS_MAX, RansError, RansTable, Rest, RowTerm, column_stride, columns_from_packed, join_exponents,
    multiply8, pack_bits, packed_bits_len, packed_from_columns, rans_decode, rans_encode, split_exponents,
    symbols_from_columns, symbols_to_columns, unpack_bits,
};
pub use convert::convert;
pub use cpu::Cpu;
pub use embedding::gather_rows;
pub use error::KernelError;
pub use gemm::{Activations, Gate, PackedMatrix, Product, WeightType, gated_linear, linear};
pub use heap::keep_freed_memory;
pub use isa::Isa;
pub use kv_pool::{KvDtype, KvPool, KvShape, PoolError};
pub use kv_shards::KvShards;
pub use logits::{argmax, exp_weights};
pub use norm::rmsnorm;
pub use place::{Relocation, place};
pub use remote_kv::{RemoteKv, RemoteSlots};
pub use roofline::Roofline;
pub use rope::{Projections, RopeTable, rotate_and_store};
pub use swap_space::{BlockGroup, SwapDirection, SwapSpace, block_groups};
pub use thread_pool::ThreadPool;
