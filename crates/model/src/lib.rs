//! sworn-model
