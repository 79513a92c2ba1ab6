//! Workers behind a gateway: restarts of the host, a second host, updates under load, secrets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

#[cfg(test)]
#[path = "common/worker.rs"]
mod worker_program;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, ErrorKind, FunctionExecutor as _, FunctionManager as _, FunctionName, FunctionRef, FunctionSpec,
    Gateway, InvokeRequest, LogQuery, MemorySecrets, Phase, Precondition, Principal, Secret, SecretBinding,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use futures_util::StreamExt as _;
use worker_program::worker as spec;

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

fn name() -> FunctionName {
    "fun".parse().unwrap()
}

fn store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new("test".parse().unwrap()))
}

/// A gateway as one process has it, on a store that all share.
async fn host(store: &Arc<MemoryStore>, secrets: &Arc<MemorySecrets>) -> Gateway {
    Gateway::builder()
        .store(Arc::clone(store))
        .driver("local".parse().unwrap(), Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap()))
        .secrets(Arc::clone(secrets) as _)
        .build()
        .await
        .unwrap()
}

async fn call(gateway: &Gateway, payload: &'static str) -> String {
    let answer = gateway.invoke(&cx(), &FunctionRef::from(name()), InvokeRequest::new(payload)).await.unwrap();
    assert!(answer.outcome.is_success(), "{answer:?}");
    String::from_utf8(answer.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

async fn stop(gateway: Gateway) {
    gateway.shutdown(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test]
async fn a_restarted_host_and_a_second_one_serve_by_workers_of_their_own() {
    let (store, secrets) = (store(), Arc::new(MemorySecrets::new()));
    let first = host(&store, &secrets).await;
    let created = first.create(&cx(), &name(), spec("variable:FUNCTION_HOST")).await.unwrap();
    assert_eq!(created.status.phase, Phase::Ready);
    let mark = call(&first, "").await;
    assert_eq!(call(&first, "").await, mark);
    // The driver is named by the mark of its workers.
    let second = host(&store, &secrets).await;
    let of_second = call(&second, "").await;
    assert_ne!(of_second, mark);
    assert_eq!(call(&first, "").await, mark);
    stop(first).await;
    let restarted = host(&store, &secrets).await;
    let of_restarted = call(&restarted, "").await;
    assert!(of_restarted != mark && of_restarted != of_second);
    stop(second).await;
    stop(restarted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_replaces_workers_without_a_gap() {
    const CALLERS: usize = 16;
    let gateway = host(&store(), &Arc::new(MemorySecrets::new())).await;
    let numbered = |number: usize| spec("variable:NUMBER").with_env("NUMBER", number.to_string());
    gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
    let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (gateway, over, calls) = (gateway.clone(), Arc::clone(&over), Arc::clone(&calls));
            tokio::spawn(async move {
                let mut newest = 0;
                while !over.load(Ordering::SeqCst) {
                    let number: usize = call(&gateway, "").await.parse().unwrap();
                    assert!(number >= newest, "{number} after {newest}");
                    newest = number;
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for number in 1..=4 {
        let updated = gateway.update(&cx(), &name(), numbered(number), Precondition::none()).await.unwrap();
        assert_eq!(
            (updated.status.phase, updated.status.serving_generation()),
            (Phase::Ready, Some(updated.generation))
        );
        // New calls get the new worker at once.
        assert_eq!(call(&gateway, "").await, number.to_string());
    }
    over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(calls.load(Ordering::SeqCst) >= CALLERS);
    stop(gateway).await;
}

#[tokio::test]
async fn a_secret_is_in_the_environment_of_a_worker_and_a_rotation_starts_another() {
    let (store, secrets) = (store(), Arc::new(MemorySecrets::new()));
    let set = |value: &'static str| secrets.set(cx().tenant().clone(), "key".parse().unwrap(), Secret::new(value));
    set("first-value");
    let gateway = host(&store, &secrets).await;
    let with_secret = spec("variable:KEY").with_secret(SecretBinding::env("key".parse().unwrap(), "KEY"));
    gateway.create(&cx(), &name(), with_secret).await.unwrap();
    assert_eq!(call(&gateway, "").await, "first-value");
    set("second-value");
    assert_eq!(call(&gateway, "").await, "first-value");
    gateway.rotate_secrets(&cx(), &name(), Precondition::none()).await.unwrap();
    assert_eq!(call(&gateway, "").await, "second-value");
    stop(gateway).await;
}

#[tokio::test]
async fn a_function_that_can_t_start_says_why_without_its_secrets() {
    let (store, secrets) = (store(), Arc::new(MemorySecrets::new()));
    secrets.set(cx().tenant().clone(), "key".parse().unwrap(), Secret::new("the config"));
    let gateway = host(&store, &secrets).await;
    let mut failing: FunctionSpec = spec("crash-at-start");
    failing = failing.with_secret(SecretBinding::env("key".parse().unwrap(), "KEY"));
    let created = gateway.create(&cx(), &name(), failing).await.unwrap();
    assert_eq!(created.status.phase, Phase::Failed);
    let message = &created.status.deployment(created.generation).unwrap().message;
    assert!(message.contains("exit status 7") && message.contains("cannot find"), "{message}");
    assert!(!message.contains("the config"), "{message}");
    let refused = gateway.invoke(&cx(), &FunctionRef::from(name()), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotReady);
    stop(gateway).await;
}

#[tokio::test]
async fn the_log_of_the_workers_is_the_function_s() {
    let gateway = host(&store(), &Arc::new(MemorySecrets::new())).await;
    gateway.create(&cx(), &name(), spec("log:hello")).await.unwrap();
    call(&gateway, "").await;
    let (cx, mut query) = (cx(), LogQuery::default());
    query.tail = Some(1);
    let lines: Vec<_> = gateway.logs(&cx, &name(), query).await.unwrap().collect().await;
    assert!(lines[0].as_ref().unwrap().text.ends_with(b"hello"), "{lines:?}");
    stop(gateway).await;
}
