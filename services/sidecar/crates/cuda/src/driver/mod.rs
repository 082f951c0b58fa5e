//! A GPU through the driver API, loaded at run time: without a driver this module answers with an error and nothing else changes.

mod blas;
mod clock;
mod host_memory;
mod staging;

use crate::device::{
    Buffer, Device, DeviceError, DeviceMemory, Fetch, HostBuffer, Launch, Memory, Pending, Recording, SwapPart,
};
use crate::ops::{self, Gemm, GemmShape};
use blas::Blas;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute_enum as FunctionAttribute};
use cudarc::driver::{CudaContext, CudaStream};
use kvasir_kernels::SwapDirection;
use staging::{PIECE_BYTES, PinnedFetch, Spare, Staging};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// By cuBLASLt where it is found.
    Fastest,
    /// By the own kernel, whose rows do not depend on each other.
    Deterministic,
}

/// Shared memory that a kernel has without asking for more.
const SHARED_DEFAULT: usize = 48 << 10;

struct Owner {
    context: Arc<CudaContext>,
    /// Bytes by address.
    taken: Mutex<HashMap<u64, usize>>,
}

impl Memory for Owner {
    fn release(&self, address: u64) {
        // Work that still uses the memory ends first: `cuMemFree` waits for it.
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&address);
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the address came from `malloc_sync` of this context and is released once. What fails here failed before and was told.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

struct Function(sys::CUfunction);
// SAFETY: a function's handle belongs to its context, not to a thread.
unsafe impl Send for Function {}

struct Module(sys::CUmodule);
// SAFETY: as for functions.
unsafe impl Send for Module {}

/// One GPU and the stream on which the engine's work is done, in order.
pub struct CudaDevice {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    owner: Arc<Owner>,
    kernels: PathBuf,
    modules: Mutex<HashMap<&'static str, Module>>,
    functions: Mutex<HashMap<&'static str, Function>>,
    blas: Option<Mutex<Blas>>,
    staging: Mutex<Staging>,
    spare: Spare,
    multiprocessors: usize,
    description: String,
}

impl CudaDevice {
    /// Opens GPU `ordinal`; `kernels` is the folder that `npm run kernels` fills.
    ///
    /// # Errors
    /// [`DeviceError::Failed`]: no driver, no such GPU, one older than compute capability 8.0, or no kernels.
    pub fn open(ordinal: usize, kernels: &Path, products: Products) -> Result<Self, DeviceError> {
        if !Self::has_driver() {
            return Err(DeviceError::Failed(
                "no NVIDIA driver: libcuda.so.1 is not found; use --device cpu, or install the driver".into(),
            ));
        }
        let count = CudaContext::device_count().map_err(|error| failed("looking for GPUs", error))?;
        if i64::try_from(ordinal).map_or(true, |ordinal| ordinal >= i64::from(count)) {
            return Err(DeviceError::Failed(format!(
                "there is no GPU {ordinal}: the driver shows {count}; use --device cuda:N with a smaller N, or cpu"
            )));
        }
        let context = CudaContext::new(ordinal).map_err(|error| failed("opening the GPU", error))?;
        let name = context
            .name()
            .map_err(|error| failed("asking for the GPU's name", error))?;
        let (major, minor) = context
            .compute_capability()
            .map_err(|error| failed("asking for the compute capability", error))?;
        if major < 8 {
            return Err(DeviceError::Failed(format!(
                "{name} has compute capability {major}.{minor}; the kernels need 8.0"
            )));
        }
        if !kernels.join("rmsnorm.fatbin").is_file() {
            return Err(DeviceError::Failed(format!(
                "no kernels in {}; make them with npm run kernels, or name their folder with KVASIR_KERNELS",
                kernels.display()
            )));
        }
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(|error| failed("asking for the multiprocessors", error))?;
        let stream = context.new_stream().map_err(|error| failed("making a stream", error))?;
        let owner = Arc::new(Owner {
            context: Arc::clone(&context),
            taken: Mutex::default(),
        });
        let mut device = Self {
            context,
            stream,
            owner,
            kernels: kernels.to_owned(),
            modules: Mutex::default(),
            functions: Mutex::default(),
            blas: None,
            staging: Mutex::default(),
            spare: Spare::default(),
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
            description: format!("{name}, compute capability {major}.{minor}"),
        };
        if products == Products::Fastest && Blas::is_present() {
            device.blas = Some(Mutex::new(Blas::new(&device)?));
        }
        device.description += if device.blas.is_some() {
            ", cuBLASLt"
        } else {
            ", own products"
        };
        Ok(device)
    }

    /// Whether the driver's library is there.
    pub fn has_driver() -> bool {
        // SAFETY: loading the driver's library runs its own initialisers and no others.
        unsafe { sys::is_culib_present() }
    }

    /// The same GPU and memory with a stream of its own, whose work runs beside this one's. Products are the own kernel's.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn beside(&self) -> Result<Self, DeviceError> {
        let stream = self
            .context
            .new_stream()
            .map_err(|error| failed("making a stream", error))?;
        Ok(Self {
            context: Arc::clone(&self.context),
            stream,
            owner: Arc::clone(&self.owner),
            kernels: self.kernels.clone(),
            modules: Mutex::default(),
            functions: Mutex::default(),
            blas: None,
            staging: Mutex::default(),
            spare: Spare::default(),
            multiprocessors: self.multiprocessors,
            description: self.description.clone(),
        })
    }

    /// Copies between buffers of the device, on its stream.
    ///
    /// # Errors
    /// [`DeviceError::Range`], [`DeviceError::Failed`].
    pub fn copy(&self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<(), DeviceError> {
        from.check(0, bytes)?;
        to.check(0, bytes)?;
        self.bind()?;
        // SAFETY: both ranges were checked, and buffers live until work on them has ended.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, self.stream.cu_stream()) }
            .map_err(|error| failed("a copy on the device", error))
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also for what failed before.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.stream
            .synchronize()
            .map_err(|error| failed("the device's work", error))
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context
            .bind_to_thread()
            .map_err(|error| failed("the GPU's context", error))
    }

    fn function(&self, launch: &Launch) -> Result<sys::CUfunction, DeviceError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(launch.kernel) {
            return Ok(function.0);
        }
        let module = self.module(launch.file)?;
        let name = CString::new(launch.kernel).map_err(|error| DeviceError::Failed(error.to_string()))?;
        // SAFETY: modules are never unloaded before the process ends.
        let function = unsafe { result::module::get_function(module, name) }.map_err(|error| {
            failed(
                &format!("{}.fatbin has no kernel {}", launch.file, launch.kernel),
                error,
            )
        })?;
        if launch.shared_bytes > SHARED_DEFAULT {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function exists.
            unsafe { result::function::set_function_attribute(function, attribute, launch.shared_bytes as i32) }
                .map_err(|error| {
                    failed(
                        &format!("{} bytes of shared memory for {}", launch.shared_bytes, launch.kernel),
                        error,
                    )
                })?;
        }
        functions.insert(launch.kernel, Function(function));
        Ok(function)
    }

    fn module(&self, file: &'static str) -> Result<sys::CUmodule, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(file) {
            return Ok(module.0);
        }
        let path = self.kernels.join(file).with_extension("fatbin");
        let image =
            std::fs::read(&path).map_err(|error| DeviceError::Failed(format!("{}: {error}", path.display())))?;
        // SAFETY: the driver reads the image as long as its own header says; files are what nvcc wrote.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|error| failed(&format!("loading {}", path.display()), error))?;
        modules.insert(file, Module(module));
        Ok(module)
    }
}

impl Device for CudaDevice {
    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.bind()?;
        let bytes = bytes.max(1);
        // SAFETY: a plain allocation of at least one byte.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => {
                let mut taken = self.owner.taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.insert(address, bytes);
                Ok(Buffer::new(Arc::clone(&self.owner) as Arc<dyn Memory>, address, bytes))
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(DeviceError::OutOfMemory { bytes }),
            Err(error) => Err(failed("an allocation", error)),
        }
    }

    fn write(&self, to: &Buffer, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        to.check(offset, from.len())?;
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.write(&self.stream, to.address() + offset as u64, from)
    }

    fn read(&self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        from.check(offset, to.len())?;
        self.bind()?;
        // While one piece is copied out of page-locked memory the next one travels.
        let mut under_way = VecDeque::new();
        let mut address = from.address() + offset as u64;
        for piece in to.chunks_mut(PIECE_BYTES) {
            let length = piece.len();
            under_way.push_back((PinnedFetch::start(&self.stream, &self.spare, address, length)?, piece));
            address += length as u64;
            if under_way.len() > 1
                && let Some((fetch, piece)) = under_way.pop_front()
            {
                fetch.finish(|bytes| piece.copy_from_slice(bytes))?;
            }
        }
        for (fetch, piece) in under_way {
            fetch.finish(|bytes| piece.copy_from_slice(bytes))?;
        }
        self.synchronize()
    }

    fn fetch(&self, from: &Buffer, offset: usize, bytes: usize) -> Result<Box<dyn Fetch>, DeviceError> {
        from.check(offset, bytes)?;
        self.bind()?;
        let fetch = PinnedFetch::start(&self.stream, &self.spare, from.address() + offset as u64, bytes)?;
        Ok(Box::new(fetch))
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostBuffer, DeviceError> {
        self.lock_host_memory(bytes)
    }

    fn swap(
        &self,
        direction: SwapDirection,
        device: &Buffer,
        host: &HostBuffer,
        parts: &[SwapPart],
    ) -> Result<Box<dyn Pending>, DeviceError> {
        Ok(Box::new(self.start_swap(direction, device, host, parts)?))
    }

    fn another_stream(&self) -> Result<Arc<dyn Device>, DeviceError> {
        Ok(Arc::new(self.beside()?))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Box<dyn Recording>, DeviceError> {
        Ok(Box::new(self.graph(work)?))
    }

    fn launch(&self, launch: Launch, arguments: &[u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let function = self.function(&launch)?;
        // The driver copies the struct during the call; it wants it aligned as its widest field.
        let mut words = vec![0_u64; arguments.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(arguments.chunks(8)) {
            let mut full = [0; 8];
            full[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(full);
        }
        let [x, y, z] = launch.grid;
        let mut parameters = [words.as_mut_ptr().cast::<c_void>()];
        // SAFETY: launchers give each kernel its own struct (the suite compares sizes), with addresses of buffers that outlive the work, since
        // releasing one waits for it.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared_bytes as u32,
                self.stream.cu_stream(),
                &mut parameters,
            )
        }
        .map_err(|error| failed(&format!("launching {}", launch.kernel), error))
    }

    fn product(&self, op: &Gemm<'_>) -> Result<(), DeviceError> {
        match &self.blas {
            Some(blas) => {
                self.bind()?;
                blas.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .product(op, &self.stream)
            }
            None => ops::gemm(self, op, GemmShape::for_rows(op.rows)),
        }
    }

    fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(|error| failed("asking for free memory", error))?;
        let taken = self.owner.taken.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(DeviceMemory {
            free: free as u64,
            total: total as u64,
            taken: taken.values().map(|bytes| *bytes as u64).sum(),
        })
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn description(&self) -> String {
        self.description.clone()
    }
}

fn failed(what: &str, error: DriverError) -> DeviceError {
    let name = error
        .error_name()
        .map_or("unknown error".into(), |name| name.to_string_lossy());
    DeviceError::Failed(format!("{what}: {name}"))
}
