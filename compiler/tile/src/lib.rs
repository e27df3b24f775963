//! `tile`: see docs/architecture.md.
