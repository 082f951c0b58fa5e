//! Generated types of the planes that the sidecar speaks.
#![allow(missing_docs, clippy::all)]

pub mod kvasir {
    pub mod common {
        pub mod v1 {
            tonic::include_proto!("kvasir.common.v1");
        }
    }
    pub mod kernel {
        pub mod v1 {
            tonic::include_proto!("kernel/kvasir.kernel.v1");
        }
    }
    pub mod transfer {
        pub mod v1 {
            tonic::include_proto!("kvasir.transfer.v1");
        }
    }
}

pub use kvasir::common::v1 as common;
pub use kvasir::kernel::v1 as kernel;
pub use kvasir::transfer::v1 as transfer;
