//! A simulated CUDA device on the CPU: `services/sidecar/kernels/host` behind [`kvasir_cuda::Device`].

mod device;

pub use device::SimtDevice;
