//! A gateway over scripted engines, through the public API.

#[cfg(test)]
mod access;
#[cfg(test)]
mod check;
#[cfg(test)]
mod common;
#[cfg(test)]
mod executor;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod manager;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod reconcile;
#[cfg(test)]
mod records;
