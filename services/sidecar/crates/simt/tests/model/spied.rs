//! A device that counts what passes between it and the host, and which kernels it ran.

use kvasir_cuda::ops::Gemm;
use kvasir_cuda::{Buffer, Device, DeviceError, DeviceMemory, Fetch, HostBuffer, Launch, Pending, Recording, SwapPart};
use kvasir_kernels::SwapDirection;
use kvasir_simt::SimtDevice;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Counts until [`Spied::take`], with all of its streams.
pub struct Spied {
    device: SimtDevice,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
pub struct Seen {
    /// Bytes copied to and from the device.
    pub crossed: usize,
    pub launches: BTreeMap<&'static str, usize>,
}

impl Spied {
    pub fn new(device: SimtDevice) -> Self {
        let seen = Arc::default();
        Self { device, seen }
    }

    /// What was seen since the last time.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }

    fn crossed(&self, bytes: usize) {
        self.seen.lock().expect("no panic").crossed += bytes;
    }
}

impl Device for Spied {
    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.device.allocate(bytes)
    }

    fn write(&self, to: &Buffer, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        self.crossed(from.len());
        self.device.write(to, offset, from)
    }

    fn read(&self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        self.crossed(to.len());
        self.device.read(from, offset, to)
    }

    fn launch(&self, launch: Launch, arguments: &[u8]) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().expect("no panic");
        *seen.launches.entry(launch.kernel).or_default() += 1;
        drop(seen);
        self.device.launch(launch, arguments)
    }

    fn product(&self, op: &Gemm<'_>) -> Result<(), DeviceError> {
        self.device.product(op)
    }

    fn fetch(&self, from: &Buffer, offset: usize, bytes: usize) -> Result<Box<dyn Fetch>, DeviceError> {
        self.crossed(bytes);
        self.device.fetch(from, offset, bytes)
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostBuffer, DeviceError> {
        self.device.allocate_host(bytes)
    }

    fn swap(
        &self,
        direction: SwapDirection,
        device: &Buffer,
        host: &HostBuffer,
        parts: &[SwapPart],
    ) -> Result<Box<dyn Pending>, DeviceError> {
        self.device.swap(direction, device, host, parts)
    }

    fn another_stream(&self) -> Result<Arc<dyn Device>, DeviceError> {
        Ok(Arc::new(Self {
            device: self.device.beside(),
            seen: Arc::clone(&self.seen),
        }))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Box<dyn Recording>, DeviceError> {
        self.device.record(work)
    }

    fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        self.device.memory()
    }

    fn multiprocessors(&self) -> usize {
        self.device.multiprocessors()
    }

    fn description(&self) -> String {
        self.device.description()
    }
}
