//! `dialects`: see docs/architecture.md.
