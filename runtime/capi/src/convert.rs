//! What C passes as what Rust takes.

use crate::Tensor;
use base::DType;
use exec::{ExecError, HostTensor};
use miette::Diagnostic;
use std::ffi::{CStr, c_char};

/// `LODE_USAGE`.
pub(crate) const USAGE: i32 = 2;
/// `LODE_BUG`.
pub(crate) const BUG: i32 = 101;
/// More axes than any tensor has.
const MAX_RANK: i32 = 32;

/// Why a call gave nothing.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the caller gets.
    pub status: i32,
    /// What `lode_error` tells.
    pub text: String,
}

/// A call that C should not have made so.
pub(crate) fn usage(text: &str) -> Failure {
    Failure { status: USAGE, text: text.into() }
}

impl From<ExecError> for Failure {
    fn from(e: ExecError) -> Failure {
        let code = e.code().map(|c| c.to_string()).unwrap_or_default();
        let status = code.trim_start_matches('E').parse().unwrap_or(BUG);
        let help = e.help().map_or(String::new(), |h| format!("\n  help: {h}"));
        Failure { status, text: format!("{code}: {e}{help}") }
    }
}

/// A C string.
///
/// # Safety
/// `s` is null or a C string that outlives what is done with the result.
pub(crate) unsafe fn text<'s>(s: *const c_char, what: &str) -> Result<&'s str, Failure> {
    if s.is_null() {
        return Err(usage(&format!("{what} is null")));
    }
    // SAFETY: the caller vouches for it.
    unsafe { CStr::from_ptr(s) }.to_str().map_err(|_| usage(&format!("{what} is not UTF-8")))
}

/// A tensor's name and a copy of it.
///
/// # Safety
/// The fields are null or point to what they say.
pub(crate) unsafe fn tensor(t: &Tensor) -> Result<(&str, HostTensor), Failure> {
    // SAFETY: the caller vouches for it.
    let name = unsafe { text(t.name, "the name of a tensor") }?;
    let wrong = |why: &str| usage(&format!("tensor {name}: {why}"));
    let dtype = usize::try_from(t.dtype).ok().and_then(|i| DType::ALL.get(i)).ok_or_else(|| wrong("its dtype is none"))?;
    if !(0..=MAX_RANK).contains(&t.rank) || (t.rank > 0 && t.shape.is_null()) {
        return Err(wrong(&format!("{} extents, of which there may be up to {MAX_RANK}, and not at null", t.rank)));
    }
    let shape = match t.rank {
        0 => Vec::new(),
        // SAFETY: `shape` is not null, and the caller vouches for `rank` extents.
        n => unsafe { std::slice::from_raw_parts(t.shape, n as usize) }.to_vec(),
    };
    let bytes = shape.iter().try_fold(dtype.bytes(), |n, d| n.checked_mul(usize::try_from(*d).ok()?));
    let bytes = bytes.filter(|n| isize::try_from(*n).is_ok()).ok_or_else(|| wrong(&format!("its extents are {shape:?}")))?;
    if t.data.is_null() && bytes > 0 {
        return Err(wrong("its data is null"));
    }
    let bytes = match bytes {
        0 => Vec::new(),
        // SAFETY: `data` is not null, and the caller vouches for the elements of this shape.
        n => unsafe { std::slice::from_raw_parts(t.data.cast::<u8>(), n) }.to_vec(),
    };
    Ok((name, HostTensor { dtype: *dtype, shape, bytes }))
}
