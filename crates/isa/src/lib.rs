//! The instruction set of Sworn: exact integer inference as data.
//!
//! **Owns** the definition of every opcode ([`spec`]), the 64-byte operator [`Descriptor`], the [`Program`] with its
//! checks, the integer primitives ([`fixed`]) and the scalar reference ([`element`]): one output element of one operator
//! computed from the inputs it reads.
//! **May depend on** nothing but `core`/`alloc` and `thiserror`.
//! **Must never** do I/O, know of a chain, a GPU or a file format, or use floating point.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod descriptor;
mod element;
pub mod fixed;
pub mod logprob;
mod program;
mod row;
pub mod sampling;

pub use descriptor::{DESCRIPTOR_BYTES, Descriptor, DescriptorError, Dtype, Opcode, Operand, OperandKind};
pub use element::{RowData, StepError, StepReader, element};
pub use program::{MAX_OPS, MAX_POSITIONS, Program, ProgramError, Section, SectionKind};
pub use row::{GROUP, GROUP_SCALE_MAX, RowFormat};
pub use sampling::Sampling;

/// The version of this instruction set, part of every model's id.
pub const ISA_VERSION: u16 = 1;

#[doc = include_str!("../../../docs/instruction-set.md")]
pub mod spec {}
