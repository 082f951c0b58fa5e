//! Whether a model fits, asked before it is loaded.

use crate::serve::Fatal;

/// Compares the weights with what the system says is available. The KV pool is not counted: it takes memory as it is used.
///
/// # Errors
/// One line with both numbers.
pub fn check_memory(weight_bytes: u64) -> Result<(), Fatal> {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return Ok(());
    };
    match available_bytes(&text) {
        Some(available) if available < weight_bytes => {
            Err(format!("the model needs {}, {} are free", gib(weight_bytes), gib(available)).into())
        }
        _ => Ok(()),
    }
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_in_kib() {
        assert_eq!(
            available_bytes("MemTotal: 9 kB\nMemAvailable:   1024 kB\n"),
            Some(1 << 20)
        );
        assert_eq!(available_bytes("nothing"), None);
        assert!(check_memory(u64::MAX).is_err());
    }
}
