//! What a device can refuse: E0441 to E0444.

/// See the pages `docs/errors/E044x.md`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
pub enum DeviceError {
    /// There is no such device.
    #[error("no device: {why}")]
    #[diagnostic(code(E0441), help("`lode doctor` lists devices; `--backend host` needs none"))]
    None {
        /// In the driver's words, or ours.
        why: String,
    },
    /// The driver does not take the code.
    #[error("the code of {what} is refused: {why}")]
    #[diagnostic(code(E0442), help("{log}"))]
    Code {
        /// A module, or one kernel.
        what: String,
        /// In the driver's words.
        why: String,
        /// What its assembler says.
        log: String,
    },
    /// A step failed.
    #[error("{step} failed: {why}")]
    #[diagnostic(code(E0443), help("{help}"))]
    Step {
        /// The kernel and its source line, or what else was done.
        step: String,
        /// In the driver's words.
        why: String,
        /// What is known about where it comes from.
        help: &'static str,
    },
    /// Memory that the device does not have, after the plan was admitted.
    #[error("the device has no {bytes} bytes")]
    #[diagnostic(code(E0444), help("another program may use the device: {free} bytes are free"))]
    Memory {
        /// Asked for.
        bytes: usize,
        /// Left.
        free: usize,
    },
}
