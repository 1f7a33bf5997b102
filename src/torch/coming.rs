//! Copies between the CPU and a GPU that wait for nothing but themselves.

use std::ffi::{c_int, c_void};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::checked;
use super::made;
use crate::fault::Result;

unsafe extern "C" {
    fn lx_sent(out: *mut *mut C_tensor, tensor: *const C_tensor, index: c_int) -> c_int;
    fn lx_mark(out: *mut *mut c_void, index: c_int) -> c_int;
    fn lx_mark_reached(mark: *mut c_void) -> c_int;
    fn lx_mark_free(mark: *mut c_void);
}

/// Returns a tensor of the CPU on `device`, where a GPU finds it when it comes to that.
pub fn sent(tensor: &Tensor, device: Device) -> Tensor {
    let Device::Cuda(index) = device else { return tensor.to_device(device) };
    // SAFETY: a live tensor for the length of the call.
    let [sent] = made(|out| unsafe { lx_sent(out, tensor.as_ptr(), c_int::try_from(index).unwrap_or(0)) });
    sent
}

/// A tensor on its way to the CPU.
#[derive(Debug)]
pub struct Coming {
    tensor: Tensor,
    /// What a GPU reaches once it has copied the tensor.
    mark: Option<Mark>,
}

impl Coming {
    /// Begins to copy.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let device = tensor.device();
        // Into pinned memory, or the copy would wait.
        let tensor = tensor.to_device_(Device::Cpu, tensor.kind(), true, false);
        let Device::Cuda(index) = device else { return Ok(Self { tensor, mark: None }) };
        let mut mark = std::ptr::null_mut();
        // SAFETY: on success `mark` is a new one that we own.
        checked(unsafe { lx_mark(&raw mut mark, c_int::try_from(index).unwrap_or(0)) })?;
        Ok(Self { tensor, mark: Some(Mark(mark)) })
    }

    /// Waits for the tensor.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn wait(self) -> Result<Tensor> {
        if let Some(Mark(mark)) = &self.mark {
            // SAFETY: a live mark.
            checked(unsafe { lx_mark_reached(*mark) })?;
        }
        Ok(self.tensor)
    }
}

/// A point in what a GPU does.
#[derive(Debug)]
struct Mark(*mut c_void);

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: ours alone, and not used after this.
        unsafe { lx_mark_free(self.0) }
    }
}
