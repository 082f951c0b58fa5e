//! Plain Rust: the reference for the others, and what runs on processors without AVX2 (on aarch64 the compiler vectorises it for NEON).

use super::{BLOCK, LANES, Simd, nibbles_of};
use half::{bf16, f16};

/// Needs nothing of the processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

impl Simd for Portable {
    type F = F;
    type I = [i32; LANES];
    type B = [[u8; 4]; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn prefetch(self, _bytes: &[u8]) {}
    #[inline(always)]
    fn prefetch_ahead(self, _bytes: &[u8], _ahead: usize) {}
    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        *from
    }
    #[inline(always)]
    fn store(self, value: F, to: &mut [f32; LANES]) {
        *to = value;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        from.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        from.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    fn store_f16(self, value: F, to: &mut [u16; LANES]) {
        *to = value.map(|x| f16::from_f32(x).to_bits());
    }
    #[inline(always)]
    fn store_bf16(self, value: F, to: &mut [u16; LANES]) {
        *to = value.map(|x| bf16::from_f32(x).to_bits());
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        let mut out = c;
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }
    #[inline(always)]
    fn pow2_of_biased(self, biased: F) -> F {
        // The low bits of 1.5 · 2^23 + n are n in two's complement; the shift leaves them in the exponent field.
        biased.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1.0_f32.to_bits())))
    }
    #[inline(always)]
    fn select_first(self, count: usize, value: F, other: F) -> F {
        let mut out = other;
        for i in 0..LANES {
            if i < count {
                out[i] = value[i];
            }
        }
        out
    }
    #[inline(always)]
    fn reduce_sum(self, value: F) -> f32 {
        let mut v = value;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn reduce_max(self, value: F) -> f32 {
        let mut v = value;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] = if v[i] > v[i + half] { v[i] } else { v[i + half] };
            }
        }
        v[0]
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [F; LANES]) {
        for i in 0..LANES {
            for j in 0..i {
                let upper = rows[j][i];
                rows[j][i] = rows[i][j];
                rows[i][j] = upper;
            }
        }
    }

    #[inline(always)]
    fn f32_from_i32(self, value: Self::I) -> F {
        value.map(|x| x as f32)
    }
    #[inline(always)]
    fn dot_quad(self, sum: Self::I, w: Self::B, a: i32) -> Self::I {
        let mut out = sum;
        for lane in 0..LANES {
            for (w, a) in w[lane].iter().zip(a.to_le_bytes()) {
                out[lane] += i32::from(*w) * i32::from(a as i8);
            }
        }
        out
    }
    #[inline(always)]
    fn zero_i32(self) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u16; 2 * LANES]) -> Self::I {
        std::array::from_fn(|lane| (u32::from(from[2 * lane]) | u32::from(from[2 * lane + 1]) << 16) as i32)
    }
    #[inline(always)]
    fn widen_pairs(self, pairs: F) -> (F, F) {
        (
            pairs.map(|pair| f32::from_bits(pair.to_bits() << 16)),
            pairs.map(|pair| f32::from_bits(pair.to_bits() & 0xffff_0000)),
        )
    }
    #[inline(always)]
    fn dot_bf16(self, acc: F, w: Self::I, x: u32) -> F {
        let odd = self.fma(
            w.map(|pair| f32::from_bits(pair as u32 & 0xffff_0000)),
            self.splat(f32::from_bits(x & 0xffff_0000)),
            acc,
        );
        let even = w.map(|pair| f32::from_bits((pair as u32) << 16));
        self.fma(even, self.splat(f32::from_bits(x << 16)), odd)
    }
    #[inline(always)]
    fn unpack_u4(self, from: &[u8; 256]) -> [Self::B; 8] {
        let mut out = [[[0; 4]; LANES]; 8];
        for line in 0..4 {
            for lane in 0..LANES {
                for i in 0..4 {
                    let byte = from[line * 64 + lane * 4 + i];
                    out[line][lane][i] = byte & 15;
                    out[line + 4][lane][i] = byte >> 4;
                }
            }
        }
        out
    }
    #[inline(always)]
    fn dot_u4(self, w: &[Self::B; 8], a: &[i8; BLOCK], start: i32) -> Self::I {
        let mut sum = [start; LANES];
        for group in 0..8 {
            for lane in 0..LANES {
                for i in 0..4 {
                    sum[lane] += i32::from(w[group][lane][i]) * i32::from(a[group * 4 + i]);
                }
            }
        }
        sum
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> F {
        from.map(f32::from)
    }
    #[inline(always)]
    fn store_u8(self, value: F, to: &mut [u8; LANES]) {
        *to = value.map(|x| x as u8);
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> F {
        from.map(|byte| f32::from(byte as i8))
    }
    #[inline(always)]
    fn unpack_u5(self, from: &[u8; 320]) -> [Self::B; 8] {
        let mut out = self.unpack_u4(nibbles_of(from));
        for (group, vector) in out.iter_mut().enumerate() {
            for (at, number) in vector.as_flattened_mut().iter_mut().enumerate() {
                *number |= (from[256 + at] >> group & 1) << 4;
            }
        }
        out
    }
    #[inline(always)]
    fn unpack_u6(self, from: &[u8; 384]) -> [Self::B; 8] {
        let mut out = self.unpack_u4(nibbles_of(from));
        for (group, vector) in out.iter_mut().enumerate() {
            for (at, number) in vector.as_flattened_mut().iter_mut().enumerate() {
                *number |= (from[256 + group / 4 * 64 + at] >> (2 * (group % 4)) & 3) << 4;
            }
        }
        out
    }
    #[inline(always)]
    fn dot_u6(self, w: &[Self::B; 8], a: &[i8; BLOCK], start: i32) -> Self::I {
        self.dot_u4(w, a, start)
    }
    #[inline(always)]
    fn dot_u6_halves(self, w: &[Self::B; 8], a: &[i8; BLOCK], starts: [i32; 2]) -> [Self::I; 2] {
        let mut sums = starts.map(|start| [start; LANES]);
        for group in 0..8 {
            let bytes: [u8; 4] = std::array::from_fn(|i| a[group * 4 + i] as u8);
            sums[group / 4] = self.dot_quad(sums[group / 4], w[group], i32::from_le_bytes(bytes));
        }
        sums
    }
    #[inline(always)]
    fn unpack_s8(self, from: &[u8; 512]) -> [Self::B; 8] {
        let mut out = [[[0; 4]; LANES]; 8];
        for group in 0..8 {
            for lane in 0..LANES {
                for i in 0..4 {
                    out[group][lane][i] = from[group * 64 + lane * 4 + i];
                }
            }
        }
        out
    }
    #[inline(always)]
    fn dot_s8(self, w: &[Self::B; 8], a: &[i8; BLOCK], a_sum: i32) -> Self::I {
        self.dot_u4(w, a, -128 * a_sum)
    }
}
