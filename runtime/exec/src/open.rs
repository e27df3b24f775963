//! A session from the files of a build, without the compiler: `<stem>.lodelib` and `lib<stem>.so` beside it.

use crate::{ExecError, Session};
use device::SharedObject;
use library::{
    HOST, Library, LibraryError, SM_90A,
    file::{BUILD_SYMBOL, object_path},
};
use std::path::Path;

impl Session {
    /// A session on the library at `path`, whose code is the shared object beside it, on `threads` threads, or one a core; or on the
    /// first GPU, if it is for one.
    ///
    /// # Errors
    /// E0601 to E0607 for the library, E0441 and E0442 for the GPU, E0609 if its shared object is not there, cannot be loaded or is of another build.
    ///
    /// # Safety
    /// Both files are what `lode build` made: loading the shared object runs its initialisers, and kernels trust the manifest.
    pub unsafe fn open(path: &Path, threads: Option<usize>) -> Result<Session, ExecError> {
        let library = Library::read(path)?;
        if library.manifest.target == SM_90A {
            return Session::on_gpu(library, 0, None);
        }
        library.expect_target(HOST)?;
        // A name without a folder would be looked for in the system's folders.
        let object = object_path(&std::path::absolute(path).unwrap_or(path.into()));
        let failed = |why: String| ExecError::from(LibraryError::Object { path: object.display().to_string(), why });
        if !object.exists() {
            return Err(failed("it is not there".into()));
        }
        // SAFETY: the caller vouches for the file.
        let code = unsafe { SharedObject::open(&object) }.map_err(|e| failed(e.to_string()))?;
        // SAFETY: `lode build` defines the symbol with this type.
        if unsafe { code.number(BUILD_SYMBOL) } != Some(library.build()) {
            return Err(failed(format!("it is not of the same build as {}", path.display())));
        }
        Session::new(library.manifest, Box::new(code), threads)
    }
}
