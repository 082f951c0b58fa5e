//! Memory and random numbers of a case.

use half::bf16;
use kvasir_cuda::{Buffer, Device};
use kvasir_engine::random::philox4x32;

/// Numbers from a seed.
pub struct Random {
    seed: u64,
    next: u64,
}

impl Random {
    /// Begins at the seed's first number.
    pub fn new(seed: u64) -> Self {
        Self { seed, next: 0 }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.next += 1;
        let [a, b, ..] = philox4x32(
            [self.next as u32, (self.next >> 32) as u32, 7, 0],
            [self.seed as u32, (self.seed >> 32) as u32],
        );
        u64::from(a) << 32 | u64::from(b)
    }

    /// In `low..high`.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.bits() % (high - low) as u64) as usize
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.range(0, from.len())]
    }

    /// About normal, with this deviation.
    pub fn normal(&mut self, deviation: f32) -> f32 {
        let sum: f64 = (0..4).map(|_| (self.bits() >> 11) as f64 / (1_u64 << 53) as f64).sum();
        ((sum - 2.0) * 3f64.sqrt()) as f32 * deviation
    }

    /// `count` of them.
    pub fn normals(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| self.normal(deviation)).collect()
    }

    /// The same, rounded to bf16.
    pub fn rounded(&mut self, count: usize, deviation: f32) -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(self.normal(deviation))).collect()
    }

    /// `0..count` in random order.
    pub fn permutation(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            order.swap(i, self.range(0, i + 1));
        }
        order
    }
}

/// A device, and whether it knows itself what was never written.
pub struct Harness<'d> {
    /// Where kernels run.
    pub device: &'d dyn Device,
    /// The case's numbers.
    pub random: Random,
    is_checked: bool,
}

impl<'d> Harness<'d> {
    /// On a device that finds reads of unwritten memory by itself.
    pub fn checked(device: &'d dyn Device, seed: u64) -> Self {
        Self {
            device,
            random: Random::new(seed),
            is_checked: true,
        }
    }

    /// On a device whose new memory is filled with NaN first.
    pub fn poisoned(device: &'d dyn Device, seed: u64) -> Self {
        Self {
            device,
            random: Random::new(seed),
            is_checked: false,
        }
    }

    /// Memory that holds nothing of use.
    pub fn output(&self, bytes: usize) -> Result<Buffer, String> {
        let buffer = self.device.allocate(bytes).map_err(text)?;
        if !self.is_checked {
            self.device.write(&buffer, 0, &vec![0xff; bytes]).map_err(text)?;
        }
        Ok(buffer)
    }

    /// Memory that holds these bytes.
    pub fn bytes(&self, bytes: &[u8]) -> Result<Buffer, String> {
        let buffer = self.device.allocate(bytes.len()).map_err(text)?;
        self.device.write(&buffer, 0, bytes).map_err(text)?;
        Ok(buffer)
    }

    /// Memory that holds these numbers.
    pub fn f32s(&self, values: &[f32]) -> Result<Buffer, String> {
        self.bytes(&values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// Memory that holds these numbers.
    pub fn u32s(&self, values: &[u32]) -> Result<Buffer, String> {
        self.bytes(&values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// Memory that holds these numbers.
    pub fn bf16s(&self, values: &[bf16]) -> Result<Buffer, String> {
        self.bytes(&values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// What a buffer holds.
    pub fn read(&self, buffer: &Buffer, bytes: usize) -> Result<Vec<u8>, String> {
        let mut out = vec![0; bytes];
        self.device.read(buffer, 0, &mut out).map_err(text)?;
        Ok(out)
    }

    /// What a buffer holds.
    pub fn read_f32s(&self, buffer: &Buffer, count: usize) -> Result<Vec<f32>, String> {
        let bytes = self.read(buffer, count * 4)?;
        Ok(bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_ne_bytes(*b))
            .collect())
    }

    /// What a buffer holds.
    pub fn read_u32s(&self, buffer: &Buffer, count: usize) -> Result<Vec<u32>, String> {
        let bytes = self.read(buffer, count * 4)?;
        Ok(bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_ne_bytes(*b))
            .collect())
    }

    /// What a buffer holds.
    pub fn read_bf16s(&self, buffer: &Buffer, count: usize) -> Result<Vec<bf16>, String> {
        let bytes = self.read(buffer, count * 2)?;
        Ok(bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| bf16::from_ne_bytes(*b))
            .collect())
    }
}

/// Half a step of bf16, relative to the number: 8 significant bits.
pub const HALF_STEP: f64 = 1.0 / 256.0;

/// For `map_err`.
pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Whether `actual` is within `tolerance` of `expected`; NaN never is.
pub fn near(what: &str, index: usize, actual: f64, expected: f64, tolerance: f64) -> Result<(), String> {
    if (actual - expected).abs() <= tolerance {
        return Ok(());
    }
    Err(format!(
        "{what}: element {index} is {actual}, not {expected} (tolerance {tolerance:e})"
    ))
}

/// Whether both are equal.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, actual: &[T], expected: &[T]) -> Result<(), String> {
    if actual.len() != expected.len() {
        return Err(format!("{what}: {} elements, not {}", actual.len(), expected.len()));
    }
    match actual.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what}: element {at} of {} is {:?}, not {:?}",
            actual.len(),
            actual[at],
            expected[at]
        )),
    }
}
