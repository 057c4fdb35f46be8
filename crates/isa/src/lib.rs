//! sworn-isa
