//! sworn-chain
