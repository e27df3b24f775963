//! `device`: see docs/architecture.md.
