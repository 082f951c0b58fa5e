//! Eigenvectors of a symmetric matrix: Householder's tridiagonalisation, then implicit QL with Wilkinson's shift.
//!
//! Source: Golub & Van Loan, "Matrix Computations", 4th edition, sections 8.3.1 and 8.3.5. About 5 n³ operations; every inner loop runs over a
//! contiguous row.

/// Turns per eigenvalue after which the matrix is taken as it is; two or three are usual.
const TURNS_MAX: usize = 60;

/// Eigenvalues, largest first, and their unit eigenvectors as rows, `[n][n]`. `matrix` is row-major and symmetric.
///
/// # Panics
/// When `matrix` is not `n` by `n`.
pub(crate) fn eigen(n: usize, mut matrix: Vec<f64>) -> (Vec<f64>, Vec<f32>) {
    assert_eq!(matrix.len(), n * n, "a square matrix");
    let (mut diagonal, mut beside, betas) = tridiagonalise(n, &mut matrix);
    let mut vectors = vec![0.0_f32; n * n];
    for i in 0..n {
        vectors[i * n + i] = 1.0;
    }
    solve_tridiagonal(&mut diagonal, &mut beside, &mut vectors);
    // From the tridiagonal matrix's vectors to the matrix's own: the reflections, last first.
    let mut reflector = vec![0.0_f32; n];
    for k in (0..n.saturating_sub(2)).rev() {
        let tail = &mut reflector[..n - k - 1];
        tail.iter_mut()
            .zip(&matrix[k * n + k + 1..(k + 1) * n])
            .for_each(|(to, from)| *to = *from as f32);
        for row in vectors.chunks_exact_mut(n) {
            let row = &mut row[k + 1..];
            let amount = betas[k] as f32 * dot(row, tail);
            row.iter_mut().zip(&*tail).for_each(|(x, v)| *x -= amount * v);
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]).then(a.cmp(b)));
    let sorted = order
        .iter()
        .flat_map(|index| &vectors[index * n..(index + 1) * n])
        .copied()
        .collect();
    (order.iter().map(|index| diagonal[*index]).collect(), sorted)
}

/// Leaves reflector `k` in row `k` to the right of the diagonal; returns the diagonal, the elements beside it, and the reflectors' factors.
fn tridiagonalise(n: usize, a: &mut [f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut diagonal, mut beside, mut betas) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    for k in 0..n {
        diagonal[k] = a[k * n + k];
        if k + 2 >= n {
            if k + 1 < n {
                beside[k] = a[k * n + k + 1];
            }
            continue;
        }
        let (upper, lower) = a.split_at_mut((k + 1) * n);
        let v = &mut upper[k * n + k + 1..];
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length == 0.0 {
            continue;
        }
        let alpha = if v[0] > 0.0 { -length } else { length };
        v[0] -= alpha;
        let beta = 2.0 / v.iter().map(|x| x * x).sum::<f64>();
        (beside[k], betas[k]) = (alpha, beta);
        let rows = || lower.chunks_exact(n).map(|row| &row[k + 1..]);
        let mut w: Vec<f64> = rows()
            .map(|row| beta * row.iter().zip(&*v).map(|(x, y)| x * y).sum::<f64>())
            .collect();
        let half = beta / 2.0 * w.iter().zip(&*v).map(|(x, y)| x * y).sum::<f64>();
        w.iter_mut().zip(&*v).for_each(|(w, v)| *w -= half * v);
        for (i, row) in lower.chunks_exact_mut(n).enumerate() {
            let (vi, wi) = (v[i], w[i]);
            for ((x, v), w) in row[k + 1..].iter_mut().zip(&*v).zip(&w) {
                *x -= vi * w + wi * v;
            }
        }
    }
    (diagonal, beside, betas)
}

/// Turns rows of `vectors` along with the plane rotations that make the tridiagonal matrix diagonal.
fn solve_tridiagonal(d: &mut [f64], e: &mut [f64], vectors: &mut [f32]) {
    let n = d.len();
    for begin in 0..n {
        for _ in 0..TURNS_MAX {
            let small = |i: &usize| e[*i].abs() <= f64::EPSILON * (d[*i].abs() + d[*i + 1].abs());
            let end = (begin..n - 1).find(small).unwrap_or(n - 1);
            if end == begin {
                break;
            }
            // Wilkinson's shift, from the 2 by 2 block at `begin`.
            let g = (d[begin + 1] - d[begin]) / (2.0 * e[begin]);
            let r = g.hypot(1.0);
            let mut g = d[end] - d[begin] + e[begin] / (g + if g >= 0.0 { r } else { -r });
            let (mut sine, mut cosine, mut p) = (1.0, 1.0, 0.0);
            let mut split = false;
            for i in (begin..end).rev() {
                let (f, b) = (sine * e[i], cosine * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[end] = 0.0;
                    split = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                g = d[i + 1] - p;
                let r = (d[i] - g) * sine + 2.0 * cosine * b;
                p = sine * r;
                d[i + 1] = g + p;
                g = cosine * r - b;
                let (first, second) = vectors[i * n..(i + 2) * n].split_at_mut(n);
                let (s, c) = (sine as f32, cosine as f32);
                for (x, y) in first.iter_mut().zip(second) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
            }
            if !split {
                d[begin] -= p;
                e[begin] = g;
                e[end] = 0.0;
            }
        }
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (x, x_rest) = x.as_chunks::<16>();
    let (y, y_rest) = y.as_chunks::<16>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..16 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(n: usize, matrix: Vec<f64>) {
        let (values, vectors) = eigen(n, matrix.clone());
        let size = matrix.iter().fold(1e-9_f64, |largest, x| largest.max(x.abs())) * n as f64;
        assert!(values.is_sorted_by(|a, b| a >= b));
        for i in 0..n {
            let v: Vec<f64> = vectors[i * n..(i + 1) * n].iter().map(|x| f64::from(*x)).collect();
            for j in 0..n {
                let product: f64 = (0..n).map(|k| matrix[j * n + k] * v[k]).sum();
                assert!((product - values[i] * v[j]).abs() < 1e-4 * size, "vector {i}");
                let other: f64 = (0..n).map(|k| v[k] * f64::from(vectors[j * n + k])).sum();
                assert!((other - f64::from(u8::from(i == j))).abs() < 1e-4);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn vectors_are_orthonormal_and_only_stretched(n in 1usize..24, rank in 1usize..24, seed in any::<u32>()) {
            let mut state = seed | 1;
            let mut draw = || { state ^= state << 13; state ^= state >> 17; state ^= state << 5; f64::from(state) / 2f64.powi(31) - 1.0 };
            let rows: Vec<f64> = (0..n * rank).map(|_| draw()).collect();
            let product = |i: usize, j: usize| (0..rank).map(|k| rows[i * rank + k] * rows[j * rank + k]).sum::<f64>();
            check(n, (0..n * n).map(|at| product(at / n, at % n)).collect());
        }
    }

    #[test]
    fn known_matrices() {
        check(3, vec![0.0; 9]);
        check(4, (0..16).map(|at| f64::from(u8::from(at % 5 == 0)) * 3.0).collect());
        let (values, _) = eigen(2, vec![2.0, 1.0, 1.0, 2.0]);
        assert!((values[0] - 3.0).abs() < 1e-12 && (values[1] - 1.0).abs() < 1e-12);
        let n = 90;
        check(
            n,
            (0..n * n)
                .map(|at| 0.9_f64.powi((at / n).abs_diff(at % n) as i32))
                .collect(),
        );
    }
}
