//! sworn-bindings
