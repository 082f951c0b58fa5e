//! The SIMT layer finds what it is there to find: one planted defect at a time.

use kvasir_cuda::{Args, Device, Launch};
use kvasir_simt::SimtDevice;

const COUNT: usize = 150;

/// Runs the kernel of `host/defects.cu` with a defect; the outputs, or what the layer said.
fn run(defect: u32, seed: u64) -> Result<(Vec<u32>, u32), String> {
    let device = SimtDevice::new(1 << 20, seed);
    let upload = |values: &[u32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let buffer = device.allocate(bytes.len()).unwrap();
        device.write(&buffer, 0, &bytes).unwrap();
        buffer
    };
    let input = upload(&(0..COUNT as u32).map(|i| i * i + 1).collect::<Vec<_>>());
    let out = device.allocate(COUNT * 4).unwrap();
    let sums = upload(&[0, 0]);
    let arguments = Args::new()
        .buffer(&input)
        .buffer(&out)
        .buffer(&sums)
        .count(COUNT)
        .u32(defect)
        .finish();
    let launch = Launch {
        file: "host/defects",
        kernel: "planted_defect",
        grid: [3, 1, 1],
        threads: 64,
        shared_bytes: 0,
    };
    let download = |buffer, count| {
        let mut bytes = vec![0; count * 4];
        device.read(buffer, 0, &mut bytes)?;
        Ok::<_, kvasir_cuda::DeviceError>(
            bytes
                .chunks(4)
                .map(|b| u32::from_ne_bytes(b.try_into().unwrap()))
                .collect::<Vec<_>>(),
        )
    };
    let result = device
        .launch(launch, &arguments)
        .and_then(|()| Ok((download(&out, COUNT)?, download(&sums, 1)?[0])));
    result.map_err(|error| error.to_string())
}

#[test]
fn without_a_defect_nothing_is_found_and_the_result_is_right() {
    let input = |i: usize| if i < COUNT { (i * i + 1) as u32 } else { 0 };
    let expected: Vec<u32> = (0..COUNT).map(|i| input(i / 64 * 64 + 63 - i % 64)).collect();
    for seed in 0..20 {
        let (out, sum) = run(0, seed).unwrap();
        assert_eq!(out, expected);
        assert_eq!(sum, (0..COUNT).map(input).sum::<u32>());
    }
}

#[test]
fn every_planted_defect_is_found_and_named() {
    let defects = [
        "race with a|never written",
        "out of bounds: write of 4 bytes at byte 600 of a global buffer",
        "out of bounds: read of 4 bytes at byte 600 of a global buffer",
        "divergent barrier: some threads of the block are at defects.cu:",
        "a thread of the block has ended",
        "divergent warp: a shuffle or vote at defects.cu:",
        "race with another block: read of 4 bytes at byte 0",
        "never written: read of 4 bytes at byte",
        "misaligned: read of 16 bytes at byte 4",
        "race with a",
        "never written: read of 4 bytes",
        "out of bounds: write of 4 bytes",
        "byte 36 of 600 read back was never written",
        "race with another block: read of 4 bytes at byte 0",
        "close to null",
    ];
    for (index, expected) in defects.iter().enumerate() {
        for seed in [1, 2, 3] {
            let found = run(index as u32 + 1, seed).expect_err(&format!("defect {}", index + 1));
            let is_right = expected.split('|').any(|expected| found.contains(expected));
            assert!(is_right, "defect {}: {found:?}, not {expected:?}", index + 1);
        }
    }
}

#[test]
fn a_report_names_thread_block_and_seed() {
    let found = run(2, 77).unwrap_err();
    assert!(found.ends_with("; thread 22 of block (2, 0, 0) (seed 77)"), "{found}");
}

#[test]
fn arguments_of_another_size_are_refused() {
    let device = SimtDevice::new(1 << 16, 0);
    let launch = |kernel| Launch {
        file: "host/defects",
        kernel,
        grid: [1; 3],
        threads: 64,
        shared_bytes: 0,
    };
    let found = device
        .launch(launch("planted_defect"), &[0; 16])
        .unwrap_err()
        .to_string();
    assert!(
        found.starts_with("planted_defect takes parameters of 32 bytes, not 16"),
        "{found}"
    );
    let found = device.launch(launch("no_such"), &[]).unwrap_err().to_string();
    assert!(found.starts_with("there is no kernel no_such"), "{found}");
}
