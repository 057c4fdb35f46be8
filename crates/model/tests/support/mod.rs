//! What several test files need.
#![allow(dead_code, reason = "no test file uses all of it")]

pub(crate) mod gguf_file;
pub(crate) mod hf_directory;
pub(crate) mod interpreter;
