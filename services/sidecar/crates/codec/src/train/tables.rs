//! Where to cut an axis into symbols, and how probable they are.

use crate::error::CodecError;
use crate::profile::CodeGroup;
use kvasir_kernels::{AxisScale, RANS_BITS, RANS_SYMBOLS_MAX, RansTable};

/// Numbers of steps that are counted apart; larger ones count as the largest, and are told apart in a chunk.
const STEPS_MAX: usize = 480;
/// Share of numbers that may lie outside an axis's symbols: each costs eight bytes.
const OUTSIDE_SHARE: f64 = 5e-5;
/// Weight of the smooth guess that is added to what was counted, in tokens.
const GUESS: f64 = 1.0;
/// Tokens' worth of doubt about where within a step numbers lie.
const CENTRE_DOUBT: f64 = 20.0;
/// Rounds of choosing borders by the price of the symbols that they lead to.
const ROUNDS: usize = 3;

/// One axis with its tables.
pub(super) struct AxisCode {
    scale: AxisScale,
    /// Of symbols without their low bits.
    weights: Vec<f64>,
    /// Share of symbols that are not zero.
    pub(super) active_share: f32,
}

/// What falls where, for some borders.
struct Counts {
    /// By number of steps, negative ones first.
    steps: Vec<u32>,
    /// Sum of what numbers exceed 1 step, and 2 or more steps, by; and how many there are.
    beyond: [(f64, f64); 2],
}

impl AxisCode {
    /// Fits borders, centres and tables to centred numbers. With `bit_price` λ a border between two symbols lies where their squared errors,
    /// in steps, differ by λ times their bits (entropy-constrained scalar quantisation: Chou, Lookabaugh & Gray, 1989).
    pub(super) fn fit(centred: &[f32], base: f32, step: f32, bit_price: f32) -> Self {
        let (mut dead_zone, mut rounding) = (0.5 + bit_price, 0.5_f32);
        for _ in 0..ROUNDS {
            let counts = Counts::of(centred, step, dead_zone, rounding);
            let at =
                |steps: usize| f64::from(counts.steps[STEPS_MAX + steps] + counts.steps[STEPS_MAX - steps]) / 2.0 + 0.5;
            let nonzero: f64 = (1..=STEPS_MAX).map(at).sum();
            let further: f64 = (2..=STEPS_MAX)
                .map(|steps| (steps - 1) as f64 * (at(steps) - 0.5))
                .sum();
            let ratio = (further / (further + nonzero)).max(1.0 / 64.0);
            let zero = f64::from(counts.steps[STEPS_MAX]) + 0.5;
            let dearer = (zero / at(1)).log2().max(0.0) as f32;
            dead_zone = (0.5 + bit_price / 2.0 * dearer).clamp(0.5, 1.2);
            rounding = (0.5 + bit_price / 2.0 * ratio.log2() as f32).clamp(0.2, 0.5);
        }
        let counts = Counts::of(centred, step, dead_zone, rounding);
        let [first, second] = counts
            .beyond
            .map(|(sum, count)| (sum / (count + CENTRE_DOUBT)) as f32 * step);
        let outside = (OUTSIDE_SHARE * centred.len() as f64) as u32;
        let largest = |allowed: u32| {
            let mut left = allowed;
            (1..=STEPS_MAX).rev().find(|steps| {
                let here = counts.steps[STEPS_MAX + steps] + counts.steps[STEPS_MAX - steps];
                let fits = here <= left;
                left = left.saturating_sub(here);
                !fits
            })
        };
        let all = largest(0).unwrap_or(0);
        let reach = if 2 * all < RANS_SYMBOLS_MAX {
            all
        } else {
            largest(outside).unwrap_or(0).max(RANS_SYMBOLS_MAX / 2 - 1)
        };
        let mut shift = 0;
        while 2 * reach + 1 > RANS_SYMBOLS_MAX << shift {
            shift += 1;
        }
        let symbols = (2 * reach + 1).div_ceil(1 << shift);
        let mean_size: f64 = counts
            .steps
            .iter()
            .enumerate()
            .map(|(at, count)| at.abs_diff(STEPS_MAX) as f64 * f64::from(*count))
            .sum::<f64>()
            / centred.len() as f64;
        let mut weights = vec![0.0; symbols];
        let guess = |steps: i64| (-(steps.abs() as f64) / (mean_size + 0.2)).exp();
        let all_guesses: f64 = (-(reach as i64)..=reach as i64).map(guess).sum();
        for symbol in 0..symbols << shift {
            let steps = symbol as i64 - reach as i64;
            let counted = usize::try_from(steps + STEPS_MAX as i64)
                .ok()
                .and_then(|at| counts.steps.get(at))
                .copied()
                .unwrap_or(0);
            weights[symbol >> shift] += f64::from(counted) + GUESS * guess(steps) / all_guesses;
        }
        let scale = AxisScale {
            shift: shift as u32,
            offset: reach as f32,
            symbol_max: ((symbols << shift) - 1) as f32,
            step,
            base,
            dead_zone,
            rounding,
            first: 2.0 * first - second,
            second: second - first,
        };
        let active_share = 1.0 - counts.steps[STEPS_MAX] as f32 / centred.len() as f32;
        Self {
            scale,
            weights,
            active_share,
        }
    }
}

impl Counts {
    fn of(centred: &[f32], step: f32, dead_zone: f32, rounding: f32) -> Self {
        let mut counts = Self {
            steps: vec![0; 2 * STEPS_MAX + 1],
            beyond: [(0.0, 0.0); 2],
        };
        let inverse = 1.0 / step;
        for x in centred {
            let v = x * inverse;
            let size = v.abs();
            let whole = if size <= dead_zone {
                0.0
            } else {
                (size + rounding).floor()
            };
            let steps = whole.min(STEPS_MAX as f32) as usize;
            counts.steps[if v < 0.0 { STEPS_MAX - steps } else { STEPS_MAX + steps }] += 1;
            if steps > 0 {
                let (sum, count) = &mut counts.beyond[usize::from(steps > 1)];
                *sum += f64::from(size - whole);
                *count += 1.0;
            }
        }
        counts
    }
}

/// Puts axes side by side.
pub(super) fn code_group(codes: Vec<AxisCode>) -> Result<CodeGroup, CodecError> {
    let mut group = CodeGroup {
        axes: Vec::with_capacity(codes.len()),
        tables: Vec::new(),
    };
    for code in codes {
        group.axes.push(code.scale);
        group.tables.push(table_of(&code.weights)?);
    }
    Ok(group)
}

/// The table nearest to weights: every symbol at least 1, the sum exact.
pub(super) fn table_of(weights: &[f64]) -> Result<RansTable, CodecError> {
    let all = 1u32 << RANS_BITS;
    let total: f64 = weights.iter().sum();
    let spare = f64::from(all) - weights.len() as f64;
    let mut freqs: Vec<u16> = weights
        .iter()
        .map(|weight| 1 + (weight / total * spare) as u16)
        .collect();
    let given: u32 = freqs.iter().map(|freq| u32::from(*freq)).sum();
    let likeliest = freqs
        .iter()
        .enumerate()
        .max_by_key(|(_, freq)| **freq)
        .map_or(0, |(index, _)| index);
    freqs[likeliest] += all.saturating_sub(given) as u16;
    Ok(RansTable::new(&freqs)?)
}
