//! sworn-testkit

pub mod cases;
