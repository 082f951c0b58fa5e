//! The engine on a CUDA device: kernels of `services/sidecar/kernels`, launched on whatever implements [`Device`].

#![deny(unsafe_code)]

mod args;
mod attend;
mod device;
#[allow(unsafe_code)]
pub mod driver;
pub mod ops;
mod step_plan;

pub use args::Args;
pub use attend::{Attend, DeviceRows, attend, partial_bytes};
pub use device::{Buffer, Device, DeviceError, Launch, Memory};
pub use step_plan::{Division, StepRows};
