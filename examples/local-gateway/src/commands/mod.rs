//! The commands that are clients of a gateway, or of its database.

pub(crate) mod dead_letters;
pub(crate) mod events;
pub(crate) mod executions;
pub(crate) mod function;
pub(crate) mod invoke;
pub(crate) mod keys;
