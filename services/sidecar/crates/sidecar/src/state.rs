//! What the services of one process share.

use std::sync::Arc;

use kvasir_engine::{Isa, KvLayout, KvShards};

use crate::block_uses::BlockUses;
use crate::coders::Coders;
use crate::exports::Exports;
use crate::fetches::Fetches;
use crate::intervals::{Part, head_parts};
use crate::layouts::layout_to_wire;
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
    /// KV memory, by shards.
    pub pool: Arc<KvShards>,
    /// Instructions to convert elements with.
    pub isa: Isa,
    /// How KV lies in it.
    pub layout: KvLayout,
    /// Levels that KV travels at.
    pub coders: Arc<Coders>,
    /// Leases to others.
    pub exports: Arc<Exports>,
    /// Pulls from others.
    pub fetches: Fetches,
    /// Which blocks are under way.
    pub block_uses: Arc<BlockUses>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Traces.
    pub telemetry: Telemetry,
}

impl Sidecar {
    /// Tokens per block.
    pub fn block_size(&self) -> u32 {
        self.layout.block_size as u32
    }

    /// The layout as it travels.
    pub fn wire_layout(&self) -> common::KvLayout {
        layout_to_wire(&self.layout)
    }

    /// What each shard holds.
    pub fn parts(&self) -> Vec<Part> {
        parts_of(&self.layout)
    }
}

/// What each shard of a layout holds.
pub fn parts_of(layout: &KvLayout) -> Vec<Part> {
    let counts = [layout.layer_count, layout.kv_head_count, layout.shard_count];
    let [layers, heads, shards] = counts.map(|count| count as u32);
    head_parts(layers, heads, shards)
}
