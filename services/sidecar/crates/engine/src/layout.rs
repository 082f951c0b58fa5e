//! How KV lies in memory and which model it belongs to.

use kvasir_kernels::KvDtype;
use sha2::{Digest, Sha256};

/// KV moves only between equal fingerprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    /// Digest of the model's configuration and weights, lower-case hex.
    pub model_revision: String,
    /// Element type.
    pub dtype: KvDtype,
    /// Tokens per block.
    pub block_size: usize,
    /// Transformer layers.
    pub layer_count: usize,
    /// KV heads per layer.
    pub kv_head_count: usize,
    /// Elements per head.
    pub head_size: usize,
    /// Canonical description of the rotary embedding, e.g. `base=100000,dim=64,scaling=none`.
    pub rope: String,
    /// See [`KvLayout::with_fingerprint`].
    pub fingerprint: [u8; 16],
}

impl KvLayout {
    /// Fills in the fingerprint: the first 16 bytes of SHA-256 over the UTF-8 text
    ///
    /// ```text
    /// kvasir-kv-layout-1\n
    /// model_revision=<hex>\n
    /// dtype=<f32|f16|bf16>\n
    /// block_size=<decimal>\n
    /// layer_count=<decimal>\n
    /// kv_head_count=<decimal>\n
    /// head_size=<decimal>\n
    /// rope=<text>\n
    /// ```
    #[must_use]
    pub fn with_fingerprint(mut self) -> Self {
        let text = format!(
            "kvasir-kv-layout-1\nmodel_revision={}\ndtype={}\nblock_size={}\nlayer_count={}\nkv_head_count={}\nhead_size={}\nrope={}\n",
            self.model_revision,
            dtype_name(self.dtype),
            self.block_size,
            self.layer_count,
            self.kv_head_count,
            self.head_size,
            self.rope,
        );
        let digest = Sha256::digest(text.as_bytes());
        self.fingerprint.copy_from_slice(&digest[..16]);
        self
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

    #[test]
    fn every_field_moves_the_fingerprint() {
        let base = KvLayout {
            model_revision: "ab".into(),
            dtype: KvDtype::Bf16,
            block_size: 32,
            layer_count: 30,
            kv_head_count: 3,
            head_size: 64,
            rope: "base=100000,dim=64,scaling=none".into(),
            fingerprint: [0; 16],
        }
        .with_fingerprint();
        // Worked out with `printf '…' | sha256sum`: the serialisation is a contract between processes.
        let hex: String = base.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "db1876aa80ac481d6dadac0bc3412a35");
        let others = [
            KvLayout {
                model_revision: "ac".into(),
                ..base.clone()
            },
            KvLayout {
                dtype: KvDtype::F16,
                ..base.clone()
            },
            KvLayout {
                block_size: 16,
                ..base.clone()
            },
            KvLayout {
                layer_count: 29,
                ..base.clone()
            },
            KvLayout {
                kv_head_count: 4,
                ..base.clone()
            },
            KvLayout {
                head_size: 32,
                ..base.clone()
            },
            KvLayout {
                rope: "base=10000,dim=64,scaling=none".into(),
                ..base.clone()
            },
        ];
        for other in others {
            assert_ne!(
                other.clone().with_fingerprint().fingerprint,
                base.fingerprint,
                "{other:?}"
            );
        }
    }
}
