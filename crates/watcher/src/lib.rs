//! sworn-watcher
