//! Kernels of the KV codec: entropy coding, and the way between rows of numbers and planes of symbols.

mod exponents;
mod heads;
mod rans;
#[cfg(target_arch = "x86_64")]
mod rans_avx512;
mod symbols;

pub use exponents::{join_exponents, split_exponents};
pub use heads::{KeyTurns, PackedShape, packed_from_rows, rows_from_packed};
pub use rans::{RANS_BITS, RANS_LANES, RANS_SYMBOLS_MAX, RansError, RansTable, rans_decode, rans_encode};
pub use symbols::{AxisScale, OutOfRange, symbols_from_rows, symbols_to_rows};
