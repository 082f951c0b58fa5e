//! How KV lies in memory and which model it belongs to.

use crate::engine::WeightFormat;
use kvasir_kernels::KvDtype;
use sha2::{Digest, Sha256};

/// KV moves only between equal fingerprints; where only the rest differs, it is cut and converted on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    /// Digest of the model's configuration and weights, lower-case hex.
    pub model_revision: String,
    /// Element type. May differ between two sides.
    pub dtype: KvDtype,
    /// Tokens per block. May differ.
    pub block_size: usize,
    /// Tensor-parallel shards, which have equal parts of the KV heads, in order. May differ.
    pub shard_count: usize,
    /// Transformer layers.
    pub layer_count: usize,
    /// KV heads per layer, over all shards.
    pub kv_head_count: usize,
    /// Elements per head.
    pub head_size: usize,
    /// Canonical description of the rotary embedding, e.g. `base=100000,dim=64,scaling=none`.
    pub rope: String,
    /// See [`KvLayout::with_fingerprint`].
    pub fingerprint: [u8; 16],
    /// See [`KvLayout::with_exact_fingerprint`].
    pub exact_fingerprint: [u8; 16],
}

impl KvLayout {
    /// Fills in the fingerprint of what must be equal: the first 16 bytes of SHA-256 over the UTF-8 text
    ///
    /// ```text
    /// kvasir-kv-layout-2\n
    /// model_revision=<hex>\n
    /// layer_count=<decimal>\n
    /// kv_head_count=<decimal>\n
    /// head_size=<decimal>\n
    /// rope=<text>\n
    /// ```
    #[must_use]
    pub fn with_fingerprint(mut self) -> Self {
        let text = format!(
            "kvasir-kv-layout-2\nmodel_revision={}\nlayer_count={}\nkv_head_count={}\nhead_size={}\nrope={}\n",
            self.model_revision, self.layer_count, self.kv_head_count, self.head_size, self.rope,
        );
        let digest = Sha256::digest(text.as_bytes());
        self.fingerprint.copy_from_slice(&digest[..16]);
        self
    }

    /// Fills in the fingerprint of what decides an element's bits: the first 16 bytes of SHA-256 over the UTF-8 text
    ///
    /// ```text
    /// kvasir-kv-exact-1\n
    /// layout=<fingerprint as hex>\n
    /// dtype=<f32|f16|bf16>\n
    /// weights=<stored|f32|bf16|q8_0>\n
    /// arithmetic=<text>\n             only where it is not the CPU's
    /// ```
    #[must_use]
    pub fn with_exact_fingerprint(mut self, weights: WeightFormat, arithmetic: Option<&str>) -> Self {
        let layout: String = self.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        let weights = match weights {
            WeightFormat::Stored => "stored",
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Q8_0 => "q8_0",
        };
        let dtype = dtype_name(self.dtype);
        let arithmetic = arithmetic.map_or(String::new(), |name| format!("arithmetic={name}\n"));
        let text = format!("kvasir-kv-exact-1\nlayout={layout}\ndtype={dtype}\nweights={weights}\n{arithmetic}");
        let digest = Sha256::digest(text.as_bytes());
        self.exact_fingerprint.copy_from_slice(&digest[..16]);
        self
    }

    /// What keeps the two from exchanging KV, with both values; None when they can.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let counts = |layout: &Self| [layout.layer_count, layout.kv_head_count, layout.head_size];
        let names = ["layer_count", "kv_head_count", "head_size"];
        let counted = names.into_iter().zip(counts(self).into_iter().zip(counts(other)));
        let mut differences: Vec<String> = counted
            .filter(|(_, (ours, theirs))| ours != theirs)
            .map(|(name, (ours, theirs))| format!("{name} is {ours} and {theirs}"))
            .collect();
        if self.model_revision != other.model_revision {
            let short = |layout: &Self| layout.model_revision.chars().take(12).collect::<String>();
            differences.insert(0, format!("model_revision is {} and {}", short(self), short(other)));
        }
        if self.rope != other.rope {
            differences.push(format!("rope is {} and {}", self.rope, other.rope));
        }
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

/// `f32`, `f16` or `bf16`.
pub fn dtype_name(dtype: KvDtype) -> &'static str {
    match dtype {
        KvDtype::F32 => "f32",
        KvDtype::F16 => "f16",
        KvDtype::Bf16 => "bf16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> KvLayout {
        KvLayout {
            model_revision: "ab".into(),
            dtype: KvDtype::Bf16,
            block_size: 32,
            shard_count: 1,
            layer_count: 30,
            kv_head_count: 3,
            head_size: 64,
            rope: "base=100000,dim=64,scaling=none".into(),
            fingerprint: [0; 16],
            exact_fingerprint: [0; 16],
        }
        .with_fingerprint()
    }

    #[test]
    fn element_type_and_weights_decide_whether_kv_is_exact() {
        let exact = |dtype, block_size, weights| {
            let layout = KvLayout {
                dtype,
                block_size,
                ..base()
            };
            layout.with_exact_fingerprint(weights, None).exact_fingerprint
        };
        let bf16 = exact(KvDtype::Bf16, 32, WeightFormat::Stored);
        assert_eq!(exact(KvDtype::Bf16, 64, WeightFormat::Stored), bf16);
        assert_ne!(exact(KvDtype::F32, 32, WeightFormat::Stored), bf16);
        assert_ne!(exact(KvDtype::Bf16, 32, WeightFormat::Q8_0), bf16);
        let elsewhere = base().with_exact_fingerprint(WeightFormat::Stored, Some("cuda"));
        assert_ne!(elsewhere.exact_fingerprint, bf16);
    }

    #[test]
    fn what_must_be_equal_moves_the_fingerprint_and_is_named() {
        let base = base();
        // Worked out with `printf '…' | sha256sum`: the serialisation is a contract between processes.
        let hex: String = base.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "949735e72cefe61d5f17f54e3d83efc0");
        let changed = |change: fn(&mut KvLayout)| {
            let mut other = base.clone();
            change(&mut other);
            other.with_fingerprint()
        };
        for (other, named) in [
            (
                changed(|layout| layout.model_revision = "ac".into()),
                "model_revision is ab and ac",
            ),
            (changed(|layout| layout.layer_count = 29), "layer_count is 30 and 29"),
            (changed(|layout| layout.kv_head_count = 4), "kv_head_count is 3 and 4"),
            (changed(|layout| layout.head_size = 32), "head_size is 64 and 32"),
            (
                changed(|layout| layout.rope = "none".into()),
                "rope is base=100000,dim=64,scaling=none and none",
            ),
        ] {
            assert_ne!(other.fingerprint, base.fingerprint, "{other:?}");
            assert_eq!(base.difference(&other).as_deref(), Some(named));
        }
    }

    #[test]
    fn block_size_dtype_and_shards_may_differ() {
        let base = base();
        let other = KvLayout {
            dtype: KvDtype::F32,
            block_size: 64,
            shard_count: 3,
            ..base.clone()
        };
        assert_eq!(other.clone().with_fingerprint().fingerprint, base.fingerprint);
        assert_eq!(base.difference(&other), None);
    }
}
