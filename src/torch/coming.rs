//! Copies between the CPU and a GPU that wait for nothing but themselves.

use std::ffi::{c_int, c_void};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::checked;
use super::made;
use crate::fault::Result;

unsafe extern "C" {
    fn lx_sent(out: *mut *mut C_tensor, tensor: *const C_tensor, index: c_int) -> c_int;
    fn lx_send(to: *const C_tensor, from: *const C_tensor) -> c_int;
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

/// Bytes that are copied to a GPU at a time: each piece lies in pinned memory until the GPU has it, which libtorch then takes for another.
const PIECE: usize = 32 << 20;

/// Returns a tensor on `device` with these bytes, row by row; they were read when this returns.
///
/// # Errors
/// When there are not as many bytes as the shape says, or the device cannot hold them.
pub fn sent_bytes(bytes: &[u8], shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    if device == Device::Cpu {
        return Ok(Tensor::f_from_data_size(bytes, shape, kind)?);
    }
    let (to, size) = (Tensor::f_empty(shape, (kind, device))?, kind.elt_size_in_bytes());
    if to.numel() * size != bytes.len() {
        return Err(super::unforeseen("a tensor of another size than its shape says").into());
    }
    let (flat, mut start) = (to.f_view([to.numel() as i64])?, 0);
    for piece in bytes.chunks(PIECE) {
        let count = (piece.len() / size) as i64;
        // SAFETY: as many bytes as numbers take, which live until the call below has copied them into pinned memory.
        let from = unsafe { Tensor::f_from_blob(piece.as_ptr(), &[count], &[1], kind, Device::Cpu)? };
        // SAFETY: live tensors for the length of the call.
        checked(unsafe { lx_send(flat.f_narrow(0, start, count)?.as_ptr(), from.as_ptr()) })?;
        start += count;
    }
    Ok(to)
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
