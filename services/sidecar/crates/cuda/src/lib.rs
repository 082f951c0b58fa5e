//! The engine on a CUDA device: kernels of `services/sidecar/kernels`, launched on whatever implements [`Device`].

#![deny(unsafe_code)]

mod args;
mod attend;
mod backend;
mod device;
mod device_weights;
#[allow(unsafe_code)]
pub mod driver;
pub mod ops;
mod remote_kv;
mod scratch;
mod step_plan;

pub use args::Args;
pub use attend::{Attend, DeviceRows, attend, partial_bytes};
pub use backend::{CudaBackend, CudaOptions};
pub use device::{Buffer, Device, DeviceError, Launch, Memory};
pub use remote_kv::DeviceKv;
pub use step_plan::{Division, StepRows};
