//! Callbacks on their way to receivers on this machine.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code fails by panicking")]

mod answers;
mod broken;
mod reference;
mod tls;

use function_gateway_callbacks::{CallbackConfig, HttpCallbacks};
use function_gateway_core::{
    CallContext, Callback, Delivery, Error, ErrorKind, InvocationId, Principal, Retry, Timestamp,
};

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

fn callback(url: impl Into<String>) -> Callback {
    Callback::new(InvocationId::generate(), url, Timestamp::now(), r#"{"state": "succeeded"}"#)
}

/// What may reach this machine, over plain HTTP too.
fn local() -> CallbackConfig {
    CallbackConfig::new().allow_http().allow_networks(["127.0.0.0/8"])
}

fn callbacks() -> HttpCallbacks {
    HttpCallbacks::new(local()).unwrap()
}

#[track_caller]
fn assert_is(error: &Error, kind: ErrorKind, retry: Retry, delivery: Delivery) {
    assert_eq!((error.kind(), error.retry(), error.delivery()), (kind, retry, delivery), "{error:?}");
}
