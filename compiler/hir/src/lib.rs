//! `hir`: see docs/architecture.md.
