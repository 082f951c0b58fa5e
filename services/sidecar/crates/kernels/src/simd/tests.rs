//! Every instruction set against plain arithmetic, bit for bit.

use super::{BLOCK, LANES, Simd};
use crate::isa::{Isa, Kernel};
use crate::math::{exp, silu};
use half::{bf16, f16};

/// Deterministic bits for tests.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// Uniform in [-1, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

struct Exp<'a>(&'a [f32]);

impl Kernel for Exp<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (from, to) in self.0.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
            s.store(exp(s, s.load(from)), to);
        }
        out
    }
}

#[test]
fn exp_keeps_its_bound_and_its_bits() {
    let mut inputs: Vec<f32> = (0..1_600_000)
        .map(|i| -87.0 + i as f32 * (175.0 / 1_600_000.0))
        .collect();
    inputs.extend((0..1600).map(|i| (i as f32 - 800.0) * 1e-4));
    let reference = Isa::available().pop().unwrap().run(Exp(&inputs));
    for (x, e) in inputs.iter().zip(&reference) {
        let exact = f64::from(*x).exp();
        let error = (f64::from(*e) - exact).abs() / exact;
        assert!(
            error < 3.0 / f64::from(1 << 24),
            "exp({x}) = {e}, relative error {error:e}"
        );
    }
    for isa in Isa::available() {
        let out = isa.run(Exp(&inputs));
        assert!(
            out.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{}",
            isa.name()
        );
        let mut edges = [0.0; LANES];
        edges[..7].copy_from_slice(&[0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1e30, 1e30]);
        let out = isa.run(Exp(&edges));
        let (low, high) = (out[2], out[3]);
        assert_eq!(out[..7], [1.0, 1.0, low, high, low, low, high]);
        assert!(low > 0.0 && low < 2e-38 && high > 1e38 && high.is_finite());
    }
}

/// Everything that moves or rounds lanes, as bits.
struct Probe<'a> {
    a: &'a [[f32; LANES]; LANES],
    count: usize,
}

impl Kernel for Probe<'_> {
    type Output = Vec<u32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut bits = Vec::new();
        let mut rows = [s.splat(0.0); LANES];
        for (row, from) in rows.iter_mut().zip(self.a) {
            *row = s.load(from);
        }
        let (a, b) = (rows[0], rows[1]);
        s.transpose(&mut rows);
        let mut all = rows.to_vec();
        all.extend([
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.max(a, b),
            s.min(a, b),
            s.fma(a, b, b),
        ]);
        all.extend([s.select_first(self.count, a, b), silu(s, a)]);
        for value in all {
            let mut out = [0.0; LANES];
            s.store(value, &mut out);
            bits.extend(out.map(f32::to_bits));
        }
        let (mut half, mut brain) = ([0; LANES], [0; LANES]);
        s.store_f16(a, &mut half);
        s.store_bf16(a, &mut brain);
        for value in [s.load_f16(&half), s.load_bf16(&brain)] {
            let mut out = [0.0; LANES];
            s.store(value, &mut out);
            bits.extend(out.map(f32::to_bits));
        }
        bits.extend([s.reduce_sum(a), s.reduce_max(b)].map(f32::to_bits));
        bits
    }
}

#[test]
fn lanes_move_and_round_the_same_everywhere() {
    let mut noise = Noise::new(1);
    for count in 0..=LANES {
        let mut a = [[0.0; LANES]; LANES];
        a.as_flattened_mut()
            .fill_with(|| noise.unit() * 2.0_f32.powi(count as i32 * 2 - 16));
        let bits: Vec<_> = Isa::available()
            .into_iter()
            .map(|isa| (isa.name(), isa.run(Probe { a: &a, count })))
            .collect();
        for (name, other) in &bits[1..] {
            assert_eq!(&bits[0].1, other, "{name} and {}", bits[0].0);
        }
        let plain = |index: usize| f32::from_bits(bits[0].1[index]);
        for i in 0..LANES {
            for j in 0..LANES {
                assert_eq!(plain(i * LANES + j), a[j][i]);
            }
            assert_eq!(plain(22 * LANES + i), a[0][i].mul_add(a[1][i], a[1][i]));
            assert_eq!(plain(23 * LANES + i), if i < count { a[0][i] } else { a[1][i] });
            assert_eq!(plain(25 * LANES + i), f16::from_f32(a[0][i]).to_f32());
            assert_eq!(plain(26 * LANES + i), bf16::from_f32(a[0][i]).to_f32());
        }
    }
}

struct Dots<'a> {
    numbers: &'a [u8; 384],
    s8: &'a [u8; 512],
    a: &'a [i8; BLOCK],
}

impl Kernel for Dots<'_> {
    type Output = [[f32; LANES]; 8];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let sum = self.a.iter().map(|a| i32::from(*a)).sum();
        let u4 = s.unpack_u4(self.numbers.first_chunk().unwrap());
        let u5 = s.unpack_u5(self.numbers.first_chunk().unwrap());
        let u6 = s.unpack_u6(self.numbers);
        let quad = i32::from_le_bytes(std::array::from_fn(|i| self.a[i] as u8));
        let halves = s.dot_u6_halves(&u6, self.a, [-5, 9]);
        let bytes = self.s8.first_chunk().unwrap();
        let all = [
            s.f32_from_i32(s.dot_u4(&u4, self.a, 77)),
            s.f32_from_i32(s.dot_s8(&s.unpack_s8(self.s8), self.a, sum)),
            s.f32_from_i32(s.dot_u6(&u5, self.a, -3)),
            s.f32_from_i32(halves[0]),
            s.f32_from_i32(halves[1]),
            s.f32_from_i32(s.dot_quad(s.zero_i32(), u4[0], quad)),
            s.load_u8(bytes),
            s.load_i8(bytes),
        ];
        let mut out = [[0.0; LANES]; 8];
        for (out, value) in out.iter_mut().zip(all) {
            s.store(value, out);
        }
        out
    }
}

/// What [`Dots`] must give in one lane, by the packed form's definition.
fn expected_dots(numbers: &[u8; 384], s8: &[u8; 512], a: &[i8; BLOCK], lane: usize) -> [i32; 8] {
    let mut expected = [77, 0, -3, -5, 9, 0, i32::from(s8[lane]), i32::from(s8[lane] as i8)];
    for (col, a) in a.iter().enumerate() {
        let (a, group, at) = (i32::from(*a), col / 4, lane * 4 + col % 4);
        let byte = numbers[col % 16 / 4 * 64 + at];
        let nibble = i32::from(if col < 16 { byte & 15 } else { byte >> 4 });
        let fifth = i32::from(numbers[256 + at] >> group & 1);
        let pair = i32::from(numbers[256 + group / 4 * 64 + at] >> (2 * (group % 4)) & 3);
        expected[0] += nibble * a;
        expected[1] += (i32::from(s8[group * 64 + at]) - 128) * a;
        expected[2] += (nibble + 16 * fifth) * a;
        expected[3 + col / 16] += (nibble + 16 * pair) * a;
        expected[5] += if group == 0 { nibble * a } else { 0 };
    }
    expected
}

#[test]
fn integer_dot_products_are_exact_even_at_the_extremes() {
    let mut noise = Noise::new(2);
    for round in 0..300 {
        let (mut numbers, mut s8, mut a) = ([0; 384], [0; 512], [0; BLOCK]);
        numbers.fill_with(|| if round < 2 { 0xff } else { noise.bits() as u8 });
        // Stored plus 128: 0 is -128 and 255 is 127.
        s8.fill_with(|| if round < 2 { [0, 255][round] } else { noise.bits() as u8 });
        a.fill_with(|| match round {
            0 => 127,
            1 => -127,
            _ => (noise.bits() % 255) as i8,
        });
        a.iter_mut().for_each(|a| *a = (*a).max(-127));
        for isa in Isa::available() {
            let dots = isa.run(Dots {
                numbers: &numbers,
                s8: &s8,
                a: &a,
            });
            for lane in 0..LANES {
                let found = dots.map(|dot| dot[lane]);
                let expected = expected_dots(&numbers, &s8, &a, lane).map(|x| x as f32);
                assert_eq!(found, expected, "{} round {round}", isa.name());
            }
        }
    }
}
