//! The `sworn` command.
fn main() {}
