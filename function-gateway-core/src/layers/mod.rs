//! The built-in middleware: what needs no heavy dependency.

mod authorize;
mod deadline;
mod limit;
mod observe;
mod record;
mod retry;

pub(crate) use authorize::Authorize;
pub(crate) use deadline::{AttemptTimeout, Overall};
pub(crate) use limit::Limit;
pub(crate) use observe::Observe;
pub(crate) use record::Record;
pub(crate) use retry::Retrying;
