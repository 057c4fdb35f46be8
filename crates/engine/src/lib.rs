//! sworn-engine
