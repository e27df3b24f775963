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

impl Code for SharedObject {
    fn kernel(&self, symbol: &str) -> Option<KernelFn> {
        // SAFETY: symbols of kernel libraries have this type.
        unsafe { self.library.get::<KernelFn>(symbol.as_bytes()) }.ok().map(|f| *f)
    }
}
