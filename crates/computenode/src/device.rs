//! Where tensors are computed.

use candle_core::Device;

/// The first GPU where the feature `cuda` is built in and there is one, else the processors.
///
/// # Errors
/// There is a GPU, and it does not work.
pub(crate) fn best() -> candle_core::Result<Device> {
    if is_without_gpu() { Ok(Device::Cpu) } else { Device::cuda_if_available(0) }
}

#[cfg(feature = "cuda")]
fn is_without_gpu() -> bool {
    use candle_core::cuda_backend::cudarc::driver::result::{DriverError, init};
    use candle_core::cuda_backend::cudarc::driver::sys::CUresult;

    // The driver says so where there is none, and where CUDA_VISIBLE_DEVICES hides them all.
    matches!(init(), Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)))
}

#[cfg(not(feature = "cuda"))]
fn is_without_gpu() -> bool {
    true
}
