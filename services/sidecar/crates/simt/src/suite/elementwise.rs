//! Embedding, norm, bias, gate.

use super::harness::{HALF_STEP, Harness, near, same, text};
use kvasir_cuda::ops::{self, Activation, RmsNorm};

pub fn embedding(h: &mut Harness<'_>) -> Result<(), String> {
    for (vocab, width, rows) in [(3, 8, 1), (11, 40, 7), (70, 1032, 5)] {
        let table = h.random.rounded(vocab * width, 1.0);
        let ids: Vec<u32> = (0..rows).map(|_| h.random.range(0, vocab) as u32).collect();
        let scale = h.random.pick(&[1.0, 1.5]);
        let out = h.output(rows * width * 4)?;
        ops::embedding(h.device, &h.bf16s(&table)?, &h.u32s(&ids)?, &out, [rows, width], scale).map_err(text)?;
        let expected: Vec<f32> = ids
            .iter()
            .flat_map(|id| {
                table[*id as usize * width..][..width]
                    .iter()
                    .map(|x| x.to_f32() * scale)
            })
            .collect();
        same("embedding", &h.read_f32s(&out, rows * width)?, &expected)?;
    }
    Ok(())
}

pub fn rmsnorm(h: &mut Harness<'_>) -> Result<(), String> {
    for (width, rows, all) in [(4, 1, 1), (64, 3, 5), (576, 2, 2), (1100, 4, 9)] {
        for variant in 0..4 {
            let (has_delta, has_bias) = (variant & 1 != 0, variant & 2 != 0);
            let deviation = h.random.pick(&[1e-3, 1.0, 300.0]);
            let hidden = h.random.normals(all * width, deviation);
            let delta = h.random.normals(all * width, deviation);
            let bias = h.random.normals(width, 0.1);
            let weight = h.random.normals(width, 1.0);
            let chosen: Vec<u32> = h.random.permutation(all)[..rows].to_vec();
            let is_indexed = all > rows || h.random.range(0, 2) == 0;
            let [d, b, index] = [h.f32s(&delta)?, h.f32s(&bias)?, h.u32s(&chosen)?];
            let (buffer, out) = (h.f32s(&hidden)?, h.output(rows * width * 2)?);
            let op = RmsNorm {
                hidden: &buffer,
                delta: has_delta.then_some(&d),
                bias: has_bias.then_some(&b),
                weight: &h.f32s(&weight)?,
                out: &out,
                row_index: is_indexed.then_some(&index),
                rows,
                width,
                eps: 1e-5,
            };
            ops::rmsnorm(h.device, op).map_err(text)?;
            let (out, after) = (h.read_bf16s(&out, rows * width)?, h.read_f32s(&buffer, all * width)?);
            let mut summed = hidden.clone();
            for row in 0..rows {
                let from = if is_indexed { chosen[row] as usize } else { row };
                for i in 0..width {
                    let x = &mut summed[from * width + i];
                    *x += if has_delta { delta[from * width + i] } else { 0.0 };
                    *x += if has_bias { bias[i] } else { 0.0 };
                }
                let x = &summed[from * width..][..width];
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for i in 0..width {
                    let expected = f64::from(x[i]) / (mean + f64::from(1e-5_f32)).sqrt() * f64::from(weight[i]);
                    let tolerance = expected.abs() * (HALF_STEP + 1e-5) + 1e-37;
                    near(
                        "norm",
                        row * width + i,
                        out[row * width + i].to_f64(),
                        expected,
                        tolerance,
                    )?;
                }
            }
            same("residual", &after, &summed)?;
        }
    }
    Ok(())
}

pub fn add_bias(h: &mut Harness<'_>) -> Result<(), String> {
    for (rows, width) in [(1, 4), (7, 36), (3, 1028)] {
        let (x, bias) = (h.random.normals(rows * width, 1.0), h.random.normals(width, 1.0));
        let buffer = h.f32s(&x)?;
        ops::add_bias(h.device, &buffer, &h.f32s(&bias)?, [rows, width]).map_err(text)?;
        let expected: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + bias[i % width]).collect();
        same("bias", &h.read_f32s(&buffer, rows * width)?, &expected)?;
    }
    Ok(())
}

pub fn gated(h: &mut Harness<'_>) -> Result<(), String> {
    for (rows, width) in [(1, 8), (5, 96), (2, 1048)] {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let deviation = h.random.pick(&[0.5, 4.0, 60.0]);
            let gate_up = h.random.rounded(rows * 2 * width, deviation);
            let out = h.output(rows * width * 2)?;
            ops::gated(h.device, &h.bf16s(&gate_up)?, &out, [rows, width], activation).map_err(text)?;
            for (index, found) in h.read_bf16s(&out, rows * width)?.iter().enumerate() {
                let gate = gate_up[index / width * 2 * width + index % width].to_f64();
                let up = gate_up[index / width * 2 * width + width + index % width].to_f64();
                let argument = match activation {
                    Activation::Silu => gate,
                    Activation::GeluTanh => {
                        2.0 * (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3))
                    }
                };
                let expected = gate / (1.0 + (-argument).exp()) * up;
                // The exponential's argument rounds to f32, which moves large negative ones by their size.
                let slack = 1e-5 + argument.abs() * 3e-7;
                near(
                    "gate",
                    index,
                    found.to_f64(),
                    expected,
                    expected.abs() * (HALF_STEP + slack) + 1e-30,
                )?;
            }
        }
    }
    Ok(())
}
