//! disagg-bench
pub mod model;
