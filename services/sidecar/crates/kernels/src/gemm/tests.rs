//! Products against f64 over the exact weights, and the promise that only the row decides the bits.

use super::*;
use crate::isa::Isa;
use crate::simd::BLOCK;
use crate::simd::tests::Noise;
use half::{bf16, f16};

const TYPES: [WeightType; 6] = [
    WeightType::F32,
    WeightType::F16,
    WeightType::Bf16,
    WeightType::Q8_0,
    WeightType::Q4_0,
    WeightType::Q4_1,
];

/// A random matrix in its file format, and its exact values by the format's definition.
fn random_matrix(weight_type: WeightType, rows: usize, cols: usize, noise: &mut Noise) -> (PackedMatrix, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    let scale = |noise: &mut Noise| f16::from_f32(0.002 + noise.unit().abs() * 0.05);
    for _ in 0..rows {
        if !weight_type.is_quantised() {
            for _ in 0..cols {
                let value = noise.unit();
                let (raw, exact) = match weight_type {
                    WeightType::F32 => (value.to_le_bytes().to_vec(), value),
                    WeightType::F16 => (
                        f16::from_f32(value).to_le_bytes().to_vec(),
                        f16::from_f32(value).to_f32(),
                    ),
                    _ => (
                        bf16::from_f32(value).to_le_bytes().to_vec(),
                        bf16::from_f32(value).to_f32(),
                    ),
                };
                bytes.extend(raw);
                values.push(exact);
            }
            continue;
        }
        for _ in 0..cols / BLOCK {
            let d = scale(noise);
            bytes.extend(d.to_le_bytes());
            let m = f16::from_f32(-8.0 * d.to_f32() * noise.unit().abs());
            if weight_type == WeightType::Q4_1 {
                bytes.extend(m.to_le_bytes());
            }
            let q: Vec<u8> = (0..BLOCK).map(|_| noise.bits() as u8).collect();
            match weight_type {
                WeightType::Q8_0 => {
                    bytes.extend(&q);
                    values.extend(q.iter().map(|q| d.to_f32() * f32::from(*q as i8)));
                }
                _ => {
                    bytes.extend((0..16).map(|i| q[i] & 15 | q[i + 16] << 4));
                    let nibbles = q.iter().map(|q| f32::from(q & 15));
                    if weight_type == WeightType::Q4_0 {
                        values.extend(nibbles.map(|q| d.to_f32() * (q - 8.0)));
                    } else {
                        values.extend(nibbles.map(|q| d.to_f32() * q + m.to_f32()));
                    }
                }
            }
        }
    }
    (PackedMatrix::pack(weight_type, rows, cols, &bytes).unwrap(), values)
}

fn multiply(cpu: &Cpu, weights: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / weights.cols();
    let mut quantised = QuantisedRows::default();
    if weights.weight_type().is_quantised() {
        quantised.quantise(cpu, x, rows, weights.cols()).unwrap();
    }
    let mut out = vec![0.0; rows * weights.rows()];
    let x = Activations {
        dense: x,
        quantised: &quantised,
        rows,
    };
    linear(
        cpu,
        x,
        &mut [Product {
            weights,
            out: &mut out,
            accumulate: false,
        }],
    )
    .unwrap();
    out
}

#[test]
fn products_stay_within_the_bound_that_quantising_the_activations_gives() {
    let mut noise = Noise::new(3);
    let (rows, cols, count) = (37, 96, 5);
    for weight_type in TYPES {
        let (weights, exact) = random_matrix(weight_type, rows, cols, &mut noise);
        let x = noise.units(count * cols);
        let out = multiply(&Cpu::new(1).unwrap(), &weights, &x);
        for (row, x) in x.chunks(cols).enumerate() {
            for (col, w) in exact.chunks(cols).enumerate() {
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let expected: f64 = products.clone().sum();
                // An activation is off by at most half a step of its block, largest / 127, and each of the additions in f32 rounds once.
                let quantised: f64 = if weight_type.is_quantised() {
                    let blocks = x.chunks(BLOCK).zip(w.chunks(BLOCK)).map(|(x, w)| {
                        let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                        let magnitude: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                        f64::from(largest) / 254.0 * magnitude
                    });
                    blocks.sum()
                } else {
                    0.0
                };
                // Nibbles are summed apart from their minimum, so what rounds is larger than the products: 16 times covers d q and m.
                let rounding = products.map(f64::abs).sum::<f64>() * 16.0 * cols as f64 * f64::from(f32::EPSILON);
                let error = (f64::from(out[row * rows + col]) - expected).abs();
                assert!(
                    error <= quantised * 1.01 + rounding,
                    "{weight_type:?}: {error} > {quantised} + {rounding}"
                );
            }
        }
    }
}

#[test]
fn bits_depend_on_the_row_only_not_on_batch_threads_or_instructions() {
    let mut noise = Noise::new(4);
    let cols = 64;
    for weight_type in TYPES {
        let (weights, _) = random_matrix(weight_type, 83, cols, &mut noise);
        let x = noise.units(23 * cols);
        let alone = Cpu::with_isa(Isa::available().pop().unwrap(), 1).unwrap();
        let expected: Vec<u32> = x
            .chunks(cols)
            .flat_map(|row| multiply(&alone, &weights, row))
            .map(f32::to_bits)
            .collect();
        for isa in Isa::available() {
            for threads in [1, 3] {
                let cpu = Cpu::with_isa(isa, threads).unwrap();
                for height in [1, 2, 3, 7, 12, 23] {
                    let bits = x
                        .chunks(height * cols)
                        .flat_map(|rows| multiply(&cpu, &weights, rows))
                        .map(f32::to_bits);
                    assert!(
                        bits.eq(expected.iter().copied()),
                        "{weight_type:?} {} {threads} {height}",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn several_products_share_a_region_and_may_accumulate() {
    let mut noise = Noise::new(5);
    let cpu = Cpu::new(2).unwrap();
    let (first, _) = random_matrix(WeightType::Q4_1, 20, 32, &mut noise);
    let (second, _) = random_matrix(WeightType::Bf16, 48, 32, &mut noise);
    let x = noise.units(9 * 32);
    let mut quantised = QuantisedRows::default();
    quantised.quantise(&cpu, &x, 9, 32).unwrap();
    let (mut a, mut b) = (vec![1.5; 9 * 20], vec![0.0; 9 * 48]);
    let activations = Activations {
        dense: &x,
        quantised: &quantised,
        rows: 9,
    };
    let products = &mut [
        Product {
            weights: &first,
            out: &mut a,
            accumulate: true,
        },
        Product {
            weights: &second,
            out: &mut b,
            accumulate: false,
        },
    ];
    linear(&cpu, activations, products).unwrap();
    let expected: Vec<f32> = multiply(&cpu, &first, &x).iter().map(|y| 1.5 + y).collect();
    assert_eq!(a, expected);
    assert_eq!(b, multiply(&cpu, &second, &x));
}

#[test]
fn the_gated_product_is_the_activation_of_the_gate_times_the_other() {
    let mut noise = Noise::new(6);
    let (gate, _) = random_matrix(WeightType::F32, 21, 32, &mut noise);
    let (up, _) = random_matrix(WeightType::Q8_0, 21, 32, &mut noise);
    let x = noise.units(11 * 32);
    // The definitions, and a relative error: some units in the last place, times the size of the exponential's argument.
    let definition = |act: Gate, g: f64| match act {
        Gate::Silu => g / (1.0 + (-g).exp()),
        Gate::GeluTanh => 0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh()),
    };
    for (act, tolerance) in [(Gate::Silu, 1e-6), (Gate::GeluTanh, 1e-5)] {
        let mut first = None;
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 2).unwrap();
            let mut quantised = QuantisedRows::default();
            quantised.quantise(&cpu, &x, 11, 32).unwrap();
            let mut out = vec![0.0; 11 * 21];
            let input = Activations {
                dense: &x,
                quantised: &quantised,
                rows: 11,
            };
            gated_linear(&cpu, input, act, &gate, &up, &mut out).unwrap();
            let (g, u) = (multiply(&cpu, &gate, &x), multiply(&cpu, &up, &x));
            for ((out, g), u) in out.iter().zip(&g).zip(&u) {
                let expected = definition(act, f64::from(*g)) * f64::from(*u);
                let error = (f64::from(*out) - expected).abs();
                assert!(error <= tolerance * expected.abs(), "{act:?}({g}): {error}");
            }
            assert_eq!(&out, first.get_or_insert_with(|| out.clone()), "{}", isa.name());
        }
    }
}

#[test]
fn rows_come_back_out_of_the_panels_exactly() {
    let mut noise = Noise::new(7);
    for weight_type in TYPES {
        let (weights, exact) = random_matrix(weight_type, 19, 64, &mut noise);
        let mut row = vec![0.0; 64];
        for (index, expected) in exact.chunks(64).enumerate() {
            weights.dequantise_row(index, &mut row).unwrap();
            assert_eq!(row, expected, "{weight_type:?}");
        }
        assert!(weights.dequantise_row(19, &mut row).is_err());
        assert_eq!(weights.byte_len(), 2 * 16 * weight_type.row_bytes(64).div_ceil(4) * 4);
    }
}

#[test]
fn zero_and_tiny_blocks_quantise_to_zero() {
    let cpu = Cpu::new(1).unwrap();
    let mut x = vec![0.0; 64];
    x[40] = 1e-38;
    let mut rows = QuantisedRows::default();
    rows.quantise(&cpu, &x, 1, 64).unwrap();
    for block in 0..2 {
        let (values, scale) = rows.block(0, block);
        assert_eq!(
            (values, scale.scale, scale.sum, scale.scaled_sum),
            (&[0; BLOCK], 0.0, 0, 0.0)
        );
    }
}

#[test]
fn wrong_shapes_are_refused() {
    assert!(matches!(
        PackedMatrix::pack(WeightType::Q4_0, 1, 48, &[]),
        Err(KernelError::PartialBlock { cols: 48 })
    ));
    let short = PackedMatrix::pack(WeightType::F16, 2, 3, &[0; 10]).err();
    assert_eq!(
        short,
        Some(KernelError::ShapeMismatch {
            what: "weight bytes",
            expected: 12,
            actual: 10
        })
    );
    let weights = PackedMatrix::pack(WeightType::F32, 2, 3, &[0; 24]).unwrap();
    let x = Activations {
        dense: &[0.0; 4],
        quantised: &QuantisedRows::default(),
        rows: 1,
    };
    let error = linear(
        &Cpu::new(1).unwrap(),
        x,
        &mut [Product {
            weights: &weights,
            out: &mut [0.0; 2],
            accumulate: false,
        }],
    );
    assert_eq!(
        error,
        Err(KernelError::ShapeMismatch {
            what: "activations",
            expected: 3,
            actual: 4
        })
    );
}
