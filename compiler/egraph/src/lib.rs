//! `egraph`: see docs/architecture.md.
