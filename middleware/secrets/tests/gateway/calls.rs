//! Functions are created and called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, CustomWorkload, Delivery, Error, ErrorKind, FunctionExecutor as _, FunctionManager as _, FunctionSpec,
    Gateway, InvokeRequest, KeepPayloads, MemorySecrets, PageRequest, PayloadFormat, Principal, ProvidedSecret,
    RecordFilter, Result, RetryPolicy, Secret, SecretBinding, SecretChain, SecretProvider, SecretRef, TenantId,
    TimedPhase,
};
use function_gateway_secrets::{Secrets, SecretsOptions};
use function_gateway_testkit::{Engine, Handler, Op, ScriptedDriver};
use serde_json::{Value, json};

const CANARY: &str = "canary-3f9a1c";

#[derive(Debug, Default)]
struct Vault {
    values: MemorySecrets,
    down: AtomicBool,
    /// How often it is down before it comes back by itself; none for ever.
    failures: AtomicUsize,
    asked: AtomicUsize,
}

#[async_trait]
impl SecretProvider for Vault {
    async fn get(&self, cx: &CallContext, tenant: &TenantId, secret: &SecretRef) -> Result<Option<ProvidedSecret>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let fails =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails || self.down.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::DependencyUnavailable, "the vault is out of reach"));
        }
        self.values.get(cx, tenant, secret).await
    }
}

struct Setup {
    gateway: Gateway,
    engine: Engine,
    vault: Arc<Vault>,
}

fn cx(tenant: &str) -> CallContext {
    CallContext::new(Principal::new(tenant.parse().unwrap(), "ada".parse().unwrap()))
}

fn name(secret: &str) -> SecretRef {
    secret.parse().unwrap()
}

fn spec() -> FunctionSpec {
    FunctionSpec::new("scripted".parse().unwrap(), CustomWorkload::new("scripted", json!({})))
        .with_secret(SecretBinding::env(name("a"), "A"))
        .with_secret(SecretBinding::env(name("b"), "B"))
}

async fn setup() -> Setup {
    let (engine, vault) = (Engine::new(), Arc::new(Vault::default()));
    engine.on_invoke(Handler::secrets());
    for (tenant, secret, value) in [("acme", "a", CANARY), ("acme", "b", "of-b"), ("acme", "c", "of-c")] {
        vault.values.set(tenant.parse().unwrap(), name(secret), Secret::new(value));
    }
    let chain = SecretChain::new(vec![Arc::clone(&vault) as _]);
    let gateway = Gateway::builder()
        .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(&engine)))
        .secrets(Arc::clone(&vault) as _)
        .middleware_for_all(Arc::new(Secrets::new(chain, SecretsOptions::default())))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    Setup { gateway, engine, vault }
}

async fn with(spec: FunctionSpec) -> Setup {
    let setup = setup().await;
    setup.create("acme", spec).await;
    setup
}

impl Setup {
    async fn create(&self, tenant: &str, spec: FunctionSpec) {
        self.gateway.create(&cx(tenant), &"f".parse().unwrap(), spec).await.unwrap();
    }

    async fn call(&self, tenant: &str, request: InvokeRequest) -> Result<Value> {
        let response = self.gateway.invoke(&cx(tenant), &"f".parse().unwrap(), request).await?;
        assert!(response.call.as_ref().unwrap().timings().get(TimedPhase::Prepare).is_some());
        Ok(serde_json::from_slice(&response.body.collect(1 << 20).await?).unwrap())
    }

    async fn send(&self, tenant: &str) -> Result<Value> {
        self.call(tenant, InvokeRequest::new("{}")).await
    }
}

#[tokio::test]
async fn a_function_gets_exactly_what_its_specification_lists() {
    let setup = with(spec()).await;
    assert_eq!(setup.send("acme").await.unwrap(), json!({"A": CANARY, "B": "of-b"}));
    setup.send("acme").await.unwrap();
    assert_eq!(setup.vault.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_call_narrows_what_the_function_gets_and_never_widens_it() {
    let setup = with(spec()).await;
    let narrowed = |names: &[&str]| InvokeRequest::new("{}").with_secrets(names.iter().map(|secret| name(secret)));
    assert_eq!(setup.call("acme", narrowed(&["b"])).await.unwrap(), json!({"B": "of-b"}));
    assert_eq!(setup.call("acme", narrowed(&[])).await.unwrap(), json!({}));
    let error = setup.call("acme", narrowed(&["b", "c"])).await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::InvalidArgument, Delivery::NotSent));
    assert_eq!(setup.engine.count(Op::Invoke), 2);
}

#[tokio::test]
async fn a_secret_reaches_the_envelope_too() {
    let mut wrapped = spec();
    wrapped.format = PayloadFormat::Envelope;
    wrapped.secrets = vec![SecretBinding::envelope(name("a"), "token")];
    let setup = with(wrapped).await;
    setup.engine.on_invoke(Handler::new(async |_, request| {
        let envelope: Value = serde_json::from_slice(&request.body.collect(1 << 20).await?).unwrap();
        let answer = json!({"context": {}, "payload": envelope["context"]["secrets"]}).to_string();
        Ok(function_gateway_core::InvokeResponse::new(http::StatusCode::OK, answer))
    }));
    assert_eq!(setup.send("acme").await.unwrap(), json!({"token": CANARY}));
}

#[tokio::test]
async fn another_tenants_function_of_the_same_name_gets_its_own() {
    let setup = with(spec()).await;
    setup.create("globex", spec()).await;
    assert_eq!(setup.send("acme").await.unwrap()["A"], CANARY);
    let error = setup.send("globex").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(!format!("{error} {error:?}").contains(CANARY));
}

#[tokio::test]
async fn a_missing_secret_is_never_retried_and_a_vault_that_is_down_is() {
    let mut retried = spec();
    let mut policy = RetryPolicy::attempts(3);
    policy.initial_backoff = std::time::Duration::ZERO;
    policy.max_backoff = std::time::Duration::ZERO;
    retried.retry = Some(policy);
    retried.secrets.truncate(1);
    let setup = with(retried).await;

    setup.vault.failures.store(2, Ordering::Relaxed);
    assert_eq!(setup.send("acme").await.unwrap(), json!({"A": CANARY}));
    assert_eq!(setup.vault.asked.swap(0, Ordering::Relaxed), 3);

    let mut missing = spec();
    missing.secrets = vec![SecretBinding::env(name("none"), "NONE")];
    missing.retry = Some(RetryPolicy::attempts(3));
    let precondition = function_gateway_core::Precondition::none();
    setup.gateway.update(&cx("acme"), &"f".parse().unwrap(), missing, precondition).await.unwrap();
    assert_eq!(setup.send("acme").await.unwrap_err().kind(), ErrorKind::Misconfigured);
    assert_eq!(setup.vault.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_vault_that_is_down_fails_the_call_before_it_is_sent() {
    let setup = with(spec()).await;
    setup.vault.down.store(true, Ordering::Relaxed);
    let error = setup.send("acme").await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::DependencyUnavailable, Delivery::NotSent));
    assert_eq!(setup.engine.count(Op::Invoke), 0);
    setup.vault.down.store(false, Ordering::Relaxed);
    setup.send("acme").await.unwrap();
}

#[tokio::test]
async fn a_secret_that_the_function_shows_is_in_no_record() {
    let mut kept = spec();
    kept.record.payloads = Some(KeepPayloads::Always);
    let setup = with(kept).await;
    setup.engine.on_invoke(Handler::new(async |_, request| {
        request.logs.write(b"the secret is canary-3f9a1c\n");
        Ok(function_gateway_core::InvokeResponse::new(http::StatusCode::OK, "\"canary-3f9a1c\""))
    }));
    assert_eq!(setup.send("acme").await.unwrap(), CANARY);
    let page = setup.gateway.executions(&cx("acme"), &RecordFilter::default(), &PageRequest::default()).await.unwrap();
    let record = &page.items[0];
    let kept = |kept: &Option<function_gateway_core::KeptBytes>| {
        String::from_utf8(kept.as_ref().unwrap().bytes.to_vec()).unwrap()
    };
    for shown in [kept(&record.logs), kept(&record.result), format!("{record:?}"), json!(**record).to_string()] {
        assert!(!shown.contains(CANARY), "{shown}");
    }
    assert!(kept(&record.logs).contains(function_gateway_core::REDACTED));
}
