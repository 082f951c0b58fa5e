//! Kernels of the KV codec: entropy coding, and the way between packed KV, columns of numbers and planes of symbols.

mod bits;
mod columns;
mod exponents;
mod matrix8;
#[cfg(target_arch = "x86_64")]
mod matrix8_avx512;
mod rans;
#[cfg(target_arch = "x86_64")]
mod rans_avx512;
mod symbols;
mod transpose;

pub use bits::{pack_bits, packed_bits_len, unpack_bits};
pub use columns::{KeyTurns, PackedShape, column_stride, columns_from_packed, packed_from_columns};
pub use exponents::{ExponentWindows, Rest, join_exponents, split_exponents};
pub use matrix8::{Blocks, Columns8, Matrix8, RowTerm, multiply8};
pub use rans::{RANS_BITS, RANS_LANES, RANS_SYMBOLS_MAX, RansError, RansTable, rans_decode, rans_encode};
pub use symbols::{AxisScale, OutOfRange, symbols_from_columns, symbols_to_columns};
