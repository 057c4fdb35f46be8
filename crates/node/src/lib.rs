//! sworn-node
