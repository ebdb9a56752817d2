//! The challenge on NVIDIA's GPUs. CUDA's driver and its run-time compiler are loaded when they are needed; the kernels
//! travel as source text, so that one program serves GPUs of all generations.
#![allow(unsafe_code, reason = "launching a kernel is unsafe: the compiler cannot check its arguments")]

use std::ffi::CString;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{self, CompileError, CompileOptions, Ptx};

use super::matrices::{CHUNK_BYTES, digest_of_pieces};
use super::{Backend, BackendError, Bytes32, Challenge, Cpu, SIZE_STEP};

const SOURCE: &str = include_str!("kernels.cu");
/// Code for this compute capability uses all that the kernels know.
const FULL_ARCH: i32 = 80;
const DIGEST_BYTES: usize = 32;
const WORD_BYTES: usize = 4;
const PRODUCT_THREADS: u32 = 256;
const THREADS: u32 = 128;
/// So many products are queued before their digests are fetched, some milliseconds of work for a fast GPU.
const BATCH: u32 = 16;

/// One GPU.
pub struct Cuda {
    name: String,
    stream: Arc<CudaStream>,
    factors: CudaFunction,
    pieces: CudaFunction,
    product: CudaFunction,
}

/// What one product needs on the GPU, reused from product to product.
struct Buffers {
    key: CudaSlice<u32>,
    factors: CudaSlice<u32>,
    product: CudaSlice<u32>,
    pieces: CudaSlice<u32>,
    /// The digests of the pieces' digests.
    digests: CudaSlice<u32>,
}

impl Cuda {
    /// The GPU with this UUID as NVML tells it, or the first. Takes some hundred milliseconds.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`]: the host has no CUDA driver, no NVRTC library or no such GPU, or the GPU does
    /// not reach the CPU's results.
    pub fn open(uuid: Option<&str>) -> Result<Self, BackendError> {
        Self::open_with(uuid, &[])
    }

    fn open_with(uuid: Option<&str>, options: &[&str]) -> Result<Self, BackendError> {
        let unavailable = |reason: String| BackendError::Unavailable { reason };
        // SAFETY: loading NVIDIA's libraries runs their initialisers, which have no preconditions.
        let (driver, compiler) = unsafe { (sys::is_culib_present(), nvrtc::sys::is_culib_present()) };
        if !driver {
            return Err(unavailable("libcuda, a part of NVIDIA's driver, is not installed".to_owned()));
        }
        if !compiler {
            return Err(unavailable("libnvrtc, a part of CUDA, is not installed".to_owned()));
        }
        let ordinal = ordinal(uuid).map_err(|error| unavailable(error.to_string()))?;
        let ordinal = ordinal.ok_or_else(|| unavailable(format!("no GPU {}", uuid.unwrap_or("at all"))))?;
        let cuda = Self::build(ordinal, options).map_err(|error| unavailable(error.to_string()))?;
        cuda.self_test().map_err(unavailable)?;
        Ok(cuda)
    }

    /// A GPU, driver or compiler that computes wrongly must not answer in the host's name.
    fn self_test(&self) -> Result<(), String> {
        let challenge = Challenge { seed: Bytes32([0x5a; 32]), n: SIZE_STEP, products: 2 };
        let digests = self.digests_of(&challenge, 1..2).map_err(|error| format!("{error:?}"))?;
        if Cpu::default().digests(&challenge, 1..2).as_ref() == Ok(&digests) {
            Ok(())
        } else {
            Err("the GPU computes wrongly".to_owned())
        }
    }

    fn build(ordinal: usize, options: &[&str]) -> Result<Self, OpenError> {
        let context = CudaContext::new(ordinal)?;
        let (major, minor) = context.compute_capability()?;
        let arch = 10 * major + minor;
        // Machine code runs whatever the driver's age is; a compiler that has not heard of the GPU yet makes code that
        // the driver translates.
        let module = match machine_code(arch, options) {
            Some(code) => context.load_module(Ptx::from_binary(code))?,
            None => context.load_module(portable_code(arch, options)?)?,
        };
        Ok(Self {
            name: format!("CUDA, {}", context.name()?),
            stream: context.default_stream(),
            factors: module.load_function("factors")?,
            pieces: module.load_function("pieces")?,
            product: module.load_function("product")?,
        })
    }

    fn buffers(&self, challenge: &Challenge, batch: usize) -> Result<Buffers, DriverError> {
        let stream = &self.stream;
        let key: Vec<u32> =
            challenge.seed.0.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let words = |bytes: usize| stream.alloc_zeros(bytes / WORD_BYTES);
        Ok(Buffers {
            key: stream.clone_htod(&key)?,
            factors: words(2 * challenge.entries())?,
            product: words(challenge.product_bytes())?,
            pieces: words(hashed(challenge.product_bytes()))?,
            digests: words(batch * hashed(hashed(challenge.product_bytes())))?,
        })
    }

    /// Queues one product.
    fn multiply(&self, challenge: &Challenge, index: u32, buffers: &mut Buffers) -> Result<(), DriverError> {
        // A block of the key stream has 64 bytes.
        let blocks = (2 * challenge.entries() / 64) as u32;
        let mut launch = self.stream.launch_builder(&self.factors);
        launch.arg(&mut buffers.factors).arg(&buffers.key).arg(&index).arg(&blocks);
        // SAFETY: the kernel writes `blocks` blocks of 64 bytes, which is the buffer's size, and reads 8 words of key.
        unsafe { launch.launch(grid(blocks, THREADS)) }?;
        let tiles = challenge.n / SIZE_STEP;
        let config = LaunchConfig {
            grid_dim: (tiles, tiles, 1),
            block_dim: (PRODUCT_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let n = challenge.n.cast_signed();
        let mut launch = self.stream.launch_builder(&self.product);
        launch.arg(&buffers.factors).arg(&mut buffers.product).arg(&n);
        // SAFETY: `n` is a multiple of the tile's size; the kernel reads two matrices of n² bytes and writes one of
        // n² words, which are the buffers' sizes.
        unsafe { launch.launch(config) }?;
        Ok(())
    }

    /// Queues the digest of the product that was queued before, as number `place` of the batch.
    fn hash(&self, buffers: &mut Buffers, place: usize) -> Result<(), DriverError> {
        let count = buffers.product.len() * WORD_BYTES / CHUNK_BYTES;
        let mut launch = self.stream.launch_builder(&self.pieces);
        let pieces = count as u32;
        launch.arg(&buffers.product).arg(&mut buffers.pieces).arg(&pieces);
        // SAFETY: the kernel reads `pieces` KiB, which the product has, and writes a digest for each.
        unsafe { launch.launch(grid(pieces, THREADS)) }?;
        let pieces = (count * DIGEST_BYTES / CHUNK_BYTES) as u32;
        let words = hashed(count * DIGEST_BYTES) / WORD_BYTES;
        let mut out = buffers.digests.slice_mut(place * words..(place + 1) * words);
        let mut launch = self.stream.launch_builder(&self.pieces);
        launch.arg(&buffers.pieces).arg(&mut out).arg(&pieces);
        // SAFETY: as above; `out` is as long as the digests.
        unsafe { launch.launch(grid(pieces, THREADS)) }?;
        Ok(())
    }

    fn digests_of(&self, challenge: &Challenge, range: Range<u32>) -> Result<Vec<Bytes32>, DriverError> {
        let batch = range.len();
        let mut buffers = self.buffers(challenge, batch)?;
        for (place, index) in range.enumerate() {
            self.multiply(challenge, index, &mut buffers)?;
            self.hash(&mut buffers, place)?;
        }
        let digests = bytes(&self.stream.clone_dtoh(&buffers.digests)?);
        Ok(digests.chunks(hashed(hashed(challenge.product_bytes()))).map(digest_of_pieces).collect())
    }

    fn product_of(&self, challenge: &Challenge, index: u32) -> Result<Vec<u8>, DriverError> {
        let mut buffers = self.buffers(challenge, 1)?;
        self.multiply(challenge, index, &mut buffers)?;
        Ok(bytes(&self.stream.clone_dtoh(&buffers.product)?))
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn batch(&self) -> u32 {
        BATCH
    }

    fn digests(&mut self, challenge: &Challenge, range: Range<u32>) -> Result<Vec<Bytes32>, BackendError> {
        self.digests_of(challenge, range).map_err(failed)
    }

    fn product(&mut self, challenge: &Challenge, index: u32) -> Result<Vec<u8>, BackendError> {
        self.product_of(challenge, index).map_err(failed)
    }
}

/// The kernels for exactly this compute capability; `None` if the compiler does not know it.
fn machine_code(arch: i32, options: &[&str]) -> Option<Vec<u8>> {
    let source = CString::new(SOURCE).ok()?;
    let options = compiler_options(&format!("sm_{arch}"), options);
    let program = nvrtc::result::create_program(&source, None).ok()?;
    // SAFETY: the program was created above, is destroyed once and not used thereafter; its source outlives it; the
    // compiler writes as many bytes of code as it has told before.
    unsafe {
        let code = nvrtc::result::compile_program(program, &options).and_then(|()| {
            let mut length = 0;
            nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut length).result()?;
            let mut code = vec![0_u8; length];
            nvrtc::sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
            Ok(code)
        });
        let destroyed = nvrtc::result::destroy_program(program);
        code.and_then(|code| destroyed.map(|()| code)).ok()
    }
}

/// The kernels for this compute capability and all later ones.
fn portable_code(arch: i32, options: &[&str]) -> Result<Ptx, CompileError> {
    let options = compiler_options(&format!("compute_{}", arch.min(FULL_ARCH)), options);
    nvrtc::compile_ptx_with_opts(SOURCE, CompileOptions { options, ..Default::default() })
}

fn compiler_options(arch: &str, options: &[&str]) -> Vec<String> {
    let options = options.iter().map(|option| (*option).to_owned());
    options.chain([format!("--gpu-architecture={arch}")]).collect()
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("{0:?}")]
    Driver(#[from] DriverError),
    #[error("{0}")]
    Compile(#[from] CompileError),
}

fn failed(error: DriverError) -> BackendError {
    BackendError::Failed { reason: format!("{error:?}") }
}

/// CUDA's number of the GPU; CUDA and NVML count in different orders.
fn ordinal(uuid: Option<&str>) -> Result<Option<usize>, DriverError> {
    result::init()?;
    let count = result::device::get_count()?;
    let Some(uuid) = uuid else { return Ok((count > 0).then_some(0)) };
    let wanted: String = uuid.split_once('-').map_or(uuid, |(_, id)| id).replace('-', "");
    for ordinal in 0..count {
        let id = result::device::get_uuid(result::device::get(ordinal)?)?;
        if hex::encode(id.bytes.map(|byte| byte.to_ne_bytes()[0])) == wanted {
            return Ok(usize::try_from(ordinal).ok());
        }
    }
    Ok(None)
}

/// How many bytes the digests of so many bytes' pieces have.
fn hashed(bytes: usize) -> usize {
    bytes / CHUNK_BYTES * DIGEST_BYTES
}

fn grid(threads: u32, block: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (threads.div_ceil(block), 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: 0 }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::challenge::{Terms, Verifier, commit, open};
    use std::time::{Duration, Instant};

    fn gpu(options: &[&str]) -> Option<Cuda> {
        let inventory = crate::detect();
        let uuid = inventory.gpus().find_map(|device| device.uuid.clone());
        match Cuda::open_with(uuid.as_deref(), options) {
            Ok(cuda) => Some(cuda),
            Err(error) => {
                assert_ne!(inventory.source, crate::Source::Nvml, "there is a GPU: {error}");
                println!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn a_host_without_cuda_is_told_so() {
        let error = Cuda::open(Some("GPU-00000000-0000-0000-0000-000000000000")).err();
        assert!(matches!(error, Some(BackendError::Unavailable { .. })), "{error:?}");
    }

    /// Needs the compiler, but no GPU.
    #[test]
    fn the_kernels_compile_for_all_generations() {
        // SAFETY: as in `Cuda::open_with`.
        if !unsafe { nvrtc::sys::is_culib_present() } {
            println!("skipped: libnvrtc is not installed");
            return;
        }
        for (arch, options) in [(75, &[][..]), (80, &[]), (90, &[]), (90, &["-DPORTABLE"])] {
            assert!(machine_code(arch, options).is_some_and(|code| !code.is_empty()), "{arch} {options:?}");
        }
        portable_code(120, &[]).unwrap();
        assert!(machine_code(1, &[]).is_none());
    }

    #[test]
    fn the_gpu_and_the_cpu_agree_bit_for_bit() {
        for options in [&[][..], &["-DPORTABLE"]] {
            let Some(mut cuda) = gpu(options) else { return };
            for n in [128, 384, 1024] {
                let challenge = Challenge { seed: Bytes32([n as u8; 32]), n, products: 3 };
                let product = cuda.product(&challenge, 2).unwrap();
                assert!(product == Cpu::default().product(&challenge, 2).unwrap(), "{n} {options:?}");
                let digests = cuda.digests(&challenge, 1..3).unwrap();
                assert_eq!(digests, Cpu::default().digests(&challenge, 1..3).unwrap(), "{n} {options:?}");
            }
        }
    }

    #[test]
    fn a_real_gpu_proves_itself() {
        let Some(mut cuda) = gpu(&[]) else { return };
        let terms = Terms { n: 4096, products: 64, openings: 1, error_bits: 120 };
        let (verifier, challenge) = Verifier::start(&terms, [3; 32]).unwrap();
        let started = Instant::now();
        let commitment = commit(&mut cuda, &challenge, Duration::from_secs(60)).unwrap();
        let mut audit = verifier.commitment(commitment, started.elapsed()).unwrap();
        let index = audit.wanted().next().unwrap();
        let verdict = audit.check(&open(&mut cuda, &challenge, index).unwrap()).unwrap().unwrap();
        println!("{}: {} multiply-adds/s", cuda.name(), verdict.multiply_adds_per_second);
        // Slower than any GPU with CUDA of the last ten years, faster than any CPU core.
        assert!(verdict.multiply_adds_per_second > 100_000_000_000);
    }
}
