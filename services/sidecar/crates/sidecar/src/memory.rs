//! Whether a model fits, asked before it is loaded.

use std::path::Path;

use kvasir_engine::Footprint;

use crate::serve::Fatal;

/// Compares what a model will take with what the system, and the container if there is one, have left.
///
/// # Errors
/// One line with both numbers and what to do.
pub fn check_memory(model: &Path, need: &Footprint) -> Result<(), Fatal> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = read("/proc/meminfo").and_then(|text| system_available(&text));
    let container = container_available(
        read("/sys/fs/cgroup/memory.max").as_deref(),
        read("/sys/fs/cgroup/memory.current").as_deref(),
        read("/sys/fs/cgroup/memory.stat").as_deref(),
    );
    match system.into_iter().chain(container).min() {
        Some(free) => check(model, need, free).map_err(Into::into),
        None => Ok(()),
    }
}

fn check(model: &Path, need: &Footprint, free: u64) -> Result<(), String> {
    if need.peak() <= free {
        return Ok(());
    }
    Err(format!(
        "{}: needs {} (weights {}, KV {}, working memory {}), {} free; lower --kv-bytes or --swap-bytes, keep weights as --weights q8_0, or take a smaller model",
        model.display(),
        gib(need.peak()),
        gib(need.weights),
        gib(need.kv),
        gib(need.peak() - need.weights - need.kv),
        gib(free),
    ))
}

/// From `/proc/meminfo`: what can be had without swapping.
fn system_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// From a control group's files: its limit less what is used and cannot be dropped. None without a limit.
fn container_available(max: Option<&str>, current: Option<&str>, stat: Option<&str>) -> Option<u64> {
    let max: u64 = max?.trim().parse().ok()?; // "max" is no limit.
    let current: u64 = current?.trim().parse().ok()?;
    let droppable = stat.and_then(|stat| stat.lines().find_map(|line| line.strip_prefix("inactive_file ")));
    let droppable: u64 = droppable.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(droppable)))
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_kernel_counts_in_kib() {
        assert_eq!(
            system_available("MemTotal: 9 kB\nMemAvailable:   1024 kB\n"),
            Some(1 << 20)
        );
        assert_eq!(system_available("nothing"), None);
    }

    #[test]
    fn a_container_may_have_less_than_the_system() {
        let stat = "anon 5\ninactive_file 300\nactive_file 7\n";
        assert_eq!(
            container_available(Some("1000\n"), Some("800\n"), Some(stat)),
            Some(500)
        );
        assert_eq!(container_available(Some("1000"), Some("1800"), None), Some(0));
        assert_eq!(container_available(Some("max\n"), Some("800\n"), Some(stat)), None);
        assert_eq!(container_available(None, None, None), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let need = Footprint {
            weights: 13 * GIB,
            conversion: GIB,
            kv: 3 * GIB / 2,
            scratch: 2 * GIB / 5,
        };
        assert_eq!(need.peak(), 13 * GIB + 3 * GIB / 2 + 2 * GIB / 5);
        assert_eq!(check(Path::new("m"), &need, need.peak()), Ok(()));
        assert_eq!(
            check(Path::new("models/big"), &need, 9 * GIB + GIB / 10),
            Err(
                "models/big: needs 14.9 GiB (weights 13.0 GiB, KV 1.5 GiB, working memory 0.4 GiB), 9.1 GiB free; \
                 lower --kv-bytes or --swap-bytes, keep weights as --weights q8_0, or take a smaller model"
                    .into()
            )
        );
        assert!(
            check_memory(
                Path::new("m"),
                &Footprint {
                    weights: u64::MAX / 2,
                    ..need
                }
            )
            .is_err()
        );
    }
}
