//! The `wgpu` backend: every opcode as an integer kernel.
//!
//! **Owns** the kernels, the device memory of a model and its sequences, and the choice of an adapter. **May depend on**
//! `isa`, `model`, `engine` and, alone in this workspace, on burn and CubeCL. **Must never** use a float, a 64-bit device
//! integer or one of burn's own operators for anything that decides an answer, and must give the bits of
//! [`sworn_isa::spec`] on every adapter.

mod adapter;
mod backend;
mod batch;
mod fused;
mod gpu;
mod kernels;
mod launch;
mod loaded;
mod matrix;
mod plan;
mod pool;
mod scratch;
mod sequence;
mod single;
mod staging;

pub use adapter::{Adapter, AdapterKind, Selection, probe};
pub use backend::WgpuBackend;
pub use gpu::Products;
pub use matrix::PackedRows;
pub use single::{Kernels, Single, Values};

/// Why the device cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// Nothing to run on.
    #[error(
        "no {wanted} found (adapters: {found}): install a Vulkan driver, or run script/mesa and source the file it prints for \
         a software adapter, or use the cpu backend"
    )]
    NoAdapter {
        /// what was asked for
        wanted: String,
        /// what there is
        found: String,
    },
    /// The model asks for more than the device has, or for something that has no kernel.
    #[error("{0}")]
    Unsupported(String),
    /// The device or its driver failed.
    #[error("{0}")]
    Device(String),
}
