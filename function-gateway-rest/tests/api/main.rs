//! The API over a real socket.
#![cfg(feature = "serve")]

#[cfg(test)]
mod access;
#[cfg(test)]
mod common;
#[cfg(test)]
mod events;
#[cfg(test)]
mod executions;
#[cfg(test)]
mod functions;
#[cfg(test)]
mod guard;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod invocations;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod malformed_http2;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod runtimes;
#[cfg(test)]
mod schemathesis;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod stores;
