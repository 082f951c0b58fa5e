//! Matrix products by cuBLASLt: bf16 in, sums in f32.

use super::CudaDevice;
use crate::device::{Buffer, Device, DeviceError};
use crate::ops::Gemm;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use std::collections::HashMap;
use std::ffi::c_void;

/// Memory that algorithms may use: what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Prepared shapes that are kept: prompts come in all lengths.
const PREPARED_MAX: usize = 1024;

/// cuBLASLt, and the products it was prepared for.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    prepared: HashMap<[usize; 4], Prepared>,
}

// SAFETY: the handle and descriptors belong to no thread; a lock gives them one user at a time.
unsafe impl Send for Blas {}

struct Prepared {
    product: sys::cublasLtMatmulDesc_t,
    weights: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Blas {
    /// Whether the library is there.
    pub(super) fn is_present() -> bool {
        // SAFETY: loading the library runs its own initialisers and no others.
        unsafe { sys::is_culib_present() }
    }

    pub(super) fn new(device: &CudaDevice) -> Result<Self, DeviceError> {
        Ok(Self {
            handle: result::create_handle().map_err(failed)?,
            workspace: device.allocate(WORKSPACE_BYTES)?,
            prepared: HashMap::new(),
        })
    }

    pub(super) fn product(&mut self, op: &Gemm<'_>, stream: &CudaStream) -> Result<(), DeviceError> {
        if op.rows == 0 {
            return Ok(());
        }
        let key = [op.rows, op.cols, op.inner, usize::from(op.is_f32)];
        if self.prepared.len() >= PREPARED_MAX && !self.prepared.contains_key(&key) {
            self.prepared.clear();
        }
        if !self.prepared.contains_key(&key) {
            let prepared = Prepared::new(self.handle, op)?;
            self.prepared.insert(key, prepared);
        }
        let prepared = &self.prepared[&key];
        let (one, zero) = (1.0_f32, 0.0_f32);
        let pointer = |buffer: &Buffer| buffer.address() as *mut c_void;
        // SAFETY: the descriptors live in `prepared` and were made for these sizes; the buffers are the device's and outlive the work.
        unsafe {
            result::matmul(
                self.handle,
                prepared.product,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                pointer(op.weights),
                prepared.weights,
                pointer(op.x),
                prepared.x,
                pointer(op.out),
                prepared.out,
                pointer(op.out),
                prepared.out,
                &raw const prepared.algorithm,
                pointer(&self.workspace),
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.prepared.clear();
        // SAFETY: made in `new`, destroyed once; nothing can be told when it fails.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Prepared {
    /// Row-major `out[rows, cols] = x · weightsᵀ` is column-major `outᵀ = weightsᵀᵀ · xᵀ`, which is how the library sees the same memory.
    fn new(handle: sys::cublasLtHandle_t, op: &Gemm<'_>) -> Result<Self, DeviceError> {
        let (bf16, f32) = (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_32F);
        let (rows, cols, inner) = (op.rows as u64, op.cols as u64, op.inner as u64);
        let layout = |kind, rows, cols| result::create_matrix_layout(kind, rows, cols, rows as i64).map_err(failed);
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32).map_err(failed)?;
        let transposed = 1_i32; // CUBLAS_OP_T
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the descriptor lives, and the attribute is an i32.
        unsafe { result::set_matmul_desc_attribute(product, attribute, (&raw const transposed).cast(), 4) }
            .map_err(failed)?;
        let weights = layout(bf16, inner, cols)?;
        let x = layout(bf16, inner, rows)?;
        let out = layout(if op.is_f32 { f32 } else { bf16 }, cols, rows)?;
        let preference = result::create_matmul_pref().map_err(failed)?;
        let workspace = WORKSPACE_BYTES as u64;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the preference lives until the call after the next, and the attribute is a u64.
        let found = unsafe {
            result::set_matmul_pref_attribute(preference, attribute, (&raw const workspace).cast(), 8)
                .and_then(|()| result::get_matmul_algo_heuristic(handle, product, weights, x, out, out, preference))
        };
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        Ok(Self {
            product,
            weights,
            x,
            out,
            algorithm: found.map_err(failed)?.algo,
        })
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once; nothing can be told when one fails.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.weights, self.x, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

fn failed(error: CublasError) -> DeviceError {
    DeviceError::Failed(format!("cuBLASLt: {:?}", error.0))
}
