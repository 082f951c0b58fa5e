//! A simulated CUDA device on the CPU (`services/sidecar/kernels/host` behind [`kvasir_cuda::Device`]), and the conformance suite of the kernels,
//! which runs on it and on a GPU alike.

mod device;
pub mod gpu;
mod simulated_gpus;
pub mod suite;
mod swaps;

pub use device::SimtDevice;
pub use simulated_gpus::Simulated;
