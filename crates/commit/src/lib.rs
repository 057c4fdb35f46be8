//! sworn-commit
