//! The own matrix product.

use super::harness::{HALF_STEP, Harness, near, same, text};
use kvasir_cuda::ops::{self, Gemm, GemmShape};

pub fn agrees_with_f64(h: &mut Harness<'_>) -> Result<(), String> {
    for (rows, cols, inner, shape) in [
        (1, 1, 8, GemmShape::Flat),
        (16, 32, 64, GemmShape::Flat),
        (19, 45, 200, GemmShape::Flat),
        (33, 70, 328, GemmShape::Tall),
        (130, 131, 72, GemmShape::Tall),
    ] {
        for is_f32 in [true, false] {
            let (x, weights) = (h.random.rounded(rows * inner, 1.0), h.random.rounded(cols * inner, 1.0));
            let found = product(h, &x, &weights, [rows, cols, inner], is_f32, shape)?;
            for (index, found) in found.iter().enumerate() {
                let pairs = (0..inner)
                    .map(|i| x[index / cols * inner + i].to_f64() * weights[index % cols * inner + i].to_f64());
                let (expected, size) = pairs.fold((0.0, 0.0), |(sum, size), pair| (sum + pair, size + pair.abs()));
                // Tensor cores cut the low bits of what they add: up to a step of f32 for each of inner / 8 sums.
                let tolerance = size * (inner as f64 / 8.0 + 2.0) * 2f64.powi(-23);
                let stored = if is_f32 { 0.0 } else { expected.abs() * HALF_STEP };
                near("product", index, f64::from(*found), expected, tolerance + stored)?;
            }
        }
    }
    Ok(())
}

pub fn rows_do_not_matter(h: &mut Harness<'_>) -> Result<(), String> {
    let (rows, cols, inner) = (67, 40, 136);
    let (x, weights) = (h.random.rounded(rows * inner, 1.0), h.random.rounded(cols * inner, 1.0));
    let all = product(h, &x, &weights, [rows, cols, inner], true, GemmShape::Tall)?;
    for (first, count) in [(0, 1), (66, 1), (5, 20)] {
        let some = &x[first * inner..(first + count) * inner];
        let found = product(h, some, &weights, [count, cols, inner], true, GemmShape::Flat)?;
        same(
            "rows of a smaller product",
            &found,
            &all[first * cols..(first + count) * cols],
        )?;
    }
    Ok(())
}

fn product(
    h: &mut Harness<'_>,
    x: &[half::bf16],
    weights: &[half::bf16],
    [rows, cols, inner]: [usize; 3],
    is_f32: bool,
    shape: GemmShape,
) -> Result<Vec<f32>, String> {
    let out = h.output(rows * cols * if is_f32 { 4 } else { 2 })?;
    let op = Gemm {
        x: &h.bf16s(x)?,
        weights: &h.bf16s(weights)?,
        out: &out,
        is_f32,
        rows,
        cols,
        inner,
    };
    ops::gemm(h.device, &op, shape).map_err(text)?;
    if is_f32 {
        return h.read_f32s(&out, rows * cols);
    }
    Ok(h.read_bf16s(&out, rows * cols)?.iter().map(|x| x.to_f32()).collect())
}
