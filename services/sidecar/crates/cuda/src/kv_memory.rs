//! How much of a device's memory KV takes. Pure.

use crate::device::DeviceMemory;

/// How much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KvMemory {
    /// So many bytes.
    Bytes(u64),
    /// What is left of this share of the device's memory when weights and activations have theirs, as vLLM's `gpu_memory_utilization`.
    Share(f64),
}

impl KvMemory {
    /// Bytes, given the device's memory before the model came and now.
    ///
    /// # Errors
    /// One line: what there is and what was asked for.
    pub fn bytes(self, before: DeviceMemory, now: DeviceMemory) -> Result<u64, String> {
        let share = match self {
            Self::Bytes(bytes) => return Ok(bytes),
            Self::Share(share) => share,
        };
        let allowed = (share * before.total as f64) as u64;
        if allowed > before.free {
            return Err(format!(
                "--kv-memory {share} is {} of the device's {}, of which {} were free; use a smaller share, or end what else runs there",
                gib(allowed),
                gib(before.total),
                gib(before.free),
            ));
        }
        // Not by what is free less: another process on the same device may be loading too.
        let own = now.taken.saturating_sub(before.taken);
        match allowed.checked_sub(own) {
            Some(left) if left > 0 => Ok(left.min(now.free)),
            _ => Err(format!(
                "weights and activations take {}, --kv-memory {share} allows {} of the device's {}; use a larger share or a smaller model",
                gib(own),
                gib(allowed),
                gib(before.total),
            )),
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1_u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn memory(free: u64, taken: u64) -> DeviceMemory {
        DeviceMemory {
            free: free * GIB,
            total: 100 * GIB,
            taken: taken * GIB,
        }
    }

    #[test]
    fn kv_gets_what_is_left_of_the_share() {
        assert_eq!(KvMemory::Share(0.9).bytes(memory(98, 1), memory(80, 19)), Ok(72 * GIB));
        // Two on one device: the second finds less free, and asks for its share of the whole all the same.
        assert_eq!(KvMemory::Share(0.45).bytes(memory(50, 0), memory(32, 18)), Ok(27 * GIB));
        // And while the first one is still loading: what it takes meanwhile is not the second one's.
        assert_eq!(KvMemory::Share(0.45).bytes(memory(90, 0), memory(40, 18)), Ok(27 * GIB));
        assert_eq!(KvMemory::Bytes(5).bytes(memory(1, 0), memory(0, 1)), Ok(5));
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_numbers() {
        assert_eq!(
            KvMemory::Share(0.9).bytes(memory(50, 0), memory(32, 18)),
            Err(
                "--kv-memory 0.9 is 90.0 GiB of the device's 100.0 GiB, of which 50.0 GiB were free; \
                 use a smaller share, or end what else runs there"
                    .into()
            )
        );
        let told = KvMemory::Share(0.2).bytes(memory(99, 0), memory(70, 29));
        assert!(told.is_err_and(|told| told.contains("29.0 GiB") && told.contains("20.0 GiB")));
    }
}
