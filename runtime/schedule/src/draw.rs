//! Pictures of a simulated plan: an SVG timeline and a trace for Perfetto or Chrome. Both name actions as the plan's text does.

mod svg;
mod trace;

pub use svg::svg;
pub use trace::trace;
