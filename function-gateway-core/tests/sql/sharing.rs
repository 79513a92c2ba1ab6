//! Several gateways on one database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    CallContext, CustomWorkload, ErrorKind, FunctionExecutor as _, FunctionManager as _, FunctionRef, FunctionSpec,
    FunctionStore, Gateway, GatewayConfig, InvokeRequest, Precondition, Principal, RecordFilter, StatisticsQuery,
    Timestamp, Version,
};
use function_gateway_testkit::{Engine, ScriptedDriver};

use crate::common::{Database, function, open, options, tenant};

/// How many tasks of each process race.
const RACERS: usize = 8;
const LONG: Duration = Duration::from_secs(600);

pub(crate) async fn of_several_processes_one_wins(database: Database) {
    let stores = [open(&database, options()).await, open(&database, options()).await];
    let (created, revision) = function("a");
    stores[0].create(&created, &revision).await.unwrap();
    let mut version = Version::FIRST;
    for _ in 0..10 {
        let race = |store: &SqlStore| {
            let (store, function) = (store.clone(), created.clone());
            tokio::spawn(async move { store.update(&function, version, None).await })
        };
        let racers: Vec<_> = stores.iter().cycle().take(2 * RACERS).map(race).collect();
        let mut winners = 0;
        for racer in racers {
            match racer.await.unwrap() {
                Ok(_) => winners += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
            }
        }
        assert_eq!(winners, 1);
        version = version.next();

        let race = |store: &SqlStore| {
            let (store, key) = (store.clone(), created.key.clone());
            tokio::spawn(async move { store.acquire_lease(&key, LONG).await.unwrap() })
        };
        let racers: Vec<_> = stores.iter().cycle().take(2 * RACERS).map(race).collect();
        let mut leases = Vec::new();
        for racer in racers {
            leases.extend(racer.await.unwrap());
        }
        assert_eq!(leases.len(), 1);
        // Another process than the one that took it may be asked to give it back.
        stores[1].release_lease(&leases[0]).await.unwrap();
    }
}

fn spec(number: u32) -> FunctionSpec {
    let work = CustomWorkload::new("scripted", serde_json::json!({}));
    FunctionSpec::new("scripted".parse().unwrap(), work).with_env("NUMBER", number.to_string())
}

async fn gateway(database: &Database, engine: &Engine) -> Gateway {
    let mut config = GatewayConfig::default();
    config.route_ttl = Duration::from_millis(50);
    config.reconcile_interval = Duration::from_millis(50);
    Gateway::builder()
        .store(Arc::new(open(database, options()).await))
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(engine)))
        .config(config)
        .build()
        .await
        .unwrap()
}

pub(crate) async fn a_function_is_changed_by_one_gateway_while_another_executes_it(database: Database) {
    let engine = Engine::new();
    let gateways = [gateway(&database, &engine).await, gateway(&database, &engine).await];
    let cx = CallContext::new(Principal::new(tenant(), "ann".parse().unwrap()));
    let (name, called): (_, FunctionRef) = ("f".parse().unwrap(), "f".parse().unwrap());
    gateways[0].create(&cx, &name, spec(0)).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, cx, called, done) = (gateways[1].clone(), cx.clone(), called.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut calls = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let answer = gateway.invoke(&cx, &called, InvokeRequest::new("hello")).await.unwrap();
                    assert!(answer.outcome.is_success());
                    calls += 1;
                    tokio::task::yield_now().await;
                }
                calls
            })
        })
        .collect();
    for number in 1..=5 {
        let updated =
            gateways[number as usize % 2].update(&cx, &name, spec(number), Precondition::none()).await.unwrap();
        assert_eq!(updated.generation.get(), u64::from(number) + 1);
    }
    done.store(true, Ordering::Relaxed);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    gateways[1].delete(&cx, &name, Precondition::none()).await.unwrap();
    assert_eq!(gateways[0].get(&cx, &name).await.unwrap_err().kind(), ErrorKind::NotFound);
    for gateway in &gateways {
        gateway.shutdown(Duration::from_secs(10)).await.unwrap();
    }
    assert_eq!(engine.targets(), []);
    let third = gateway(&database, &engine).await;
    let query = StatisticsQuery::new(Timestamp::from_micros(0), Timestamp::now().plus(Duration::from_secs(60)));
    assert_eq!(third.statistics(&cx, &query).await.unwrap().count, calls);
    let page = function_gateway_core::PageRequest::first(10);
    assert!(!third.executions(&cx, &RecordFilter::default(), &page).await.unwrap().items.is_empty());
    third.shutdown(Duration::from_secs(10)).await.unwrap();
}
