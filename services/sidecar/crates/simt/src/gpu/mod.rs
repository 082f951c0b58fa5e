//! What runs on a real GPU: the conformance suite there, the speed of kernels and of whole models beside the device's own ceilings, and two
//! sidecars. A simulated GPU takes all of it but the kernels' times.

mod bench;
mod check;
mod cluster;
mod model_bench;
mod shapes;
mod sidecar_process;

pub use bench::bench;
pub use check::{check, check_simulated};
pub use cluster::{ClusterSize, cluster};
pub use model_bench::{ModelSize, model_bench, on_gpu as model_on_gpu};
