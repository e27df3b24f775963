//! Each rule on both sides, and what must not fire.
