//! OpenFaaS behind a gateway: updates under load, a full engine, what somebody changes behind our back, and many functions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

#[cfg(test)]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fake::{Fake, Fault, Flavour, Options};
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, ConditionKind, DeployRequest, ErrorKind, FaasDriver as _, Function, FunctionExecutor as _, FunctionId,
    FunctionKey, FunctionManager as _, FunctionName, FunctionRef, FunctionSpec, FunctionStore as _, Gateway,
    GatewayBuilder, GatewayId, Generation, InvokeRequest, MemorySecrets, Phase, Precondition, Principal, Revision,
    RevisionReason, RevisionState, RouteEntry, Secret, SecretBinding, Timestamp,
};
use function_gateway_openfaas::{OpenFaas, OpenFaasConfig};
use http::Method;
use serde_json::{Value, json};

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

fn name() -> FunctionName {
    "fun".parse().unwrap()
}

fn spec(behaviour: &str) -> FunctionSpec {
    fake::spec("lab/fn:v1", behaviour)
}

fn numbered(number: usize) -> FunctionSpec {
    spec("variable:NUMBER").with_env("NUMBER", number.to_string())
}

fn driver(fake: &Fake) -> OpenFaas {
    OpenFaas::new(OpenFaasConfig::new(&fake.url)).unwrap()
}

async fn gateway(fake: &Fake) -> Gateway {
    with_secrets(fake, Arc::default()).await
}

async fn with_secrets(fake: &Fake, secrets: Arc<MemorySecrets>) -> Gateway {
    builder(fake).secrets(secrets).build().await.unwrap()
}

fn builder(fake: &Fake) -> GatewayBuilder {
    Gateway::builder()
        .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
        .driver("faas".parse().unwrap(), Arc::new(driver(fake)))
}

/// A gateway that sweeps only when it is told to.
async fn unattended(fake: &Fake) -> Gateway {
    builder(fake).without_reconciler().build().await.unwrap()
}

async fn call(gateway: &Gateway) -> String {
    let answer = gateway.invoke(&cx(), &FunctionRef::from(name()), InvokeRequest::new("hello")).await.unwrap();
    assert!(answer.outcome.is_success(), "{answer:?}");
    String::from_utf8(answer.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

async fn stop(gateway: Gateway) {
    gateway.shutdown(Duration::from_secs(30)).await.unwrap();
}

fn service(function: &Function, generation: Generation) -> String {
    let target = function.status.deployment(generation).unwrap().target.clone();
    target.as_str().rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_under_load_has_no_gap() {
    const CALLERS: usize = 16;
    for flavour in [Flavour::Netes, Flavour::Faasd] {
        let fake = Fake::start(Options::new(flavour)).await;
        let gateway = gateway(&fake).await;
        gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
        let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (gateway, over, calls) = (gateway.clone(), Arc::clone(&over), Arc::clone(&calls));
                tokio::spawn(async move {
                    let mut newest = 0;
                    while !over.load(Ordering::SeqCst) {
                        let number: usize = call(&gateway).await.parse().unwrap();
                        assert!(number >= newest, "{number} after {newest}");
                        newest = number;
                        calls.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for number in 1..=4 {
            let updated = gateway.update(&cx(), &name(), numbered(number), Precondition::none()).await.unwrap();
            let serving = (updated.status.phase, updated.status.serving_generation());
            assert_eq!(serving, (Phase::Ready, Some(updated.generation)));
            assert_eq!(call(&gateway).await, number.to_string());
        }
        over.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.await.unwrap();
        }
        assert!(calls.load(Ordering::SeqCst) >= CALLERS);
        stop(gateway).await;
    }
}

#[tokio::test]
async fn a_full_engine_refuses_an_update_and_the_old_one_goes_on_serving() {
    for flavour in [Flavour::Netes, Flavour::Faasd] {
        let mut options = Options::new(flavour);
        options.limit = 15;
        let fake = Fake::start(options).await;
        for number in 0..14 {
            fake.put(&format!("other-{number}"), json!({"service": "x", "image": "x"}));
        }
        let gateway = gateway(&fake).await;
        gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
        let refused = gateway.update(&cx(), &name(), numbered(1), Precondition::none()).await.unwrap();
        assert_eq!(
            (refused.status.phase, refused.status.serving_generation()),
            (Phase::Failed, Some(Generation::FIRST))
        );
        let why = &refused.status.condition(ConditionKind::DeployFailed).unwrap().message;
        assert!(why.contains("limit is reached"), "{why}");
        assert_eq!(call(&gateway).await, "0");
        // With a place, the same update is tried again.
        fake.delete("other-0");
        let updated = gateway.update(&cx(), &name(), numbered(1), Precondition::none()).await.unwrap();
        assert_eq!(updated.status.phase, Phase::Ready);
        assert_eq!(call(&gateway).await, "1");
        stop(gateway).await;
    }
}

#[tokio::test]
async fn what_is_deleted_or_changed_behind_our_back_is_repaired() {
    let fake = Fake::start(Options::new(Flavour::Netes)).await;
    let gateway = unattended(&fake).await;
    let created = gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
    let service = service(&created, created.generation);
    for damage in [
        (&|fake: &Fake, service: &str| fake.delete(service)) as &dyn Fn(&Fake, &str),
        &|fake, service| fake.tamper(service, "/image", json!("else/where:1")),
        &|fake, service| fake.tamper(service, "/envVars/NUMBER", json!("99")),
    ] {
        damage(&fake, &service);
        assert_eq!(gateway.sweep().await.unwrap().repaired, 1);
        while gateway.get(&cx(), &name()).await.unwrap().status.phase != Phase::Ready {
            gateway.reconcile_one(&FunctionKey::new(cx().tenant().clone(), name())).await.unwrap();
        }
        let repaired = gateway.get(&cx(), &name()).await.unwrap();
        assert!(repaired.status.condition(ConditionKind::Repaired).is_some());
        assert_eq!(call(&gateway).await, "0");
        assert_eq!(gateway.sweep().await.unwrap().repaired, 0);
    }
    stop(gateway).await;
}

#[tokio::test]
async fn a_call_of_what_was_deleted_says_so_and_nothing_was_executed() {
    let fake = Fake::start(Options::new(Flavour::Netes)).await;
    let gateway = unattended(&fake).await;
    let created = gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
    fake.delete(&service(&created, created.generation));
    let error = gateway.invoke(&cx(), &FunctionRef::from(name()), InvokeRequest::new("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotDeployed, "{error:?}");
    stop(gateway).await;
}

#[tokio::test]
async fn what_belongs_to_no_function_is_removed_and_what_is_another_s_stays() {
    let fake = Fake::start(Options::new(Flavour::Netes)).await;
    let gateway = unattended(&fake).await;
    fake.put("theirs", json!({"service": "theirs", "image": "x", "labels": {"team": "y"}}));
    let (driver, orphan) = (driver(&fake), revision(spec("echo")));
    for id in [gateway.id().clone(), GatewayId::generate()] {
        let target = driver.reference(&id, &orphan);
        driver.deploy(&cx(), &target, DeployRequest::new(id, Arc::clone(&orphan))).await.unwrap();
    }
    assert_eq!(fake.functions().len(), 3);
    assert_eq!(gateway.sweep().await.unwrap().removed, 1);
    assert_eq!(fake.functions().len(), 2);
    stop(gateway).await;
}

#[tokio::test]
async fn with_a_readiness_path_nobody_meets_what_is_not_listening_yet() {
    let fake = Fake::start(Options::new(Flavour::Netes)).await;
    let gateway = gateway(&fake).await;
    let not_yet: &[(&str, &str)] =
        &[("x-openfaas-internal", "of-watchdog"), ("x-served-by", "x"), ("x-duration-seconds", "0.00025")];
    fake.fail(Some(Method::GET), "/function/", Fault::Answer(500, not_yet, ""), 3);
    let mut probed = numbered(7);
    probed.readiness_path = Some("/ready".to_owned());
    let created = gateway.create(&cx(), &name(), probed).await.unwrap();
    assert_eq!(created.status.phase, Phase::Ready);
    let asked = fake.take_seen().into_iter().filter(|seen| seen.path.ends_with("/ready")).count();
    assert_eq!(asked, 4);
    assert_eq!(call(&gateway).await, "7");
    stop(gateway).await;
}

#[tokio::test]
async fn rotating_a_secret_makes_a_generation_with_secrets_of_its_own() {
    let fake = Fake::start(Options::new(Flavour::Netes)).await;
    let secrets = Arc::new(MemorySecrets::new());
    let set = |value: &'static str| secrets.set(cx().tenant().clone(), "key".parse().unwrap(), Secret::new(value));
    set("first-value");
    let gateway = with_secrets(&fake, Arc::clone(&secrets)).await;
    let bound = spec("variable:KEY").with_secret(SecretBinding::env("key".parse().unwrap(), "KEY"));
    gateway.create(&cx(), &name(), bound).await.unwrap();
    assert_eq!(call(&gateway).await, "first-value");
    set("second-value");
    gateway.rotate_secrets(&cx(), &name(), Precondition::none()).await.unwrap();
    assert_eq!(call(&gateway).await, "second-value");
    assert_eq!(fake.secrets().len(), 2);
    gateway.delete(&cx(), &name(), Precondition::none()).await.unwrap();
    assert_eq!((fake.functions(), fake.secrets()), (vec![], vec![]));
    stop(gateway).await;
}

fn revision(spec: FunctionSpec) -> Arc<Revision> {
    of("fun", spec)
}

fn of(name: &str, spec: FunctionSpec) -> Arc<Revision> {
    let key = FunctionKey::new(cx().tenant().clone(), name.parse().unwrap());
    let created = (Timestamp::now(), "ada".parse().unwrap());
    let (id, reason) = (FunctionId::generate(), RevisionReason::Created);
    Arc::new(Revision::new(key, id, Generation::FIRST, spec, created, reason))
}

#[tokio::test]
async fn ten_thousand_functions_are_reconciled_without_a_request_for_each() {
    const FUNCTIONS: usize = 10_000;
    const GONE: usize = 3;
    for flavour in [Flavour::Netes, Flavour::Faasd] {
        let fake = Fake::start(Options::new(flavour)).await;
        let store = Arc::new(MemoryStore::new("test".parse().unwrap()));
        let (driver, id) = (driver(&fake), GatewayId::new("test").unwrap());
        // One is deployed, and the others are put in as that one is.
        let first = revision(spec("echo"));
        let target = driver.reference(&id, &first);
        driver.deploy(&cx(), &target, DeployRequest::new(id.clone(), first)).await.unwrap();
        let template = fake.document(target.as_str().rsplit('/').next().unwrap()).unwrap();
        fake.delete(target.as_str().rsplit('/').next().unwrap());
        let mut services = Vec::new();
        for number in 0..FUNCTIONS {
            let revision = of(&format!("fun-{number}"), spec("echo"));
            let target = driver.reference(&id, &revision);
            let service = target.as_str().rsplit('/').next().unwrap().to_owned();
            let mut document: Value = template.clone();
            document["service"] = json!(service);
            document["labels"]["function-gateway/function"] = json!(revision.function.to_string());
            document["annotations"]["function-gateway/reference"] = json!(target);
            fake.put(&service, document);
            services.push(service);
            let mut function = Function::new(&revision, target);
            function.status.phase = Phase::Ready;
            function.status.route = vec![RouteEntry::all(Generation::FIRST)];
            function.status.reconcile_at = None;
            let deployment = &mut function.status.deployments[0];
            (deployment.state, deployment.due_at) = (RevisionState::Ready, None);
            store.create(&function, &revision).await.unwrap();
        }
        let gateway = Gateway::builder()
            .store(store)
            .driver("faas".parse().unwrap(), Arc::new(driver))
            .without_reconciler()
            .build()
            .await
            .unwrap();
        fake.take_seen();
        let swept = gateway.sweep().await.unwrap();
        assert_eq!((swept.removed, swept.repaired), (0, 0));
        let seen = fake.take_seen();
        assert!(seen.len() <= 4, "{} requests", seen.len());
        for service in &services[..GONE] {
            fake.delete(service);
        }
        assert_eq!(gateway.sweep().await.unwrap().repaired, GONE as u64);
        let seen = fake.take_seen();
        assert!(seen.len() <= 4 + GONE * 6, "{} requests", seen.len());
        assert_eq!(fake.functions().len(), FUNCTIONS);
        stop(gateway).await;
    }
}
