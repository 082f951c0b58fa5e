//! What the services of one process share.

use std::sync::Arc;

use kvasir_engine::{KvDtype, KvLayout, KvPool};

use crate::exports::Exports;
use crate::fetches::Fetches;
use crate::frames::FrameShape;
use crate::proto::common;
use crate::stats::Stats;
use crate::telemetry::Telemetry;
use crate::ticket::TicketKey;

/// One incarnation of one sidecar.
pub struct Sidecar {
    /// Whose.
    pub worker_id: String,
    /// Incarnation.
    pub epoch: u64,
    /// Signs this worker's tickets.
    pub ticket_key: TicketKey,
    /// KV memory.
    pub pool: Arc<KvPool>,
    /// How KV lies in it.
    pub layout: KvLayout,
    /// Leases to others.
    pub exports: Arc<Exports>,
    /// Pulls from others.
    pub fetches: Fetches,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Traces.
    pub telemetry: Telemetry,
}

impl Sidecar {
    /// Sizes that frames are cut by.
    pub fn frame_shape(&self) -> FrameShape {
        FrameShape {
            block_size: self.layout.block_size as u32,
            layer_count: self.layout.layer_count as u32,
            bytes_per_token: self.pool.bytes_per_token(),
        }
    }

    /// The layout as it travels.
    pub fn wire_layout(&self) -> common::KvLayout {
        common::KvLayout {
            model_revision: self.layout.model_revision.clone(),
            dtype: match self.layout.dtype {
                KvDtype::F32 => common::KvDtype::F32,
                KvDtype::F16 => common::KvDtype::F16,
                KvDtype::Bf16 => common::KvDtype::Bf16,
            }
            .into(),
            block_size: self.layout.block_size as u32,
            layer_count: self.layout.layer_count as u32,
            kv_head_count: self.layout.kv_head_count as u32,
            head_size: self.layout.head_size as u32,
            rope: self.layout.rope.clone(),
            fingerprint: self.layout.fingerprint.to_vec(),
        }
    }
}
