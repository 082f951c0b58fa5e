//! Dense element types and how 16 of them widen to f32.

use super::{LANES, Simd};
use crate::aligned::{as_f32, as_u16};

/// A dense element type.
pub(crate) trait Element {
    /// One element in memory.
    type Bits: Copy + Default;
    /// Whether two of them lie in a word of 32 bits and widen by a shift.
    const PAIRS: bool = false;
    /// The elements in some bytes.
    fn view(bytes: &[u8]) -> &[Self::Bits];
    /// Sixteen elements as f32.
    fn load<S: Simd>(s: S, from: &[Self::Bits; LANES]) -> S::F;
}

/// IEEE 754 binary32.
pub(crate) struct Single;
/// IEEE 754 binary16.
pub(crate) struct Half;
/// bfloat16.
pub(crate) struct Brain;

impl Element for Single {
    type Bits = f32;
    #[inline(always)]
    fn view(bytes: &[u8]) -> &[f32] {
        as_f32(bytes)
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
}

impl Element for Half {
    type Bits = u16;
    #[inline(always)]
    fn view(bytes: &[u8]) -> &[u16] {
        as_u16(bytes)
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_f16(from)
    }
}

impl Element for Brain {
    type Bits = u16;
    const PAIRS: bool = true;
    #[inline(always)]
    fn view(bytes: &[u8]) -> &[u16] {
        as_u16(bytes)
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_bf16(from)
    }
}
