//! The engine on a CUDA device: kernels of `services/sidecar/kernels`, launched on whatever implements [`Device`].

#![forbid(unsafe_code)]

mod args;
mod device;

pub use args::Args;
pub use device::{Buffer, Device, DeviceError, Launch, Memory};
