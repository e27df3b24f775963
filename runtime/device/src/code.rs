//! Compiled kernels, by symbol.

use std::path::Path;

/// A kernel: runs blocks `begin..end` on its buffers and extents.
pub type KernelFn = unsafe extern "C" fn(buffers: *const *mut u8, dims: *const i64, begin: i64, end: i64);

/// Code in memory that stays valid as long as this value.
pub trait Code: Send + Sync {
    /// The kernel of this symbol.
    fn kernel(&self, symbol: &str) -> Option<KernelFn>;
}

/// Kernels of a shared object file.
pub struct SharedObject {
    library: libloading::Library,
}

impl SharedObject {
    /// Loads a file that `lode build` made.
    ///
    /// # Errors
    /// What the loader says.
    ///
    /// # Safety
    /// Loading runs the file's initialisers: it has to be a library of kernels.
    pub unsafe fn open(path: &Path) -> Result<SharedObject, libloading::Error> {
        // SAFETY: the caller vouches for the file.
        unsafe { libloading::Library::new(path) }.map(|library| SharedObject { library })
    }
}

impl SharedObject {
    /// The number that a data symbol of 8 bytes holds.
    ///
    /// # Safety
    /// The symbol, if it is there, is of 8 bytes, aligned.
    pub unsafe fn number(&self, symbol: &str) -> Option<u64> {
        // SAFETY: the caller vouches for the symbol's type.
        unsafe { self.library.get::<*const u64>(symbol.as_bytes()).ok().map(|p| **p) }
    }
}

impl Code for SharedObject {
    fn kernel(&self, symbol: &str) -> Option<KernelFn> {
        // SAFETY: symbols of kernel libraries have this type.
        unsafe { self.library.get::<KernelFn>(symbol.as_bytes()) }.ok().map(|f| *f)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn shared_objects_give_symbols_or_say_why_not() {
        // SAFETY: it does not exist.
        assert!(unsafe { SharedObject::open(Path::new("no-such-file.so")) }.is_err());
        // SAFETY: the C library is loaded already.
        let Ok(c) = (unsafe { SharedObject::open(Path::new("libc.so.6")) }) else { return println!("skipped: no libc.so.6") };
        assert!(c.kernel("memcpy").is_some() && c.kernel("no_such_kernel").is_none());
    }
}
