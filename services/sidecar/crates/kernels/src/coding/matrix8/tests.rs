use super::*;
use crate::simd::tests::Noise;

#[test]
fn products_are_right_within_rounding_and_the_same_on_every_instruction_set() {
    for (rows, blocks, tokens) in [
        (1, (4, 0, 1), 1),
        (6, (8, 4, 16), 16),
        (13, (12, 8, 50), 37),
        (20, (64, 16, 200), 150),
        (7, (32, 0, 100), 64),
    ] {
        let blocks = Blocks {
            length: blocks.0,
            fine: blocks.1,
            count: blocks.2,
        };
        let (mut noise, stride, count) = (Noise::new(rows as u64), column_stride(tokens), blocks.count);
        let values = noise.units(rows * count);
        // The first ones are larger, as they are along principal axes.
        let columns: Vec<f32> = (0..count * stride)
            .map(|at| noise.unit() * if at / stride < blocks.fine { 100.0 } else { 1.0 } + 3.0)
            .collect();
        let (centres, factors, offsets) = (vec![3.0; count], vec![0.5; count], noise.units(rows));
        let matrix = Matrix8::new(rows, blocks.clone(), &values).unwrap();
        assert!(matrix.rows() == rows && *matrix.blocks() == blocks);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut own = Columns8::default();
            own.begin(&blocks, tokens);
            for (index, range) in blocks.ranges().enumerate() {
                let part = &columns[range.start * stride..range.end * stride];
                own.fill(isa, index, part, &centres[range.clone()], &factors[range])
                    .unwrap();
            }
            let mut out = vec![9.0; rows * stride];
            multiply8(isa, &matrix, &own, &offsets, &mut out).unwrap();
            for row in 0..rows {
                for token in 0..tokens {
                    let number = |index: usize| f64::from(columns[index * stride + token] - 3.0) * 0.5;
                    let exact: f64 = (0..count)
                        .map(|index| f64::from(values[row * count + index]) * number(index))
                        .sum();
                    let error = (f64::from(out[row * stride + token] - offsets[row]) - exact).abs();
                    // Fine ones: 1/254 of 1/254 of 50, twice; the others: half of 1/127, twice; about normal.
                    let deviation = 0.004 * (count as f64).sqrt() + 0.002 * (blocks.fine as f64).sqrt();
                    assert!(error < 4.0 * deviation, "{error} beside {deviation}");
                }
            }
            assert_eq!(first.get_or_insert_with(|| out.clone()), &out);
        }
    }
}

#[test]
fn zeros_stay_zeros_and_shapes_that_do_not_fit_are_refused() {
    let blocks = Blocks {
        length: 8,
        fine: 4,
        count: 12,
    };
    let matrix = Matrix8::new(2, blocks.clone(), &[0.3; 24]).unwrap();
    for isa in Isa::available() {
        let mut own = Columns8::default();
        own.begin(&blocks, 3);
        own.fill(isa, 0, &[0.0; 64], &[0.0; 4], &[1.0; 4]).unwrap();
        own.fill(isa, 1, &[5.0; 128], &[5.0; 8], &[1.0; 8]).unwrap();
        let mut out = [0.0; 32];
        multiply8(isa, &matrix, &own, &[7.0, -1.0], &mut out).unwrap();
        assert_eq!(out[..3], [7.0; 3]);
        assert_eq!(out[16..19], [-1.0; 3]);
        assert!(own.fill(isa, 2, &[0.0; 64], &[0.0; 4], &[1.0; 4]).is_err());
        assert!(multiply8(isa, &matrix, &own, &[0.0; 3], &mut out).is_err());
        own.begin(
            &Blocks {
                length: 4,
                ..blocks.clone()
            },
            3,
        );
        assert!(multiply8(isa, &matrix, &own, &[0.0; 2], &mut out).is_err());
    }
    for wrong in [(3, 0, 12), (8, 5, 12), (8, 16, 12), (0, 0, 12), (8, 0, 0)] {
        let blocks = Blocks {
            length: wrong.0,
            fine: wrong.1,
            count: wrong.2,
        };
        assert!(Matrix8::new(1, blocks, &[0.0; 12]).is_err());
    }
}
