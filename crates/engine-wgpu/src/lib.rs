//! sworn-engine-wgpu
