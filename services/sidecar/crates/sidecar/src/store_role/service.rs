//! What the store asks of its sidecar.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use kvasir_codec::LEVEL_RAW;
use kvasir_store::{Accuracy, Found, Key, Metadata, Object, Recovered, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::errors::CallError;
use crate::exports::{ExportTerms, LeaseId, lock};
use crate::fetch;
use crate::kv_plane::KvPlane;
use crate::proto::common::{self, KvSource};
use crate::proto::kernel::store_sidecar_service_server::StoreSidecarService;
use crate::proto::kernel::{self, FetchRequest};
use crate::state::Sidecar;
use crate::store_role::staging::{StagedBlocks, Staging};
use crate::telemetry::{context_from_metadata, unix_ms};
use crate::ticket;

const REPORTS_BUFFERED: usize = 16;
const LISTED_AT_ONCE: usize = 4096;
const STALL_TIMEOUT_MS: u32 = 5_000;

/// The service of one store.
#[derive(Clone)]
pub(crate) struct StoreFacing(pub Arc<Shared>);

/// What its calls share.
pub(crate) struct Shared {
    pub sidecar: Arc<Sidecar>,
    pub kv_plane: KvPlane,
    pub store: Arc<Store>,
    pub staging: Staging,
    pub recovered: Mutex<Vec<Recovered>>,
    pub description: kernel::DescribeStoreResponse,
    /// Blocks behind open exports.
    pub exposed: Mutex<HashMap<LeaseId, StagedBlocks>>,
}

/// How a block's way into the pool ended.
enum Staged {
    Done,
    /// It is not there, or is of another tenant or layout.
    Missing,
    /// There was no memory to read it into.
    NoRoom,
}

impl Shared {
    /// Frees the blocks of leases that are over.
    pub fn sweep(&self) {
        lock(&self.exposed).retain(|lease_id, _| self.sidecar.exports.find(lease_id).is_some());
    }

    fn block_size(&self) -> u32 {
        self.sidecar.block_size()
    }

    /// Tokens, layers and heads of a block.
    fn whole(&self) -> (Range<u32>, Range<u32>, Range<u32>) {
        let layout = &self.sidecar.layout;
        (
            0..self.block_size(),
            0..layout.layer_count as u32,
            0..layout.kv_head_count as u32,
        )
    }

    /// Only bits that every worker of the layout would compute have a place under a block's hash.
    fn check_source(&self, source: Option<&KvSource>) -> Result<(), CallError> {
        let layout = source.and_then(|source| source.layout.as_ref());
        let own = &self.sidecar.layout;
        let is_exact = |layout: &common::KvLayout| {
            layout.exact_fingerprint == own.exact_fingerprint && layout.block_size as usize == own.block_size
        };
        if layout.is_some_and(is_exact) {
            return Ok(());
        }
        let message = "the worker's KV is not bit for bit of this store's layout; run a store for each layout".into();
        Err(CallError::LayoutMismatch(message))
    }

    /// Copies a received block out of the pool and into the store's memory.
    fn keep(&self, staged: u32, key: Key, metadata: Metadata) -> Result<(), CallError> {
        let internal = |error: &dyn std::fmt::Display| CallError::Internal(error.to_string());
        let mut bytes = Vec::new();
        let (tokens, layers, heads) = self.whole();
        self.sidecar.pool.shards()[0]
            .gather(staged, tokens, layers, heads, &mut bytes)
            .map_err(|error| internal(&error))?;
        let mut buffer = self.store.allocate(bytes.len()).map_err(|error| from_store(&error))?;
        buffer.write(0, &bytes);
        self.store.insert(key, metadata, buffer);
        Ok(())
    }

    /// Copies a block of the store into the pool.
    fn stage(&self, key: Key, tenant_scope: &[u8; 16], staged: u32) -> Result<Staged, CallError> {
        let found = self.store.get(key, Accuracy::Exact, unix_ms(), true);
        let object = match found {
            Ok(object) => object,
            Err(StoreError::MemoryFull { .. }) => return Ok(Staged::NoRoom),
            Err(error) => return Err(from_store(&error)),
        };
        let matches = |object: &Arc<Object>| {
            object.metadata.tenant_scope == *tenant_scope
                && object.metadata.layout_fingerprint == self.sidecar.layout.exact_fingerprint
        };
        let Some(object) = object.filter(matches) else {
            return Ok(Staged::Missing);
        };
        let mut bytes = Vec::with_capacity(object.value.len());
        object.value.append_range(0..object.value.len(), &mut bytes);
        let (tokens, layers, heads) = self.whole();
        let placed = self.sidecar.pool.shards()[0].scatter(staged, tokens, layers, heads, &bytes);
        placed.map_err(|error| CallError::Internal(error.to_string()))?;
        Ok(Staged::Done)
    }

    async fn ingest(
        self: &Arc<Self>,
        request: kernel::IngestBlocksRequest,
        context: opentelemetry::Context,
    ) -> Result<u32, CallError> {
        let keys = keys_of(&request.keys)?;
        let tenant_scope = ticket::id("tenant_scope", &request.tenant_scope)?;
        let lease_id = ticket::id("lease_id", &request.lease_id)?;
        self.check_source(request.source.as_ref())?;
        let staged = self.staging.take(keys.len());
        if staged.ids.is_empty() {
            return Err(CallError::Overloaded(
                "no staging block is free; offer the blocks later".into(),
            ));
        }
        let (block_size, count) = (self.block_size(), staged.ids.len() as u32);
        let begin = request.first_block.saturating_mul(block_size);
        let mut block_ids = vec![0; request.first_block as usize];
        block_ids.extend(&staged.ids);
        let fetch = FetchRequest {
            lease_id: request.lease_id,
            ticket: request.ticket,
            source: request.source,
            block_ids,
            token_begin: begin,
            token_end: begin.saturating_add(count * block_size),
            tenant_scope: request.tenant_scope,
            stall_timeout_ms: STALL_TIMEOUT_MS,
            ..FetchRequest::default()
        };
        let fetch = fetch::prepare(&self.sidecar, fetch, context)?;
        // Dropped before `staged`, also where the store hangs up: nothing writes into a block that another pull may get.
        let writes = self.sidecar.fetches.fenced_on_drop(lease_id);
        let (sender, mut reports) = mpsc::channel(REPORTS_BUFFERED);
        let pulling = self.kv_plane.fetch(Arc::clone(&self.sidecar), fetch, sender);
        let (mut verified, mut failure) = (begin, None);
        while let Some(report) = reports.recv().await {
            match report {
                Ok(progress) => verified = progress.verified_token_end,
                Err(status) => failure = Some(CallError::from_status(&status)),
            }
        }
        let _ = pulling.await;
        drop(writes);
        let whole = (verified - begin) / block_size;
        if let (0, Some(failure)) = (whole, failure) {
            return Err(failure);
        }
        let shared = Arc::clone(self);
        let kept = tokio::task::spawn_blocking(move || {
            for index in 0..whole {
                let metadata = Metadata {
                    tenant_scope,
                    layout_fingerprint: shared.sidecar.layout.exact_fingerprint,
                    token_count: block_size,
                    position: request.first_block + index,
                    expires_at_unix_ms: request.expires_at_unix_ms,
                    accuracy: Accuracy::Exact,
                    level: LEVEL_RAW,
                };
                let kept = shared.keep(staged.ids[index as usize], keys[index as usize], metadata);
                match kept {
                    Err(error) if index == 0 => return Err(error),
                    Err(_) => return Ok(index),
                    Ok(()) => {}
                }
            }
            Ok(whole)
        });
        kept.await.map_err(|error| CallError::Internal(error.to_string()))?
    }

    async fn expose(
        self: &Arc<Self>,
        request: kernel::ExposeBlocksRequest,
    ) -> Result<kernel::ExposeBlocksResponse, CallError> {
        let keys = keys_of(&request.keys)?;
        let tenant_scope = ticket::id("tenant_scope", &request.tenant_scope)?;
        let lease_id = ticket::id("lease_id", &request.lease_id)?;
        let mut staged = self.staging.take(keys.len());
        let shared = Arc::clone(self);
        let staging = tokio::task::spawn_blocking(move || {
            let mut from_disk = Vec::new();
            let mut next_is_missing = false;
            for (key, block) in keys.iter().zip(&staged.ids) {
                let Found { memory, .. } = shared.store.find(*key, Accuracy::Exact);
                let outcome = shared.stage(*key, &tenant_scope, *block)?;
                next_is_missing = matches!(outcome, Staged::Missing);
                if !matches!(outcome, Staged::Done) {
                    break;
                }
                from_disk.push(!memory);
            }
            staged.shrink(from_disk.len());
            Ok::<_, CallError>((staged, from_disk, next_is_missing))
        });
        let (staged, from_disk, next_is_missing) = staging
            .await
            .map_err(|error| CallError::Internal(error.to_string()))??;
        let count = from_disk.len() as u32;
        if count > 0 {
            // The ticket begins at the first block, so nothing reads those before it.
            let mut block_ids = vec![0; request.first_block as usize];
            block_ids.extend(&staged.ids);
            self.sidecar.exports.publish_computed(ExportTerms {
                lease_id,
                sequence_id: 0,
                token_count: (request.first_block + count) * self.block_size(),
                block_ids,
                tenant_scope,
                expires_at_unix_ms: request.expires_at_unix_ms,
            })?;
            lock(&self.exposed).insert(lease_id, staged);
        }
        Ok(kernel::ExposeBlocksResponse {
            exposed_count: count,
            from_disk,
            next_is_missing,
        })
    }

    async fn persist(&self, keys: &[Key]) -> Vec<bool> {
        let mut outcomes = Vec::new();
        for key in keys {
            let (told, outcome) = oneshot::channel();
            self.store.persist(*key, move |result| {
                let _ = told.send(result.is_ok());
            });
            outcomes.push(outcome);
        }
        let mut durable = Vec::new();
        for outcome in outcomes {
            durable.push(outcome.await.unwrap_or(false));
        }
        durable
    }
}

#[tonic::async_trait]
impl StoreSidecarService for StoreFacing {
    type ListBlocksStream = Pin<Box<dyn Stream<Item = Result<kernel::ListBlocksResponse, Status>> + Send>>;

    async fn describe_store(
        &self,
        _request: Request<kernel::DescribeStoreRequest>,
    ) -> Result<Response<kernel::DescribeStoreResponse>, Status> {
        Ok(Response::new(self.0.description.clone()))
    }

    async fn list_blocks(
        &self,
        _request: Request<kernel::ListBlocksRequest>,
    ) -> Result<Response<Self::ListBlocksStream>, Status> {
        let mut left = std::mem::take(&mut *lock(&self.0.recovered));
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            while !left.is_empty() {
                let part = left.split_off(left.len().saturating_sub(LISTED_AT_ONCE));
                let blocks = part.iter().map(listed).collect();
                if sender.send(kernel::ListBlocksResponse { blocks }).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }

    async fn ingest_blocks(
        &self,
        request: Request<kernel::IngestBlocksRequest>,
    ) -> Result<Response<kernel::IngestBlocksResponse>, Status> {
        let context = context_from_metadata(request.metadata());
        let stored_count = self.0.ingest(request.into_inner(), context).await?;
        Ok(Response::new(kernel::IngestBlocksResponse { stored_count }))
    }

    async fn expose_blocks(
        &self,
        request: Request<kernel::ExposeBlocksRequest>,
    ) -> Result<Response<kernel::ExposeBlocksResponse>, Status> {
        Ok(Response::new(self.0.expose(request.into_inner()).await?))
    }

    async fn withdraw_blocks(
        &self,
        request: Request<kernel::WithdrawBlocksRequest>,
    ) -> Result<Response<kernel::WithdrawBlocksResponse>, Status> {
        let lease_id = ticket::id("lease_id", &request.into_inner().lease_id)?;
        self.0.sidecar.exports.release(&lease_id).await;
        self.0.sweep();
        Ok(Response::new(kernel::WithdrawBlocksResponse {}))
    }

    async fn persist_blocks(
        &self,
        request: Request<kernel::PersistBlocksRequest>,
    ) -> Result<Response<kernel::PersistBlocksResponse>, Status> {
        let durable = self.0.persist(&keys_of(&request.into_inner().keys)?).await;
        Ok(Response::new(kernel::PersistBlocksResponse { durable }))
    }

    async fn remove_blocks(
        &self,
        request: Request<kernel::RemoveBlocksRequest>,
    ) -> Result<Response<kernel::RemoveBlocksResponse>, Status> {
        let request = request.into_inner();
        let keys = keys_of(&request.keys)?;
        if request.memory_only {
            for key in keys {
                self.0.store.drop_from_memory(key);
            }
        } else {
            let (told, outcome) = oneshot::channel();
            self.0.store.remove(&keys, move |result| {
                let _ = told.send(result);
            });
            let closed = |_| CallError::Internal("the store is closed".into());
            outcome.await.map_err(closed)?.map_err(|error| from_store(&error))?;
        }
        Ok(Response::new(kernel::RemoveBlocksResponse {}))
    }

    async fn read_store_stats(
        &self,
        _request: Request<kernel::ReadStoreStatsRequest>,
    ) -> Result<Response<kernel::ReadStoreStatsResponse>, Status> {
        let (store, stats) = (self.0.store.stats(), &self.0.sidecar.stats);
        Ok(Response::new(kernel::ReadStoreStatsResponse {
            memory_blocks: store.memory_blocks,
            memory_used_bytes: store.memory_used_bytes,
            disk_blocks: store.disk_blocks,
            disk_live_bytes: store.disk_live_bytes,
            disk_file_bytes: store.disk_file_bytes,
            bytes_persisted: store.bytes_persisted,
            bytes_compacted: store.bytes_compacted,
            bytes_loaded: store.bytes_loaded,
            damaged: store.damaged,
            exports_open: self.0.sidecar.exports.open_count() as u32,
            kv_bytes_received: stats.kv_bytes_received.load(Ordering::Relaxed),
            kv_bytes_sent: stats.kv_bytes_sent.load(Ordering::Relaxed),
        }))
    }

    async fn list_store_spans(
        &self,
        request: Request<kernel::ListStoreSpansRequest>,
    ) -> Result<Response<kernel::ListStoreSpansResponse>, Status> {
        let spans = self.0.sidecar.telemetry.ring.of_trace(&request.into_inner().trace_id);
        Ok(Response::new(kernel::ListStoreSpansResponse { spans }))
    }
}

fn keys_of(bytes: &[u8]) -> Result<Vec<Key>, CallError> {
    let (keys, rest) = bytes.as_chunks::<16>();
    if keys.is_empty() || !rest.is_empty() {
        return Err(CallError::InvalidRequest {
            field: "keys".into(),
            message: format!(
                "has {} bytes; give 16 for each block, and at least one block",
                bytes.len()
            ),
        });
    }
    Ok(keys.iter().map(|key| Key(*key)).collect())
}

fn listed(block: &Recovered) -> kernel::DiskBlock {
    kernel::DiskBlock {
        key: block.key.0.to_vec(),
        tenant_scope: block.metadata.tenant_scope.to_vec(),
        position: block.metadata.position,
        expires_at_unix_ms: block.metadata.expires_at_unix_ms,
    }
}

fn from_store(error: &StoreError) -> CallError {
    match error {
        StoreError::MemoryFull { .. } | StoreError::DiskFull { .. } => CallError::Overloaded(error.to_string()),
        _ => CallError::Internal(error.to_string()),
    }
}
