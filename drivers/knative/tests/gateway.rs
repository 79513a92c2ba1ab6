//! Knative behind a gateway: updates under load, what somebody changes behind our back, secrets, and many functions.

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

use fake::{Fake, NAMESPACE, Options, REVISIONS, SECRETS, SERVICES};
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, ConditionKind, DeployRequest, ErrorKind, FaasDriver as _, Function, FunctionExecutor as _, FunctionId,
    FunctionKey, FunctionManager as _, FunctionName, FunctionRef, FunctionSpec, FunctionStore as _, Gateway,
    GatewayBuilder, GatewayId, Generation, InvokeRequest, MemorySecrets, Phase, Precondition, Principal, Revision,
    RevisionReason, RevisionState, RouteEntry, Secret, SecretBinding, Timestamp,
};
use function_gateway_knative::Knative;
use serde_json::json;

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

fn name() -> FunctionName {
    "fun".parse().unwrap()
}

fn numbered(number: usize) -> FunctionSpec {
    fake::spec("lab.local/fn:1", "variable:NUMBER").with_env("NUMBER", number.to_string())
}

async fn cluster() -> Fake {
    Fake::start(Options::default()).await
}

fn driver(fake: &Fake) -> Knative {
    Knative::new(fake.config()).unwrap()
}

fn builder(fake: &Fake) -> GatewayBuilder {
    Gateway::builder()
        .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
        .driver("faas".parse().unwrap(), Arc::new(driver(fake)))
}

async fn gateway(fake: &Fake) -> Gateway {
    builder(fake).build().await.unwrap()
}

/// A gateway that sweeps only when it is told to.
async fn unattended(fake: &Fake) -> Gateway {
    builder(fake).without_reconciler().build().await.unwrap()
}

async fn reconciled(gateway: &Gateway) -> Arc<Function> {
    loop {
        gateway.reconcile_one(&FunctionKey::new(cx().tenant().clone(), name())).await.unwrap();
        let function = gateway.get(&cx(), &name()).await.unwrap();
        if function.status.phase == Phase::Ready {
            return function;
        }
    }
}

async fn call(gateway: &Gateway) -> String {
    let answer = gateway.invoke(&cx(), &FunctionRef::from(name()), InvokeRequest::new("hello")).await.unwrap();
    assert!(answer.outcome.is_success(), "{answer:?}");
    String::from_utf8(answer.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

async fn stop(gateway: Gateway) {
    gateway.shutdown(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_under_load_has_no_gap() {
    const CALLERS: usize = 16;
    let fake = cluster().await;
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
        assert_eq!(serving, (Phase::Ready, Some(updated.generation)), "{updated:?}");
        assert_eq!(call(&gateway).await, number.to_string());
    }
    over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(calls.load(Ordering::SeqCst) >= CALLERS);
    // One Service for all generations.
    assert_eq!(fake.names(SERVICES).len(), 1);
    stop(gateway).await;
}

#[tokio::test]
async fn a_failed_update_leaves_the_old_one_serving_and_the_next_one_passes() {
    let fake = cluster().await;
    let gateway = gateway(&fake).await;
    gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
    let broken = fake::spec("lab.local/fn:1", "broken:ImagePullBackOff:Back-off pulling image");
    let failed = gateway.update(&cx(), &name(), broken, Precondition::none()).await.unwrap();
    assert_eq!((failed.status.phase, failed.status.serving_generation()), (Phase::Failed, Some(Generation::FIRST)));
    let revision = failed.status.deployment(failed.generation).unwrap();
    assert!(revision.message.starts_with("the image can't be pulled: Back-off"), "{}", revision.message);
    assert_eq!(call(&gateway).await, "0");
    let updated = gateway.update(&cx(), &name(), numbered(2), Precondition::none()).await.unwrap();
    assert_eq!(updated.status.phase, Phase::Ready, "{updated:?}");
    assert_eq!(call(&gateway).await, "2");
    stop(gateway).await;
}

#[tokio::test]
async fn what_is_deleted_or_changed_behind_our_back_is_repaired() {
    let fake = cluster().await;
    let gateway = unattended(&fake).await;
    gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
    reconciled(&gateway).await;
    let service = fake.names(SERVICES).remove(0);
    for damage in
        [(&|fake: &Fake, service: &str| fake.delete(SERVICES, service)) as &dyn Fn(&Fake, &str), &|fake, service| {
            fake.tamper(service, "/spec/traffic", json!([{"latestRevision": true, "percent": 100}]))
        }]
    {
        damage(&fake, &service);
        assert_eq!(gateway.sweep().await.unwrap().repaired, 1);
        let repaired = reconciled(&gateway).await;
        assert!(repaired.status.condition(ConditionKind::Repaired).is_some());
        assert_eq!(call(&gateway).await, "0");
        assert_eq!(gateway.sweep().await.unwrap().repaired, 0);
    }
    stop(gateway).await;
}

#[tokio::test]
async fn a_call_of_what_was_deleted_says_so_and_nothing_was_executed() {
    let fake = cluster().await;
    let gateway = unattended(&fake).await;
    gateway.create(&cx(), &name(), numbered(0)).await.unwrap();
    reconciled(&gateway).await;
    fake.delete(SERVICES, &fake.names(SERVICES)[0]);
    let error = gateway.invoke(&cx(), &FunctionRef::from(name()), InvokeRequest::new("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotDeployed, "{error:?}");
    stop(gateway).await;
}

#[tokio::test]
async fn what_belongs_to_no_function_is_removed_and_what_is_another_s_stays() {
    let fake = cluster().await;
    let gateway = unattended(&fake).await;
    fake.put(
        SERVICES,
        NAMESPACE,
        json!({"metadata": {"name": "theirs", "labels": {"team": "y"}}, "status": {"frozen": true}}),
    );
    let (driver, orphan) = (driver(&fake), of("orphan", numbered(0)));
    for id in [gateway.id().clone(), GatewayId::generate()] {
        let target = driver.reference(&id, &orphan);
        driver.deploy(&cx(), &target, DeployRequest::new(id, Arc::clone(&orphan))).await.unwrap();
    }
    assert_eq!(fake.names(SERVICES).len(), 3);
    assert_eq!(gateway.sweep().await.unwrap().removed, 1);
    assert_eq!(fake.names(SERVICES).len(), 2);
    stop(gateway).await;
}

#[tokio::test]
async fn rotating_a_secret_makes_a_generation_with_secrets_of_its_own() {
    let fake = cluster().await;
    let secrets = Arc::new(MemorySecrets::new());
    let set = |value: &'static str| secrets.set(cx().tenant().clone(), "key".parse().unwrap(), Secret::new(value));
    set("first-value");
    let gateway = builder(&fake).secrets(Arc::<MemorySecrets>::clone(&secrets)).build().await.unwrap();
    let bound =
        fake::spec("lab.local/fn:1", "variable:KEY").with_secret(SecretBinding::env("key".parse().unwrap(), "KEY"));
    gateway.create(&cx(), &name(), bound).await.unwrap();
    assert_eq!(call(&gateway).await, "first-value");
    set("second-value");
    gateway.rotate_secrets(&cx(), &name(), Precondition::none()).await.unwrap();
    assert_eq!(call(&gateway).await, "second-value");
    assert_eq!(fake.names(SECRETS).len(), 2);
    gateway.delete(&cx(), &name(), Precondition::none()).await.unwrap();
    let left = [SERVICES, REVISIONS, SECRETS].map(|kind| fake.names(kind));
    assert_eq!(left, [const { Vec::<String>::new() }; 3]);
    stop(gateway).await;
    fake.until(|fake| fake.watching() == 0).await;
}

fn of(name: &str, spec: FunctionSpec) -> Arc<Revision> {
    let key = FunctionKey::new(cx().tenant().clone(), name.parse().unwrap());
    let created = (Timestamp::now(), "ada".parse().unwrap());
    let (id, reason) = (FunctionId::generate(), RevisionReason::Created);
    Arc::new(Revision::new(key, id, Generation::FIRST, spec, created, reason))
}

#[tokio::test]
async fn five_thousand_functions_are_listed_by_pages_and_watched_by_one_watch() {
    const FUNCTIONS: usize = 5_000;
    const GONE: usize = 3;
    let fake = cluster().await;
    let store = Arc::new(MemoryStore::new("test".parse().unwrap()));
    let (driver, id) = (Arc::new(driver(&fake)), GatewayId::new("test").unwrap());
    // One is deployed, and the others are put in as that one is.
    let first = of("first", numbered(0));
    let target = driver.reference(&id, &first);
    driver.deploy(&cx(), &target, DeployRequest::new(id.clone(), Arc::clone(&first))).await.unwrap();
    let service = fake.names(SERVICES).remove(0);
    fake.until(|fake| fake.object(SERVICES, &service).unwrap()["status"]["conditions"][1]["status"] == "True").await;
    let template = fake.object(SERVICES, &service).unwrap().to_string();
    driver.remove(&cx(), &target).await.unwrap();
    let mut services = Vec::new();
    for number in 0..FUNCTIONS {
        let revision = of(&format!("fun-{number}"), numbered(0));
        let target = driver.reference(&id, &revision);
        let own = target.as_str().rsplit('/').next().unwrap().to_owned();
        let document =
            template.replace(&service, &own).replace(&first.function.to_string(), &revision.function.to_string());
        let mut document: serde_json::Value = serde_json::from_str(&document).unwrap();
        document["metadata"]["uid"] = json!(own);
        document["status"]["frozen"] = json!(true);
        fake.put(SERVICES, NAMESPACE, document);
        services.push(own);
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
        .driver("faas".parse().unwrap(), Arc::<Knative>::clone(&driver))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    fake.take_seen();
    for _ in 0..2 {
        let swept = gateway.sweep().await.unwrap();
        assert_eq!((swept.removed, swept.repaired), (0, 0));
    }
    // A probe of two requests and ten pages for each sweep, and no word for a function.
    let seen = fake.take_seen();
    assert!(seen.len() <= 2 * (2 + 10) + 11, "{} requests", seen.len());
    assert!(fake.watching() <= 1, "{} watches", fake.watching());
    for service in &services[..GONE] {
        fake.delete(SERVICES, service);
    }
    // One sweep, or some where the watch has not told of all yet.
    let (mut repaired, mut sweeps) = (0, 0);
    let sweeping = async {
        while repaired < GONE as u64 {
            repaired += gateway.sweep().await.unwrap().repaired;
            sweeps += 1;
        }
    };
    tokio::time::timeout(fake::PATIENCE, sweeping).await.expect("all are repaired");
    assert_eq!(repaired, GONE as u64);
    let seen = fake.take_seen();
    assert!(seen.len() <= sweeps * 12 + GONE * 8, "{} requests in {sweeps} sweeps", seen.len());
    assert_eq!(fake.names(SERVICES).len(), FUNCTIONS);
    stop(gateway).await;
    fake.until(|fake| fake.watching() == 0).await;
}
