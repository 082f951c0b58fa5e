//! The conformance suite on the simulated device. `KVASIR_SEED=N` repeats one run; without it the seed is drawn and printed.

use kvasir_simt::SimtDevice;
use kvasir_simt::suite::{CASES, Harness};
use std::time::Instant;

#[test]
fn every_kernel_agrees_with_its_reference() {
    let seed = match std::env::var("KVASIR_SEED") {
        Ok(seed) => seed.parse().expect("KVASIR_SEED is a number"),
        Err(_) => std::process::id().into(),
    };
    let only = std::env::var("KVASIR_CASE").unwrap_or_default();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    let chosen: Vec<_> = CASES.iter().filter(|(name, _)| name.starts_with(&only)).collect();
    let work = || {
        while let Some((name, case)) = chosen.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            let (device, start) = (SimtDevice::new(64 << 20, seed), Instant::now());
            let result = case(&mut Harness::checked(&device, seed));
            println!("{name}: {} ms", start.elapsed().as_millis());
            if let Err(what) = result {
                failures
                    .lock()
                    .expect("no panic")
                    .push(format!("{name}: {what}; repeat with KVASIR_SEED={seed}"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
