//! What authors of drivers and stores for Function Gateway test with.
//!
//! - [`driver`]: the conformance suite for drivers; [`driver_conformance!`] makes a test of each of its cases.
//! - [`store`]: the conformance suites for stores, by macros likewise.
//! - [`scripted`]: a driver on an engine in memory, whose behaviour a test scripts.
//! - [`chaos`]: wraps a driver and injects faults at random, repeatable by a seed.
//! - [`crash`]: kills a host at every step of an operation.
//! - [`ManualClock`]: a wall clock that a test sets.
//!
//! It is for tests only: a wrong use panics, and cases fail by panicking.

pub mod chaos;
mod clock;
pub mod crash;
pub mod driver;
pub mod scripted;
pub mod store;

pub use chaos::{ChaosDriver, ChaosRates};
pub use clock::ManualClock;
pub use crash::{CrashDriver, CrashPlan, CrashSide, CrashStore};
pub use driver::{Behaviour, Bench, DriverHarness};
pub use scripted::{Engine, Fault, Gate, Handler, Op, Readiness, ScriptedDriver};
