//! KV layouts as they travel, and what two of them mean for each other.

use kvasir_engine::{KvDtype, KvLayout};

use crate::proto::common;
use crate::proto::common::KvConversion;

/// As it travels.
pub fn dtype_to_wire(dtype: KvDtype) -> common::KvDtype {
    match dtype {
        KvDtype::F32 => common::KvDtype::F32,
        KvDtype::F16 => common::KvDtype::F16,
        KvDtype::Bf16 => common::KvDtype::Bf16,
    }
}

/// None for no type at all.
pub fn dtype_from_wire(dtype: common::KvDtype) -> Option<KvDtype> {
    match dtype {
        common::KvDtype::F32 => Some(KvDtype::F32),
        common::KvDtype::F16 => Some(KvDtype::F16),
        common::KvDtype::Bf16 => Some(KvDtype::Bf16),
        common::KvDtype::Unspecified => None,
    }
}

/// As it travels.
pub fn layout_to_wire(layout: &KvLayout) -> common::KvLayout {
    common::KvLayout {
        model_revision: layout.model_revision.clone(),
        dtype: dtype_to_wire(layout.dtype).into(),
        block_size: layout.block_size as u32,
        layer_count: layout.layer_count as u32,
        kv_head_count: layout.kv_head_count as u32,
        head_size: layout.head_size as u32,
        rope: layout.rope.clone(),
        fingerprint: layout.fingerprint.to_vec(),
        shard_count: layout.shard_count as u32,
        exact_fingerprint: layout.exact_fingerprint.to_vec(),
    }
}

/// A peer's layout.
///
/// # Errors
/// What is wrong with it.
pub fn layout_from_wire(wire: &common::KvLayout) -> Result<KvLayout, String> {
    let dtype =
        dtype_from_wire(wire.dtype()).ok_or_else(|| format!("dtype is {}; use F32, F16 or BF16", wire.dtype))?;
    if !matches!(wire.block_size, 16 | 32 | 64) {
        return Err(format!("block_size is {}; use 16, 32 or 64", wire.block_size));
    }
    if wire.shard_count == 0 || !wire.kv_head_count.is_multiple_of(wire.shard_count) {
        let (shards, heads) = (wire.shard_count, wire.kv_head_count);
        return Err(format!(
            "shard_count is {shards}; use a divisor of the {heads} KV heads"
        ));
    }
    let exact = wire.exact_fingerprint.as_slice();
    let layout = KvLayout {
        model_revision: wire.model_revision.clone(),
        dtype,
        block_size: wire.block_size as usize,
        shard_count: wire.shard_count as usize,
        layer_count: wire.layer_count as usize,
        kv_head_count: wire.kv_head_count as usize,
        head_size: wire.head_size as usize,
        rope: wire.rope.clone(),
        fingerprint: [0; 16],
        exact_fingerprint: exact
            .try_into()
            .map_err(|_| format!("exact_fingerprint has {} bytes; it has 16", exact.len()))?,
    }
    .with_fingerprint();
    if layout.fingerprint != wire.fingerprint.as_slice() {
        return Err("the fingerprint is not that of its fields".into());
    }
    Ok(layout)
}

/// Element type of the frames: the source rounds before it sends where that saves bytes or the types are of one size, else the sink widens.
pub fn frame_dtype(source: KvDtype, sink: KvDtype) -> KvDtype {
    if sink.byte_size() <= source.byte_size() {
        sink
    } else {
        source
    }
}

/// What becomes of elements between pools of two types.
///
/// Rounding gives the bits that a pool of the sink's type holds for the same computed value: the same rounding is done when KV is stored
/// (`kvasir_kernels::convert`). It is approximate all the same: from the second layer on, what a worker computes depends on the KV that it
/// stored in the layers before, so a worker of the sink's type would have computed other values to round.
pub fn conversion(source: KvDtype, sink: KvDtype) -> KvConversion {
    match sink {
        _ if source == sink => KvConversion::None,
        KvDtype::F32 => KvConversion::Widened,
        _ => KvConversion::Rounded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> KvLayout {
        KvLayout {
            model_revision: "ab".into(),
            dtype: KvDtype::F16,
            block_size: 64,
            shard_count: 2,
            layer_count: 3,
            kv_head_count: 4,
            head_size: 8,
            rope: "none".into(),
            fingerprint: [0; 16],
            exact_fingerprint: [5; 16],
        }
        .with_fingerprint()
    }

    #[test]
    fn a_layout_survives_the_wire() {
        assert_eq!(layout_from_wire(&layout_to_wire(&layout())), Ok(layout()));
    }

    #[test]
    fn layouts_that_cannot_be_are_refused_with_the_value() {
        let refused = |change: fn(&mut common::KvLayout)| {
            let mut wire = layout_to_wire(&layout());
            change(&mut wire);
            layout_from_wire(&wire).unwrap_err()
        };
        assert_eq!(
            refused(|wire| wire.block_size = 48),
            "block_size is 48; use 16, 32 or 64"
        );
        assert_eq!(refused(|wire| wire.dtype = 9), "dtype is 9; use F32, F16 or BF16");
        assert_eq!(
            refused(|wire| wire.shard_count = 3),
            "shard_count is 3; use a divisor of the 4 KV heads"
        );
        assert_eq!(
            refused(|wire| wire.shard_count = 0),
            "shard_count is 0; use a divisor of the 4 KV heads"
        );
        assert_eq!(
            refused(|wire| wire.head_size = 16),
            "the fingerprint is not that of its fields"
        );
    }

    #[test]
    fn only_sinks_of_more_bytes_convert() {
        use KvDtype::{Bf16, F16, F32};
        let expected = [
            (F32, F32, F32, KvConversion::None),
            (F32, Bf16, Bf16, KvConversion::Rounded),
            (F32, F16, F16, KvConversion::Rounded),
            (Bf16, F32, Bf16, KvConversion::Widened),
            (F16, F32, F16, KvConversion::Widened),
            (F16, Bf16, Bf16, KvConversion::Rounded),
            (Bf16, F16, F16, KvConversion::Rounded),
            (Bf16, Bf16, Bf16, KvConversion::None),
        ];
        for (source, sink, frame, what) in expected {
            assert_eq!((frame_dtype(source, sink), conversion(source, sink)), (frame, what));
        }
    }
}
