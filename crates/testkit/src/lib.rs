//! Test support: dishonest provers, devnets, and cases for differential tests.
//!
//! **Owns** every way in which this repository lies: none of it is reachable from the shipped binary. **May depend on** all
//! other crates but the command line. **Must never** be a dependency of one of them outside its tests.
#![forbid(unsafe_code)]

pub mod actors;
pub mod buyer;
pub mod cases;
pub mod court;
pub mod devnet;
pub mod faulty;
pub mod fixture;
pub mod hearing;
pub mod liar;
pub mod process;
pub mod run;
pub mod scenario;
pub mod table;
pub mod tamper;
pub mod tried;
pub mod weather;
