//! The audit log as events of `tracing`. A test binary of its own: whether an event is wanted is remembered for all threads.

#![allow(clippy::unwrap_used, reason = "test code fails by panicking")]

#[cfg(test)]
#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use function_gateway::{
    AccessManager as _, Action, ApiKeyId, AuditFilter, CallContext, FunctionExecutor as _, FunctionManager as _,
    Gateway, InvokeRequest, NewApiKey, PageRequest, Precondition, Principal, ScopeAuthorizer, SubmitOptions,
};
use function_gateway_testkit::ScriptedDriver;

use common::{function, name, scripted, store};

fn caller(id: &str, scope: &str) -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), id.parse().unwrap()).with_scope(scope))
}

fn admin() -> CallContext {
    caller("ann", "admin")
}

/// What is told of audit events to whoever listens, by the names of fields.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<BTreeMap<&'static str, String>>>>);

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "function_gateway::audit"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(BTreeMap<&'static str, String>);
        impl tracing::field::Visit for Fields {
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                self.0.insert(field.name(), value.to_owned());
            }

            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}"));
            }
        }
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn every_change_is_told_with_who_did_what_to_what() {
    let listener = Listener::default();
    let _guard = tracing::subscriber::set_default(listener.clone());
    let builder = Gateway::builder().store(store()).authorizer(Arc::new(ScopeAuthorizer));
    let gateway = builder.driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::new())).build().await.unwrap();
    gateway.create(&admin(), &name("a"), scripted("scripted")).await.unwrap();
    gateway.delete(&caller("bob", "read"), &name("a"), Precondition::none()).await.unwrap_err();
    let key = gateway.create_api_key(&admin(), NewApiKey::new(ApiKeyId::generate(), [7; 32])).await.unwrap();
    let options = SubmitOptions::default();
    let submitted = gateway.submit(&admin(), &function("a"), InvokeRequest::new("x"), options).await.unwrap();
    let execution = submitted.id;
    gateway.cancel(&admin(), execution).await.unwrap();
    gateway.audit(&admin(), Action::WriteSubscriptions, "orders").await;
    let told = listener.0.lock().unwrap().clone();
    let (key, execution) = (key.id.to_string(), execution.to_string());
    let expected: [&[(&str, &str)]; 5] = [
        &[("principal", "ann"), ("action", "create"), ("function", "a"), ("generation", "1"), ("allowed", "true")],
        &[("principal", "bob"), ("action", "delete"), ("function", "a"), ("allowed", "false")],
        &[("principal", "ann"), ("action", "create_key"), ("key", &key), ("allowed", "true")],
        &[
            ("principal", "ann"),
            ("action", "cancel"),
            ("function", "a"),
            ("execution", &execution),
            ("allowed", "true"),
        ],
        &[("principal", "ann"), ("action", "write_subscriptions"), ("subject", "orders"), ("allowed", "true")],
    ];
    let expected =
        expected.map(|fields| fields.iter().copied().chain([("tenant", "acme")]).collect::<BTreeMap<_, _>>());
    let told: Vec<BTreeMap<&str, &str>> =
        told.iter().map(|fields| fields.iter().map(|(name, value)| (*name, value.as_str())).collect()).collect();
    assert_eq!(told, expected);
    // The log has the same.
    let page = gateway.audit_events(&admin(), &AuditFilter::all(), &PageRequest::default()).await.unwrap();
    let kept: Vec<_> =
        page.items.iter().rev().map(|event| (event.execution.is_some(), event.subject.as_deref())).collect();
    assert_eq!(kept, [(false, None), (false, None), (false, None), (true, None), (false, Some("orders"))]);
}
