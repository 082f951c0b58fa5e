//! Products against f64 over the exact weights, and the promise that only the row decides the bits.

use super::*;
use crate::isa::Isa;
use crate::simd::BLOCK;
use crate::simd::tests::Noise;
use half::{bf16, f16};
use kvasir_model::TensorType;
use kvasir_model::quant::dequantize;

const TYPES: [(WeightType, TensorType); 11] = [
    (WeightType::F32, TensorType::F32),
    (WeightType::F16, TensorType::F16),
    (WeightType::Bf16, TensorType::Bf16),
    (WeightType::Bf16Pairs, TensorType::Bf16),
    (WeightType::Q8_0, TensorType::Q8_0),
    (WeightType::Q4_0, TensorType::Q4_0),
    (WeightType::Q4_1, TensorType::Q4_1),
    (WeightType::Q5_0, TensorType::Q5_0),
    (WeightType::Q4_K, TensorType::Q4_K),
    (WeightType::Q5_K, TensorType::Q5_K),
    (WeightType::Q6_K, TensorType::Q6_K),
];

/// A random matrix in its file format, and its exact values by the format's definition: any bytes are numbers, scales must be sane.
fn random_matrix(weight_type: WeightType, rows: usize, cols: usize, noise: &mut Noise) -> (PackedMatrix, Vec<f32>) {
    let (_, tensor_type) = TYPES.into_iter().find(|(known, _)| *known == weight_type).unwrap();
    assert_eq!(
        tensor_type.row_bytes(cols),
        Some(weight_type.row_bytes(cols)),
        "{weight_type:?}"
    );
    let mut bytes = Vec::with_capacity(rows * weight_type.row_bytes(cols));
    for _ in 0..rows * cols / weight_type.block_len() {
        let mut unit: Vec<u8> = (0..tensor_type.block_bytes()).map(|_| noise.bits() as u8).collect();
        let scale = 0.002 + noise.unit().abs() * 0.05;
        let minimum = -8.0 * scale * noise.unit().abs();
        let mut put = |at: usize, value: f32| unit[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        match weight_type {
            WeightType::F32 => unit.copy_from_slice(&noise.unit().to_le_bytes()),
            WeightType::F16 => put(0, noise.unit()),
            WeightType::Bf16 | WeightType::Bf16Pairs => {
                unit.copy_from_slice(&bf16::from_f32(noise.unit()).to_le_bytes())
            }
            WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q5_0 => put(0, scale),
            WeightType::Q4_1 => {
                put(0, scale);
                put(2, minimum);
            }
            WeightType::Q4_K | WeightType::Q5_K => {
                put(0, scale / 63.0);
                put(2, -minimum / 63.0);
            }
            WeightType::Q6_K => put(208, scale / 128.0),
        }
        bytes.extend(unit);
    }
    let mut values = vec![0.0; rows * cols];
    dequantize(tensor_type, &bytes, &mut values);
    (PackedMatrix::pack(weight_type, rows, cols, &bytes).unwrap(), values)
}

fn multiply(cpu: &Cpu, weights: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / weights.cols();
    let mut activations = Activations::default();
    activations.prepare(cpu, x, rows, &[weights]).unwrap();
    let mut out = vec![0.0; rows * weights.rows()];
    linear(
        cpu,
        &activations,
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
    let (rows, cols, count) = (37, 512, 5);
    for (weight_type, _) in TYPES {
        let (weights, exact) = random_matrix(weight_type, rows, cols, &mut noise);
        let x = noise.units(count * cols);
        let out = multiply(&Cpu::new(1).unwrap(), &weights, &x);
        for (row, x) in x.chunks(cols).enumerate() {
            for (col, w) in exact.chunks(cols).enumerate() {
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let expected: f64 = products.clone().sum();
                // An activation is off by at most half a step of its block, largest / 127, and each of the additions in f32 rounds once.
                let quantised: f64 = if weight_type == WeightType::Bf16Pairs {
                    // Eight bits of mantissa: off by at most 2^-9 of itself.
                    products.clone().map(f64::abs).sum::<f64>() / 512.0
                } else if weight_type.is_quantised() {
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
    let cols = 256;
    for (weight_type, _) in TYPES {
        let (weights, _) = random_matrix(weight_type, 83, cols, &mut noise);
        let x = noise.units(83 * cols);
        let alone = Cpu::with_isa(Isa::available().pop().unwrap(), 1).unwrap();
        let expected: Vec<u32> = x
            .chunks(cols)
            .flat_map(|row| multiply(&alone, &weights, row))
            .map(f32::to_bits)
            .collect();
        for isa in Isa::available() {
            for threads in [1, 3] {
                let cpu = Cpu::with_isa(isa, threads).unwrap();
                for height in [1, 2, 3, 7, 12, 23, 83] {
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
    let (mut a, mut b) = (vec![1.5; 9 * 20], vec![0.0; 9 * 48]);
    let mut activations = Activations::default();
    activations.prepare(&cpu, &x, 9, &[&first, &second]).unwrap();
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
    linear(&cpu, &activations, products).unwrap();
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
            let mut input = Activations::default();
            input.prepare(&cpu, &x, 11, &[&gate, &up]).unwrap();
            let mut out = vec![0.0; 11 * 21];
            gated_linear(&cpu, &input, act, &gate, &up, &mut out).unwrap();
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
    for (weight_type, _) in TYPES {
        let (weights, exact) = random_matrix(weight_type, 19, 512, &mut noise);
        let mut row = vec![0.0; 512];
        for (index, expected) in exact.chunks(512).enumerate() {
            weights.dequantise_row(index, &mut row).unwrap();
            assert_eq!(row, expected, "{weight_type:?}");
        }
        assert!(weights.dequantise_row(19, &mut row).is_err());
        // Eight scales and minima of 6 bits take 12 bytes in a file and 16 in a panel.
        let wider = match weight_type {
            WeightType::Q4_K | WeightType::Q5_K => 4,
            _ => 0,
        };
        assert_eq!(weights.byte_len(), 2 * 16 * (weight_type.row_bytes(512) + 2 * wider));
    }
}

#[test]
fn zero_and_tiny_blocks_quantise_to_zero() {
    let cpu = Cpu::new(1).unwrap();
    let mut x = vec![0.0; 64];
    x[40] = 1e-38;
    let mut rows = rows::QuantisedRows::default();
    rows.quantise(&cpu, &x, 1, 64).unwrap();
    for block in 0..2 {
        let (values, scale) = rows.block(0, block);
        assert_eq!(
            (values, scale.scale, scale.sum, scale.first_sum, scale.scaled_sum),
            (&[0; BLOCK], 0.0, 0, 0, 0.0)
        );
    }
}

#[test]
fn wrong_shapes_are_refused() {
    assert!(matches!(
        PackedMatrix::pack(WeightType::Q4_0, 1, 48, &[]),
        Err(KernelError::PartialBlock {
            block_len: 32,
            cols: 48
        })
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
    let cpu = Cpu::new(1).unwrap();
    let mut x = Activations::default();
    let error = x.prepare(&cpu, &[0.0; 4], 1, &[&weights]);
    assert_eq!(
        error,
        Err(KernelError::ShapeMismatch {
            what: "activations",
            expected: 3,
            actual: 4
        })
    );
    x.prepare(&cpu, &[0.0; 3], 1, &[&weights]).unwrap();
    let multiply = |weights: &PackedMatrix| {
        let out = &mut [0.0; 2];
        let product = Product {
            weights,
            out,
            accumulate: false,
        };
        linear(&cpu, &x, &mut [product])
    };
    assert_eq!(multiply(&weights), Ok(()));
    // Prepared for f32 weights only: of other forms there is nothing.
    let other = PackedMatrix::pack(WeightType::Bf16Pairs, 2, 3, &[0; 12]).unwrap();
    assert!(matches!(multiply(&other), Err(KernelError::ShapeMismatch { .. })));
}
