//! The C interface of the run-time: `include/lode.h` is its reference, and this file its other side, in the same order.
//!
//! Every function checks pointers and numbers, turns an error into its code's number and a text, and lets no panic out. What the
//! caller has to keep: pointers that are not null are valid, and a library is used by one thread at a time.

mod convert;
mod handle;

use base::DType;
use convert::{Failure, text, usage};
pub use handle::Handle;
use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// `lode_tensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// UTF-8, ends in 0.
    pub name: *const c_char,
    /// Index into [`DType::ALL`].
    pub dtype: i32,
    /// The number of extents.
    pub rank: i32,
    /// The extents.
    pub shape: *const i64,
    /// The elements.
    pub data: *const c_void,
}

/// `lode_port`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Lives as long as the library.
    pub name: *const c_char,
    /// Index into [`handle::ROLES`].
    pub role: i32,
    /// Index into [`DType::ALL`].
    pub dtype: i32,
    /// 0 or 1.
    pub is_output: i32,
    /// Extents, with commas.
    pub shape: *const c_char,
}

thread_local! {
    static ERROR: RefCell<CString> = RefCell::default();
}

/// Runs `f`; its error becomes this thread's.
fn guard<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<T, i32> {
    let result = catch_unwind(AssertUnwindSafe(f));
    let (result, text) = match result {
        Ok(Ok(value)) => (Ok(value), String::new()),
        Ok(Err(Failure { status, text })) => (Err(status), text),
        Err(_) => (Err(convert::BUG), "a bug of the run-time; the message is on standard error".into()),
    };
    ERROR.with(|e| *e.borrow_mut() = CString::new(text.replace('\0', " ")).unwrap_or_default());
    result
}

fn status(f: impl FnOnce() -> Result<(), Failure>) -> i32 {
    guard(f).map_or_else(|status| status, |()| 0)
}

/// The library behind a pointer.
///
/// # Safety
/// The pointer is null, or of `lode_open` and not closed, and no one else uses it.
unsafe fn handle<'h>(library: *mut Handle) -> Result<&'h mut Handle, Failure> {
    // SAFETY: the caller vouches for it.
    unsafe { library.as_mut() }.ok_or_else(|| usage("the library is null"))
}

/// `lode_error`.
#[unsafe(no_mangle)]
pub extern "C" fn lode_error() -> *const c_char {
    ERROR.with(|e| e.borrow().as_ptr())
}

/// `lode_open`.
///
/// # Safety
/// `path` is a C string or null, and names files that `lode build` made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_open(path: *const c_char, threads: i32) -> *mut Handle {
    let opened = guard(|| {
        let threads = usize::try_from(threads).map_err(|_| usage(&format!("{threads} threads")))?;
        // SAFETY: the caller vouches for the string and the files.
        unsafe { Handle::open(text(path, "the path")?, (threads > 0).then_some(threads)) }
    });
    opened.map_or(std::ptr::null_mut(), |h| Box::into_raw(Box::new(h)))
}

/// `lode_close`.
///
/// # Safety
/// `library` is null, or of `lode_open` and not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_close(library: *mut Handle) {
    if !library.is_null() {
        // SAFETY: `lode_open` made it by `Box::into_raw`, and the caller closes it once.
        drop(unsafe { Box::from_raw(library) });
    }
}

/// `lode_initialise`.
///
/// # Safety
/// `library` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_initialise(library: *mut Handle, seed: u64) -> i32 {
    // SAFETY: the caller vouches for the library.
    status(|| unsafe { handle(library) }?.initialise(seed))
}

/// `lode_load`.
///
/// # Safety
/// `library` is null or open, `path` null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_load(library: *mut Handle, path: *const c_char) -> i32 {
    // SAFETY: the caller vouches for both.
    status(|| unsafe { handle(library)?.load(text(path, "the path")?) })
}

/// `lode_entry`.
///
/// # Safety
/// `library` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_entry(library: *const Handle, index: i64) -> *const c_char {
    // SAFETY: the caller vouches for the library.
    let name = guard(|| Ok(unsafe { handle(library.cast_mut()) }?.entry(index).map(CStr::as_ptr)));
    name.ok().flatten().unwrap_or(std::ptr::null())
}

/// `lode_describe`.
///
/// # Safety
/// `library` is null or open, `entry` null or a C string, `port` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_describe(library: *const Handle, entry: *const c_char, index: i64, port: *mut Port) -> i32 {
    status(|| {
        // SAFETY: the caller vouches for all three.
        let (handle, port) = unsafe { (handle(library.cast_mut())?, port.as_mut()) };
        // SAFETY: as above.
        let entry = if entry.is_null() { None } else { Some(unsafe { text(entry, "the entry") }?) };
        *port.ok_or_else(|| usage("the port is null"))? = handle.describe(entry, index)?;
        Ok(())
    })
}

/// `lode_set`.
///
/// # Safety
/// `library` is null or open; `tensor` is null or points to what its fields say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_set(library: *mut Handle, role: i32, tensor: *const Tensor) -> i32 {
    status(|| {
        // SAFETY: the caller vouches for both.
        let (handle, tensor) = unsafe { (handle(library)?, tensor.as_ref()) };
        // SAFETY: as above.
        let (name, value) = unsafe { convert::tensor(tensor.ok_or_else(|| usage("the tensor is null"))?) }?;
        handle.set(handle::role(role)?, name, &value)
    })
}

/// `lode_get`.
///
/// # Safety
/// `library` is null or open, `name` null or a C string, `tensor` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_get(library: *mut Handle, role: i32, name: *const c_char, tensor: *mut Tensor) -> i32 {
    status(|| {
        // SAFETY: the caller vouches for all three.
        let (handle, name, tensor) = unsafe { (handle(library)?, text(name, "the name")?, tensor.as_mut()) };
        let tensor = tensor.ok_or_else(|| usage("the tensor is null"))?;
        *tensor = handle.get(handle::role(role)?, name)?;
        Ok(())
    })
}

/// `lode_zero`.
///
/// # Safety
/// `library` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_zero(library: *mut Handle, role: i32) -> i32 {
    // SAFETY: the caller vouches for the library.
    status(|| unsafe { handle(library) }?.zero(handle::role(role)?))
}

/// `lode_run`.
///
/// # Safety
/// `library` is null or open, `entry` null or a C string; `inputs` points to `count` tensors that are what their fields say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lode_run(library: *mut Handle, entry: *const c_char, inputs: *const Tensor, count: i64) -> i32 {
    status(|| {
        // SAFETY: the caller vouches for both.
        let (handle, entry) = unsafe { (handle(library)?, text(entry, "the entry")?) };
        let count = usize::try_from(count).map_err(|_| usage(&format!("{count} inputs")))?;
        if inputs.is_null() && count > 0 {
            return Err(usage("the inputs are null"));
        }
        // SAFETY: as above; each index is below `count`.
        let inputs = (0..count).map(|i| unsafe { convert::tensor(&*inputs.add(i)) }).collect::<Result<Vec<_>, _>>()?;
        handle.run(entry, &inputs)
    })
}

/// A dtype's number in C.
fn dtype_number(d: DType) -> i32 {
    DType::ALL.iter().position(|x| *x == d).map_or(-1, |i| i as i32)
}

#[cfg(test)]
mod tests;
