//! Rows of numbers, quantised into planes of symbols and back.
//!
//! ```text
//! rows     [tokens][axes] of f32
//! symbols  [plane][tokens] of bytes; an axis has one plane, or two when its numbers need more than 32 symbols
//! ```

use crate::error::{KernelError, expect_len};
use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};

/// Rounds to a whole number when added and taken away again, for magnitudes below 2^22.
const ROUNDER: f32 = 12_582_912.0;
/// Whole numbers beyond this many steps are clamped before they are looked at.
const STEPS_MAX: f32 = 1_000_000.0;

/// How the numbers of one axis become symbols.
///
/// With `v = (x - base) / step`: `q` is 0 when `|v| <= dead_zone`, else `|v| + rounding - 1/2` rounded to a whole number, with the sign of `v`.
/// What comes back is `base + step · q`, drawn towards zero by what the profile found numbers to lie there:
/// `first · clamp(q, -1, 1) + second · clamp(q, -2, 2)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AxisScale {
    /// Plane of the symbols. With a shift, the next plane holds the low bits.
    pub plane: u32,
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

/// A number whose symbol is not its own: it lies outside of what the plane can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange {
    /// Row.
    pub token: u32,
    /// Column.
    pub axis: u32,
    /// The number of steps.
    pub steps: i32,
}

impl AxisScale {
    /// What a number of steps stands for; the same bits as in [`symbols_to_rows`].
    pub fn value(&self, steps: i32) -> f32 {
        let q = steps as f32;
        let drawn = q.clamp(-2.0, 2.0).mul_add(self.second, self.base);
        q.mul_add(self.step, q.clamp(-1.0, 1.0).mul_add(self.first, drawn))
    }

    fn planes(&self) -> std::ops::Range<usize> {
        let plane = self.plane as usize;
        plane..plane + 1 + usize::from(self.shift > 0)
    }
}

/// Quantises `rows`, `[tokens][axes]`, all finite, into `symbols`, `[planes][tokens]`. Numbers out of range get the nearest symbol and are
/// appended to `beyond`.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when a buffer has another shape, or an axis a plane that is not there.
pub fn symbols_from_rows(
    isa: Isa,
    axes: &[AxisScale],
    tokens: usize,
    rows: &[f32],
    symbols: &mut [u8],
    beyond: &mut Vec<OutOfRange>,
) -> Result<(), KernelError> {
    check(axes, tokens, rows.len(), symbols.len())?;
    isa.run(Quantise {
        axes,
        tokens,
        rows,
        symbols,
        beyond,
    });
    Ok(())
}

/// Writes what the symbols stand for, `[tokens][axes]`.
///
/// # Errors
/// As [`symbols_from_rows`].
pub fn symbols_to_rows(
    isa: Isa,
    axes: &[AxisScale],
    tokens: usize,
    symbols: &[u8],
    rows: &mut [f32],
) -> Result<(), KernelError> {
    check(axes, tokens, rows.len(), symbols.len())?;
    isa.run(Restore {
        axes,
        tokens,
        symbols,
        rows,
    });
    Ok(())
}

fn check(axes: &[AxisScale], tokens: usize, rows: usize, symbols: usize) -> Result<(), KernelError> {
    expect_len("rows", axes.len() * tokens, rows)?;
    let planes = axes.iter().map(|axis| axis.planes().end).max().unwrap_or(0);
    if planes.saturating_mul(tokens) > symbols || axes.iter().any(|axis| axis.shift > 5) {
        let expected = planes.saturating_mul(tokens);
        return Err(KernelError::ShapeMismatch {
            what: "symbols",
            expected,
            actual: symbols,
        });
    }
    Ok(())
}

/// One number of each of up to 16 axes, side by side.
fn lanes(axes: &[AxisScale], of: impl Fn(&AxisScale) -> f32) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    for (lane, axis) in all.iter_mut().zip(axes) {
        *lane = of(axis);
    }
    all
}

struct Quantise<'a> {
    axes: &'a [AxisScale],
    tokens: usize,
    rows: &'a [f32],
    symbols: &'a mut [u8],
    beyond: &'a mut Vec<OutOfRange>,
}

impl Kernel for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.axes.len();
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let (huge, rounder) = (s.splat(1e30), s.splat(ROUNDER));
        let (low_limit, high_limit) = (s.splat(-STEPS_MAX), s.splat(STEPS_MAX));
        for (index, axes) in self.axes.chunks(LANES).enumerate() {
            let column = index * LANES;
            let base = s.load(&lanes(axes, |axis| axis.base));
            let inverse = s.load(&lanes(axes, |axis| 1.0 / axis.step));
            let dead_zone = s.load(&lanes(axes, |axis| axis.dead_zone));
            let bias = s.load(&lanes(axes, |axis| axis.rounding - 0.5));
            let offset = s.load(&lanes(axes, |axis| axis.offset));
            let largest = s.load(&lanes(axes, |axis| axis.symbol_max));
            for token in (0..self.tokens).step_by(LANES) {
                let count = (self.tokens - token).min(LANES);
                let mut tile = [zero; LANES];
                let mut wide = [zero; LANES];
                let mut apart = zero;
                for i in 0..count {
                    let x = load_part(s, &self.rows[(token + i) * width + column..], axes.len());
                    let v = s.max(s.min(s.mul(s.sub(x, base), inverse), high_limit), low_limit);
                    let size = s.max(v, s.sub(zero, v));
                    let whole = s.sub(s.add(s.add(size, bias), rounder), rounder);
                    let open = s.max(s.min(s.mul(s.sub(size, dead_zone), huge), one), zero);
                    let sign = s.max(s.min(s.mul(v, huge), one), s.sub(zero, one));
                    let steps = s.mul(s.mul(whole, open), sign);
                    let wanted = s.add(steps, offset);
                    let symbol = s.max(s.min(wanted, largest), zero);
                    let off = s.sub(wanted, symbol);
                    apart = s.max(s.max(off, s.sub(zero, off)), apart);
                    tile[i] = symbol;
                    wide[i] = steps;
                }
                if s.reduce_max(apart) > 0.0 {
                    for i in 0..count {
                        let mut steps = [0.0; LANES];
                        s.store(wide[i], &mut steps);
                        for (lane, axis) in axes.iter().enumerate() {
                            let symbol = steps[lane] + axis.offset;
                            if symbol < 0.0 || symbol > axis.symbol_max {
                                let (token, axis) = ((token + i) as u32, (column + lane) as u32);
                                self.beyond.push(OutOfRange {
                                    token,
                                    axis,
                                    steps: steps[lane] as i32,
                                });
                            }
                        }
                    }
                }
                s.transpose(&mut tile);
                for (lane, axis) in axes.iter().enumerate() {
                    let at = axis.plane as usize * self.tokens + token;
                    if axis.shift == 0 {
                        store_part(s, tile[lane], &mut self.symbols[at..at + count]);
                        continue;
                    }
                    let unit = (1u32 << axis.shift) as f32;
                    let scaled = s.fma(s.add(tile[lane], s.splat(0.5)), s.splat(1.0 / unit), s.splat(-0.5));
                    let high = s.sub(s.add(scaled, rounder), rounder);
                    let low = s.fma(high, s.splat(-unit), tile[lane]);
                    store_part(s, high, &mut self.symbols[at..at + count]);
                    store_part(s, low, &mut self.symbols[at + self.tokens..at + self.tokens + count]);
                }
            }
        }
    }
}

struct Restore<'a> {
    axes: &'a [AxisScale],
    tokens: usize,
    symbols: &'a [u8],
    rows: &'a mut [f32],
}

impl Kernel for Restore<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.axes.len();
        let (one, two) = (s.splat(1.0), s.splat(2.0));
        let (minus_one, minus_two) = (s.splat(-1.0), s.splat(-2.0));
        for (index, axes) in self.axes.chunks(LANES).enumerate() {
            let column = index * LANES;
            let offset = s.load(&lanes(axes, |axis| axis.offset));
            let step = s.load(&lanes(axes, |axis| axis.step));
            let base = s.load(&lanes(axes, |axis| axis.base));
            let first = s.load(&lanes(axes, |axis| axis.first));
            let second = s.load(&lanes(axes, |axis| axis.second));
            for token in (0..self.tokens).step_by(LANES) {
                let count = (self.tokens - token).min(LANES);
                let mut tile = [s.splat(0.0); LANES];
                for (lane, axis) in axes.iter().enumerate() {
                    let at = axis.plane as usize * self.tokens + token;
                    let mut symbol = load_bytes(s, &self.symbols[at..at + count]);
                    if axis.shift > 0 {
                        let low = load_bytes(s, &self.symbols[at + self.tokens..at + self.tokens + count]);
                        symbol = s.fma(symbol, s.splat((1u32 << axis.shift) as f32), low);
                    }
                    tile[lane] = symbol;
                }
                s.transpose(&mut tile);
                for i in 0..count {
                    let steps = s.sub(tile[i], offset);
                    let drawn = s.fma(s.max(s.min(steps, two), minus_two), second, base);
                    let drawn = s.fma(s.max(s.min(steps, one), minus_one), first, drawn);
                    let value = s.fma(steps, step, drawn);
                    let to = &mut self.rows[(token + i) * width + column..];
                    match to.first_chunk_mut::<LANES>() {
                        Some(to) if axes.len() == LANES => s.store(value, to),
                        _ => {
                            let mut all = [0.0; LANES];
                            s.store(value, &mut all);
                            to[..axes.len()].copy_from_slice(&all[..axes.len()]);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn load_part<S: Simd>(s: S, from: &[f32], count: usize) -> S::F {
    match from.first_chunk::<LANES>() {
        Some(from) if count == LANES => s.load(from),
        _ => {
            let mut all = [0.0; LANES];
            all[..count].copy_from_slice(&from[..count]);
            s.load(&all)
        }
    }
}

#[inline(always)]
fn load_bytes<S: Simd>(s: S, from: &[u8]) -> S::F {
    match from.first_chunk::<LANES>() {
        Some(from) => s.load_u8(from),
        None => {
            let mut all = [0; LANES];
            all[..from.len()].copy_from_slice(from);
            s.load_u8(&all)
        }
    }
}

#[inline(always)]
fn store_part<S: Simd>(s: S, value: S::F, to: &mut [u8]) {
    match to.first_chunk_mut::<LANES>() {
        Some(to) => s.store_u8(value, to),
        None => {
            let mut all = [0; LANES];
            s.store_u8(value, &mut all);
            to.copy_from_slice(&all[..to.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::Noise;

    /// Every third axis has low bits; planes follow each other.
    fn axes(count: usize, noise: &mut Noise) -> (Vec<AxisScale>, usize) {
        let mut plane = 0;
        let all = (0..count).map(|index| {
            let shift = if index % 3 == 2 { 1 + index as u32 % 5 } else { 0 };
            let symbol_max = ((32u32 << shift) - 1) as f32;
            let axis = AxisScale {
                plane,
                shift,
                offset: (symbol_max / 2.0).floor(),
                symbol_max,
                step: 0.02 + 0.02 * noise.unit().abs(),
                base: noise.unit(),
                dead_zone: 0.6,
                rounding: 0.45,
                first: -0.001,
                second: -0.0005,
            };
            plane += 1 + u32::from(shift > 0);
            axis
        });
        let all: Vec<AxisScale> = all.collect();
        (all, plane as usize)
    }

    #[test]
    fn numbers_come_back_within_a_step_the_same_on_every_instruction_set() {
        for (tokens, count) in [(1, 1), (16, 16), (37, 50), (64, 33), (7, 20)] {
            let mut noise = Noise::new(count as u64);
            let (axes, planes) = axes(count, &mut noise);
            let rows: Vec<f32> = (0..tokens)
                .flat_map(|_| axes.iter().map(|axis| axis.base + noise.unit()).collect::<Vec<_>>())
                .collect();
            let mut seen: Option<(Vec<u8>, Vec<OutOfRange>, Vec<f32>)> = None;
            for isa in Isa::available() {
                let (mut symbols, mut beyond, mut back) = (vec![0; planes * tokens], Vec::new(), vec![0.0; rows.len()]);
                symbols_from_rows(isa, &axes, tokens, &rows, &mut symbols, &mut beyond).unwrap();
                symbols_to_rows(isa, &axes, tokens, &symbols, &mut back).unwrap();
                for one in &beyond {
                    back[one.token as usize * count + one.axis as usize] = axes[one.axis as usize].value(one.steps);
                }
                for (index, (x, y)) in rows.iter().zip(&back).enumerate() {
                    assert!((x - y).abs() <= axes[index % count].step * 0.65, "{x} {y}");
                }
                beyond.sort_by_key(|one| (one.token, one.axis));
                match &seen {
                    None => seen = Some((symbols, beyond, back)),
                    Some(first) => assert_eq!((&symbols, &beyond, &back), (&first.0, &first.1, &first.2)),
                }
            }
        }
    }

    #[test]
    fn the_dead_zone_is_zero_and_what_is_out_of_range_is_told() {
        let axis = AxisScale {
            plane: 0,
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
        let rows = [1.3, 1.4, 0.2, 4.5, -0.2];
        let (mut symbols, mut beyond) = ([0; 5], Vec::new());
        symbols_from_rows(Isa::detect(), &[axis], 5, &rows, &mut symbols, &mut beyond).unwrap();
        assert_eq!(symbols, [2, 3, 0, 4, 0]);
        assert_eq!(
            beyond,
            [OutOfRange {
                token: 3,
                axis: 0,
                steps: 7
            }]
        );
        assert_eq!(axis.value(7), 4.5);
        assert!(symbols_from_rows(Isa::detect(), &[axis], 6, &rows, &mut symbols, &mut beyond).is_err());
    }
}
