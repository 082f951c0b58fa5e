//! Root-mean-square norm.

use crate::aligned::SharedMut;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::isa::Kernel;
use crate::simd::{LANES, Simd};

/// Root-mean-square norm of each row: `out = x / sqrt(mean(x²) + eps) · weight`.
///
/// Shapes, row-major: `x` and `out` are `[rows, width]`, `weight` is `[width]`. Squares are summed in f32 in 16 interleaved partial sums,
/// left to right, then in a fixed tree. Source: Zhang & Sennrich, NeurIPS 2019.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when `x` is not whole rows or `out` differs from `x`.
pub fn rmsnorm(cpu: &Cpu, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) -> Result<(), KernelError> {
    let width = weight.len();
    if width == 0 {
        return Err(KernelError::Empty { what: "norm weight" });
    }
    let rows = x.len() / width;
    expect_len("input of the norm", rows * width, x.len())?;
    expect_len("output of the norm", x.len(), out.len())?;
    let out = SharedMut::new(out);
    cpu.over_rows(rows, &|begin, end| {
        // SAFETY: the ranges of rows of one region are disjoint.
        let out = unsafe { out.slice(begin * width, (end - begin) * width) };
        cpu.isa.run(RmsNorm {
            x: &x[begin * width..end * width],
            out,
            weight,
            eps,
        });
    });
    Ok(())
}

struct RmsNorm<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        let (weights, weight_tail) = self.weight.as_chunks::<LANES>();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (chunks, tail) = x.as_chunks::<LANES>();
            let mut squares = s.splat(0.0);
            for chunk in chunks {
                let chunk = s.load(chunk);
                squares = s.fma(chunk, chunk, squares);
            }
            let mut sum = s.reduce_sum(squares);
            for value in tail {
                sum += value * value;
            }
            let factor = 1.0 / (sum / width as f32 + self.eps).sqrt();
            let (out_chunks, out_tail) = out.as_chunks_mut::<LANES>();
            for ((x, w), out) in chunks.iter().zip(weights).zip(out_chunks) {
                s.store(s.mul(s.mul(s.load(x), s.splat(factor)), s.load(w)), out);
            }
            for ((x, w), out) in tail.iter().zip(weight_tail).zip(out_tail) {
                *out = x * factor * w;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn agrees_with_f64_and_is_the_same_on_every_instruction_set() {
        for width in [5, 16, 64, 83] {
            let x: Vec<f32> = (0..3 * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
            let weight: Vec<f32> = (0..width).map(|i| 0.5 + i as f32 / width as f32).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 1).unwrap();
                let mut out = vec![0.0; x.len()];
                rmsnorm(&cpu, &mut out, &x, &weight, 1e-5).unwrap();
                for (row, out) in x.chunks(width).zip(out.chunks(width)) {
                    let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
                    for ((x, w), out) in row.iter().zip(&weight).zip(out) {
                        let expected = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*w);
                        // A sum of n positive terms in f32, a root and three products: a few units in the last place.
                        assert!((f64::from(*out) - expected).abs() <= 1e-6 * expected.abs());
                    }
                }
                assert_eq!(&out, first.get_or_insert_with(|| out.clone()), "{}", isa.name());
            }
        }
    }

    #[test]
    fn partial_rows_are_refused() {
        let cpu = Cpu::new(1).unwrap();
        let error = rmsnorm(&cpu, &mut [0.0; 5], &[0.0; 5], &[1.0; 4], 0.0).unwrap_err();
        assert_eq!(
            error,
            KernelError::ShapeMismatch {
                what: "input of the norm",
                expected: 4,
                actual: 5
            }
        );
    }
}
