//! A gateway over scripted engines, through the public API.

#[cfg(test)]
mod common;
#[cfg(test)]
mod executor;
#[cfg(test)]
mod manager;
#[cfg(test)]
mod reconcile;
#[cfg(test)]
mod records;
