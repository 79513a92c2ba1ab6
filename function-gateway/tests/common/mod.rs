//! What the tests over the whole stack share.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use function_gateway::store::memory::{MemoryStore, MemoryStoreOptions};
use function_gateway::{
    CallContext, CustomWorkload, FunctionExecutor as _, FunctionName, FunctionRef, FunctionSpec, Gateway,
    InvocationRecord, InvokeResponse, PageRequest, Principal, ProcessWorkload, RecordFilter,
};
use serde_json::json;

/// How often the long runs do what the usual ones do once; `cargo xtask soak --times` sets it.
pub fn soak_times() -> u64 {
    std::env::var("FUNCTION_GATEWAY_SOAK").ok().and_then(|times| times.parse().ok()).unwrap_or(10)
}

/// The seed of the long runs; `cargo xtask soak --seed` sets it.
pub fn soak_seed() -> u64 {
    std::env::var("FUNCTION_GATEWAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// A store that forgets none of the records that a test makes.
pub fn store() -> Arc<MemoryStore> {
    let options = MemoryStoreOptions::default().with_max_records(10_000_000).with_max_revisions_per_function(100_000);
    Arc::new(MemoryStore::with_options("test".parse().unwrap(), options))
}

pub fn cx() -> CallContext {
    cx_of("acme")
}

pub fn cx_of(tenant: &str) -> CallContext {
    CallContext::new(Principal::new(tenant.parse().unwrap(), "ada".parse().unwrap()))
}

pub fn name(name: &str) -> FunctionName {
    name.parse().unwrap()
}

pub fn function(name: &str) -> FunctionRef {
    name.parse().unwrap()
}

/// A function on the scripted driver that is registered under a name.
pub fn scripted(driver: &str) -> FunctionSpec {
    FunctionSpec::new(driver.parse().unwrap(), CustomWorkload::new("scripted", json!({})))
}

/// A shell script as a function on the driver `local`.
pub fn sh(script: &str) -> FunctionSpec {
    FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("/bin/sh").with_args(["-c", script]))
}

pub async fn text(response: InvokeResponse) -> String {
    String::from_utf8(response.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

/// Gives up on what hangs, so that a broken test fails instead of running for ever.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(300), work).await.expect("done in time")
}

/// Every record of the tenant of [`cx`], newest first.
pub async fn records(gateway: &Gateway) -> Vec<Arc<InvocationRecord>> {
    let (mut all, mut page) = (Vec::new(), PageRequest::first(PageRequest::MAX_LIMIT));
    loop {
        let part = gateway.executions(&cx(), &RecordFilter::default(), &page).await.unwrap();
        all.extend(part.items);
        match part.next {
            Some(next) => page = page.after(next),
            None => return all,
        }
    }
}
