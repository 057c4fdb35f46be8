//! sworn-testkit
