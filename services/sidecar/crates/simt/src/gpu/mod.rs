//! What runs on a real GPU only: the conformance suite there, and the kernels' speed beside the device's own ceilings.

mod bench;
mod check;
mod shapes;

pub use bench::bench;
pub use check::check;
