//! Biases of projections.

use crate::aligned::SharedMut;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};

/// `x[row] += bias` for each row; `x` is `[rows, bias.len()]`, row-major. One addition for each element, after its product is complete.
///
/// # Errors
/// [`KernelError::Empty`] without a bias, [`KernelError::ShapeMismatch`] when `x` is not whole rows.
pub fn add_bias(cpu: &Cpu, x: &mut [f32], bias: &[f32]) -> Result<(), KernelError> {
    let width = bias.len();
    if width == 0 {
        return Err(KernelError::Empty { what: "bias" });
    }
    let rows = x.len() / width;
    expect_len("input of the bias", rows * width, x.len())?;
    let x = SharedMut::new(x);
    cpu.over_rows(rows, &|begin, end| {
        // SAFETY: the ranges of rows of one region are disjoint.
        let x = unsafe { x.slice(begin * width, (end - begin) * width) };
        for row in x.chunks_exact_mut(width) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_gets_the_bias_once() {
        for rows in [1, 9, 40] {
            let cpu = Cpu::new(2).unwrap();
            let mut x: Vec<f32> = (0..rows * 3).map(|i| i as f32).collect();
            add_bias(&cpu, &mut x, &[0.5, -1.0, 100.0]).unwrap();
            let expected = (0..rows * 3).map(|i| i as f32 + [0.5, -1.0, 100.0][i % 3]);
            assert!(x.into_iter().eq(expected));
        }
    }

    #[test]
    fn partial_rows_are_refused() {
        let cpu = Cpu::new(1).unwrap();
        let error = add_bias(&cpu, &mut [0.0; 5], &[1.0; 4]).unwrap_err();
        assert_eq!(
            error,
            KernelError::ShapeMismatch {
                what: "input of the bias",
                expected: 4,
                actual: 5
            }
        );
    }
}
