//! A gateway over a scripted engine, for the tests of the public API.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, CustomWorkload, FunctionName, FunctionRef, FunctionSpec, Gateway, GatewayBuilder, InvokeResponse,
    Principal,
};
use function_gateway_testkit::{Engine, ScriptedDriver};
use serde_json::json;

pub(crate) struct Setup {
    pub(crate) gateway: Gateway,
    pub(crate) engine: Engine,
    pub(crate) store: Arc<MemoryStore>,
}

pub(crate) fn store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new("test".parse().unwrap()))
}

/// A gateway without tasks of its own, whose driver `scripted` holds an engine.
pub(crate) async fn gateway() -> Setup {
    gateway_with(|builder| builder).await
}

pub(crate) async fn gateway_with(change: impl FnOnce(GatewayBuilder) -> GatewayBuilder) -> Setup {
    let (engine, store) = (Engine::new(), store());
    let gateway = change(over(&store, &engine)).build().await.unwrap();
    Setup { gateway, engine, store }
}

pub(crate) fn over(store: &Arc<MemoryStore>, engine: &Engine) -> GatewayBuilder {
    Gateway::builder()
        .store(Arc::clone(store))
        .driver("scripted".parse().unwrap(), Arc::new(driver(engine)))
        .without_reconciler()
}

pub(crate) fn driver(engine: &Engine) -> ScriptedDriver {
    ScriptedDriver::on(engine).with_capabilities(|capabilities| capabilities.readiness_path = true)
}

pub(crate) fn principal(tenant: &str, id: &str) -> Principal {
    Principal::new(tenant.parse().unwrap(), id.parse().unwrap())
}

pub(crate) fn cx() -> CallContext {
    CallContext::new(principal("acme", "ada"))
}

pub(crate) fn name(name: &str) -> FunctionName {
    name.parse().unwrap()
}

pub(crate) fn function(name: &str) -> FunctionRef {
    name.parse().unwrap()
}

pub(crate) fn spec() -> FunctionSpec {
    FunctionSpec::new("scripted".parse().unwrap(), CustomWorkload::new("scripted", json!({})))
}

/// A specification that differs from another one by its number.
pub(crate) fn spec_number(number: u32) -> FunctionSpec {
    spec().with_env("NUMBER", number.to_string())
}

pub(crate) async fn text(response: InvokeResponse) -> String {
    String::from_utf8(body(response).await.to_vec()).unwrap()
}

pub(crate) async fn body(response: InvokeResponse) -> Bytes {
    response.body.collect(1 << 20).await.unwrap()
}

/// Gives up on what hangs, so that a broken test fails instead of running for ever.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("done within a minute")
}
