//! Columns of numbers, quantised into planes of symbols and back.
//!
//! ```text
//! columns  [axes][stride] of f32; the stride is the number of tokens rounded up to 16
//! high     [axes][stride] of bytes below 32, for entropy coding
//! low      [axes with a shift][stride] of bytes below 2^shift: the low bits of axes that need more than 32 symbols
//! ```

use super::columns::column_stride;
use crate::error::{KernelError, expect_len};
use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};

/// Rounds to a whole number when added and taken away again, for magnitudes below 2^22.
pub(super) const ROUNDER: f32 = 12_582_912.0;
/// Whole numbers beyond this many steps are clamped before they are looked at.
const STEPS_MAX: f32 = 1_000_000.0;
/// Most bits of a low plane.
const SHIFT_MAX: u32 = 5;

/// How the numbers of one axis become symbols.
///
/// With `v = (x - base) / step`: `q` is 0 when `|v| <= dead_zone`, else `|v| + rounding - 1/2` rounded to a whole number, with the sign of `v`.
/// What comes back is `base + step · q`, drawn towards zero by what the profile found numbers to lie there:
/// `first · clamp(q, -1, 1) + second · clamp(q, -2, 2)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AxisScale {
    /// Bits of the low plane, 0 to 5; 0: there is none.
    pub shift: u32,
    /// `q = symbol - offset`.
    pub offset: f32,
    /// Largest symbol, low bits included.
    pub symbol_max: f32,
    /// Size of a step; above 0.
    pub step: f32,
    /// What `q = 0` stands for.
    pub base: f32,
    /// Steps around the base that become 0.
    pub dead_zone: f32,
    /// Added before the fraction is cut off: 1/2 is rounding to nearest.
    pub rounding: f32,
    /// See above; in the numbers' unit.
    pub first: f32,
    /// See above.
    pub second: f32,
}

/// A number whose symbol is not its own: it lies outside of what the planes can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange {
    /// Token.
    pub token: u32,
    /// Axis.
    pub axis: u32,
    /// The number of steps.
    pub steps: i32,
}

impl AxisScale {
    /// What a number of steps stands for; the same bits as in [`symbols_to_columns`].
    pub fn value(&self, steps: i32) -> f32 {
        let q = steps as f32;
        let drawn = q.clamp(-2.0, 2.0).mul_add(self.second, self.base);
        q.mul_add(self.step, q.clamp(-1.0, 1.0).mul_add(self.first, drawn))
    }
}

/// Quantises `columns`, all finite, into `high` and `low`. Numbers out of range get the nearest symbol and are appended to `beyond`, axis by
/// axis.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when a buffer has another shape, or an axis more low bits than there are.
pub fn symbols_from_columns(
    isa: Isa,
    axes: &[AxisScale],
    tokens: usize,
    columns: &[f32],
    (high, low): (&mut [u8], &mut [u8]),
    beyond: &mut Vec<OutOfRange>,
) -> Result<(), KernelError> {
    check(axes, tokens, columns.len(), high.len(), low.len())?;
    isa.run(Quantise {
        axes,
        tokens,
        columns,
        high,
        low,
        beyond,
    });
    Ok(())
}

/// Writes what the symbols stand for.
///
/// # Errors
/// As [`symbols_from_columns`].
pub fn symbols_to_columns(
    isa: Isa,
    axes: &[AxisScale],
    tokens: usize,
    (high, low): (&[u8], &[u8]),
    columns: &mut [f32],
) -> Result<(), KernelError> {
    check(axes, tokens, columns.len(), high.len(), low.len())?;
    isa.run(Restore {
        axes,
        stride: column_stride(tokens),
        high,
        low,
        columns,
    });
    Ok(())
}

fn check(axes: &[AxisScale], tokens: usize, columns: usize, high: usize, low: usize) -> Result<(), KernelError> {
    let stride = column_stride(tokens);
    expect_len("columns", axes.len() * stride, columns)?;
    expect_len("symbols", axes.len() * stride, high)?;
    let with_low = axes.iter().filter(|axis| axis.shift > 0).count();
    expect_len("low bits", with_low * stride, low)?;
    match axes.iter().find(|axis| axis.shift > SHIFT_MAX) {
        None => Ok(()),
        Some(axis) => Err(KernelError::ShapeMismatch {
            what: "low bits of an axis",
            expected: SHIFT_MAX as usize,
            actual: axis.shift as usize,
        }),
    }
}

struct Quantise<'a> {
    axes: &'a [AxisScale],
    tokens: usize,
    columns: &'a [f32],
    high: &'a mut [u8],
    low: &'a mut [u8],
    beyond: &'a mut Vec<OutOfRange>,
}

impl Kernel for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let stride = column_stride(self.tokens);
        let (zero, rounder) = (s.splat(0.0), s.splat(ROUNDER));
        let mut lows = self.low.chunks_exact_mut(stride);
        let columns = self.columns.chunks_exact(stride);
        for (index, ((axis, column), high)) in self
            .axes
            .iter()
            .zip(columns)
            .zip(self.high.chunks_exact_mut(stride))
            .enumerate()
        {
            let stepper = Stepper::new(s, axis);
            let (offset, largest) = (s.splat(axis.offset), s.splat(axis.symbol_max));
            let mut apart = zero;
            let mut low = if axis.shift > 0 { lows.next() } else { None };
            let unit = (1u32 << axis.shift) as f32;
            for (at, (column, high)) in column
                .as_chunks::<LANES>()
                .0
                .iter()
                .zip(high.as_chunks_mut::<LANES>().0)
                .enumerate()
            {
                let wanted = s.add(stepper.steps(s, s.load(column)), offset);
                let symbol = s.max(s.min(wanted, largest), zero);
                let off = s.sub(wanted, symbol);
                apart = s.max(s.max(off, s.sub(zero, off)), apart);
                let Some(low) = low.as_deref_mut() else {
                    s.store_u8(symbol, high);
                    continue;
                };
                let scaled = s.fma(s.add(symbol, s.splat(0.5)), s.splat(1.0 / unit), s.splat(-0.5));
                let top = s.sub(s.add(scaled, rounder), rounder);
                s.store_u8(top, high);
                if let Some(low) = low[at * LANES..].first_chunk_mut() {
                    s.store_u8(s.fma(top, s.splat(-unit), symbol), low);
                }
            }
            if s.reduce_max(apart) > 0.0 {
                for (token, x) in column.iter().enumerate().take(self.tokens) {
                    let mut all = [0.0; LANES];
                    s.store(stepper.steps(s, s.splat(*x)), &mut all);
                    let symbol = all[0] + axis.offset;
                    if symbol < 0.0 || symbol > axis.symbol_max {
                        self.beyond.push(OutOfRange {
                            token: token as u32,
                            axis: index as u32,
                            steps: all[0] as i32,
                        });
                    }
                }
            }
        }
    }
}

/// An axis's way from numbers to steps, in registers.
struct Stepper<S: Simd> {
    base: S::F,
    inverse: S::F,
    dead_zone: S::F,
    bias: S::F,
}

impl<S: Simd> Stepper<S> {
    #[inline(always)]
    fn new(s: S, axis: &AxisScale) -> Self {
        Self {
            base: s.splat(axis.base),
            inverse: s.splat(1.0 / axis.step),
            dead_zone: s.splat(axis.dead_zone),
            bias: s.splat(axis.rounding - 0.5),
        }
    }

    #[inline(always)]
    fn steps(&self, s: S, x: S::F) -> S::F {
        let (zero, one, minus_one) = (s.splat(0.0), s.splat(1.0), s.splat(-1.0));
        let (huge, rounder) = (s.splat(1e30), s.splat(ROUNDER));
        let v = s.mul(s.sub(x, self.base), self.inverse);
        let v = s.max(s.min(v, s.splat(STEPS_MAX)), s.splat(-STEPS_MAX));
        let size = s.max(v, s.sub(zero, v));
        let whole = s.sub(s.add(s.add(size, self.bias), rounder), rounder);
        let open = s.max(s.min(s.mul(s.sub(size, self.dead_zone), huge), one), zero);
        let sign = s.max(s.min(s.mul(v, huge), one), minus_one);
        s.mul(s.mul(whole, open), sign)
    }
}

struct Restore<'a> {
    axes: &'a [AxisScale],
    stride: usize,
    high: &'a [u8],
    low: &'a [u8],
    columns: &'a mut [f32],
}

impl Kernel for Restore<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (one, two) = (s.splat(1.0), s.splat(2.0));
        let (minus_one, minus_two) = (s.splat(-1.0), s.splat(-2.0));
        let mut lows = self.low.chunks_exact(self.stride);
        let columns = self.columns.chunks_exact_mut(self.stride);
        for ((axis, column), high) in self.axes.iter().zip(columns).zip(self.high.chunks_exact(self.stride)) {
            let (offset, step, base) = (s.splat(axis.offset), s.splat(axis.step), s.splat(axis.base));
            let (first, second) = (s.splat(axis.first), s.splat(axis.second));
            let low = if axis.shift > 0 { lows.next() } else { None };
            let unit = s.splat((1u32 << axis.shift) as f32);
            for (at, (column, high)) in column
                .as_chunks_mut::<LANES>()
                .0
                .iter_mut()
                .zip(high.as_chunks::<LANES>().0)
                .enumerate()
            {
                let mut symbol = s.load_u8(high);
                if let Some(low) = low.and_then(|low| low[at * LANES..].first_chunk()) {
                    symbol = s.fma(symbol, unit, s.load_u8(low));
                }
                let steps = s.sub(symbol, offset);
                let drawn = s.fma(s.max(s.min(steps, two), minus_two), second, base);
                let drawn = s.fma(s.max(s.min(steps, one), minus_one), first, drawn);
                s.store(s.fma(steps, step, drawn), column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::Noise;

    /// Every third axis has low bits.
    fn axes(count: usize, noise: &mut Noise) -> Vec<AxisScale> {
        let all = (0..count).map(|index| {
            let shift = if index % 3 == 2 { 1 + index as u32 % 5 } else { 0 };
            let symbol_max = ((32u32 << shift) - 1) as f32;
            AxisScale {
                shift,
                offset: (symbol_max / 2.0).floor(),
                symbol_max,
                step: 0.02 + 0.02 * noise.unit().abs(),
                base: noise.unit(),
                dead_zone: 0.6,
                rounding: 0.45,
                first: -0.001,
                second: -0.0005,
            }
        });
        all.collect()
    }

    #[test]
    fn numbers_come_back_within_a_step_the_same_on_every_instruction_set() {
        for (tokens, count) in [(1, 1), (16, 16), (37, 50), (64, 33), (7, 20)] {
            let (mut noise, stride) = (Noise::new(count as u64), column_stride(tokens));
            let axes = axes(count, &mut noise);
            let low_count = axes.iter().filter(|axis| axis.shift > 0).count();
            let columns: Vec<f32> = axes
                .iter()
                .flat_map(|axis| (0..stride).map(|_| axis.base + noise.unit()).collect::<Vec<_>>())
                .collect();
            let mut seen = None;
            for isa in Isa::available() {
                let (mut high, mut low) = (vec![0; count * stride], vec![0; low_count * stride]);
                let (mut beyond, mut back) = (Vec::new(), vec![0.0; columns.len()]);
                symbols_from_columns(isa, &axes, tokens, &columns, (&mut high, &mut low), &mut beyond).unwrap();
                assert!(high.iter().all(|symbol| *symbol < 32));
                symbols_to_columns(isa, &axes, tokens, (&high, &low), &mut back).unwrap();
                for one in &beyond {
                    assert!((one.token as usize) < tokens);
                    back[one.axis as usize * stride + one.token as usize] = axes[one.axis as usize].value(one.steps);
                }
                for (index, (x, y)) in columns.iter().zip(&back).enumerate() {
                    let near = (x - y).abs() <= axes[index / stride].step * 0.65;
                    assert!(near || index % stride >= tokens, "{x} {y}");
                }
                let now = (high, low, beyond, back);
                assert_eq!(seen.get_or_insert_with(|| now.clone()), &now);
            }
        }
    }

    #[test]
    fn the_dead_zone_is_zero_and_what_is_out_of_range_is_told() {
        let axis = AxisScale {
            shift: 0,
            offset: 2.0,
            symbol_max: 4.0,
            step: 0.5,
            base: 1.0,
            dead_zone: 0.7,
            rounding: 0.5,
            first: 0.0,
            second: 0.0,
        };
        // In steps from the base: 0.6, 0.8, -1.6, 7, -2.4.
        let mut column = [0.0; 16];
        column[..5].copy_from_slice(&[1.3, 1.4, 0.2, 4.5, -0.2]);
        let (mut high, mut beyond) = ([0; 16], Vec::new());
        symbols_from_columns(Isa::detect(), &[axis], 5, &column, (&mut high, &mut []), &mut beyond).unwrap();
        assert_eq!(high[..5], [2, 3, 0, 4, 0]);
        assert_eq!(
            beyond,
            [OutOfRange {
                token: 3,
                axis: 0,
                steps: 7
            }]
        );
        assert_eq!(axis.value(7), 4.5);
        let wrong = symbols_from_columns(Isa::detect(), &[axis], 17, &column, (&mut high, &mut []), &mut beyond);
        assert!(wrong.is_err());
    }
}
