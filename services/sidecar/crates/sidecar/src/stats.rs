//! Counters that others read while the sidecar works.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Since the process started; gauges where said.
#[derive(Debug, Default)]
pub struct Stats {
    /// Prompt tokens computed.
    pub prompt_tokens: AtomicU64,
    /// Tokens after the prompt computed.
    pub decode_tokens: AtomicU64,
    /// Verified KV data received.
    pub kv_bytes_received: AtomicU64,
    /// KV data sent.
    pub kv_bytes_sent: AtomicU64,
    /// KV copied to the host.
    pub kv_bytes_swapped_out: AtomicU64,
    /// KV copied from the host.
    pub kv_bytes_swapped_in: AtomicU64,
    /// Frames refused on arrival.
    pub frames_refused: AtomicU64,
    /// Steps run.
    pub steps: AtomicU64,
    /// Device time.
    pub device_nanos: AtomicU64,
    /// Gauge: fetches under way.
    pub fetches_running: AtomicU32,
    /// Gauge: pulls being served.
    pub pulls_running: AtomicU32,
    /// Gauge: sequences known to the engine.
    pub sequences: AtomicU32,
    /// Start of the running step in nanoseconds since the process started; 0 when none runs.
    pub step_began_nanos: AtomicU64,
}

/// Adds; counters need no order among each other.
pub fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

/// Counts one up while it lives.
pub struct GaugeGuard<'a>(&'a AtomicU32);

impl<'a> GaugeGuard<'a> {
    /// One more.
    pub fn new(gauge: &'a AtomicU32) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
