//! The engine on a CUDA device: kernels of `services/sidecar/kernels`, launched on whatever implements [`Device`].

#![deny(unsafe_code)]

mod args;
mod attend;
mod backend;
mod chooser;
mod device;
mod device_weights;
#[allow(unsafe_code)]
pub mod driver;
mod graphs;
mod kv_memory;
pub mod ops;
mod read_plan;
mod remote_kv;
mod rooms;
mod scratch;
mod seen;
mod slots;
mod step_plan;
mod transformer;

pub use args::Args;
pub use attend::{Attend, DeviceRows, attend, partial_bytes};
pub use backend::{CudaBackend, CudaOptions};
pub use device::{
    Buffer, Device, DeviceError, DeviceMemory, Fetch, HostBuffer, Launch, Memory, Pending, Recording, SwapPart,
};
pub use device_weights::{DeviceLayer, DeviceWeights};
pub use kv_memory::KvMemory;
pub use remote_kv::{DeviceKv, DevicePool};
pub use rooms::Rooms;
pub use step_plan::{Division, StepRows};
