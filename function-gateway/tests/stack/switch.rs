//! The engine behind a function is changed while it is called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use function_gateway::{
    FaasDriver, FunctionExecutor as _, FunctionManager as _, FunctionSpec, Gateway, GatewayConfig, InvocationId,
    InvocationState, InvokeRequest, ListScope, Phase, Precondition, ProcessWorkload,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_testkit::{Engine, Handler, ManualClock, Op, ScriptedDriver};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::common::{cx, function, name, records, scripted, soak_times, soon, store, text};

const CALLERS: usize = 64;

/// Callers that call one function without a pause until they are told to stop.
struct Callers {
    stop: Arc<AtomicBool>,
    /// How many calls each has completed.
    done: watch::Receiver<Vec<u64>>,
    tasks: JoinSet<Vec<InvocationId>>,
}

impl Callers {
    /// Spreads the callers evenly over gateways.
    fn start(gateways: &[&Gateway]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (completed, done) = watch::channel(vec![0; CALLERS]);
        let completed = Arc::new(completed);
        let mut tasks = JoinSet::new();
        for caller in 0..CALLERS {
            let gateway = gateways[caller % gateways.len()].clone();
            let (stop, completed) = (Arc::clone(&stop), Arc::clone(&completed));
            tasks.spawn(async move {
                let mut ids = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let (id, payload) = (InvocationId::generate(), format!("{caller}: {}", ids.len()));
                    let mine = cx().with_invocation_id(id);
                    let request = InvokeRequest::new(payload.clone());
                    let answer = gateway.invoke(&mine, &function("f"), request).await.expect("no call fails");
                    assert!(answer.outcome.is_success(), "{answer:?}");
                    assert_eq!(text(answer).await, payload);
                    ids.push(id);
                    completed.send_modify(|counts| counts[caller] += 1);
                }
                ids
            });
        }
        Self { stop, done, tasks }
    }

    /// Waits until each has completed a call that it began after now: every call that runs now has ended by then.
    async fn turn_over(&mut self) {
        let now = self.done.borrow().clone();
        let turned = |counts: &Vec<u64>| counts.iter().zip(&now).all(|(count, before)| *count >= before + 2);
        tokio::select! {
            turned = soon(self.done.wait_for(turned)) => drop(turned.unwrap()),
            ended = self.tasks.join_next() => panic!("a caller ended: {ended:?}"),
        }
    }

    async fn stop(self) -> Vec<InvocationId> {
        self.stop.store(true, Ordering::SeqCst);
        soon(self.tasks.join_all()).await.concat()
    }
}

/// Every call has one record, and succeeded at the first attempt. Gives how many each driver executed.
async fn recorded(gateway: &Gateway, called: Vec<InvocationId>) -> BTreeMap<String, usize> {
    let records = records(gateway).await;
    assert_eq!(records.len(), called.len());
    let recorded: BTreeSet<_> = records.iter().map(|record| record.id).collect();
    assert_eq!(recorded, called.into_iter().collect());
    let mut by_driver = BTreeMap::new();
    for record in &records {
        assert_eq!(record.state, InvocationState::Succeeded, "{record:?}");
        assert_eq!(record.attempts, 1, "{record:?}");
        *by_driver.entry(record.driver.to_string()).or_default() += 1;
    }
    by_driver
}

fn config() -> GatewayConfig {
    let mut config = GatewayConfig::default();
    config.route_ttl = Duration::from_millis(20);
    // Time does not run out for a call on a slow machine; the test says when it is over for retired revisions.
    config.default_total_timeout = Duration::from_secs(120);
    config
}

fn cat(driver: &str) -> FunctionSpec {
    FunctionSpec::new(driver.parse().unwrap(), ProcessWorkload::new("/bin/cat"))
}

async fn two_drivers(times: u64) {
    let (engine, clock) = (Engine::new(), ManualClock::default());
    // A call that never waits would keep its thread from the other callers.
    engine.on_invoke(Handler::echo().after(Duration::from_millis(2)));
    let local = Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap());
    let gateway = Gateway::builder()
        .store(store())
        .driver("local".parse().unwrap(), Arc::clone(&local) as _)
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(&engine)))
        .clock(Arc::new(clock.clone()))
        .config(config())
        .without_reconciler()
        .build()
        .await
        .unwrap();
    let held_by_local = async || local.list(&cx(), ListScope::All(gateway.id().clone())).count().await;
    gateway.create(&cx(), &name("f"), cat("scripted")).await.unwrap();

    let mut callers = Callers::start(&[&gateway]);
    callers.turn_over().await;
    for switch in 1..=20 * times {
        let driver = if switch % 2 == 1 { "local" } else { "scripted" };
        let function = gateway.update(&cx(), &name("f"), cat(driver), Precondition::none()).await.unwrap();
        assert_eq!(function.status.phase, Phase::Ready);
        assert_eq!(function.status.serving_generation(), Some(function.generation));
        callers.turn_over().await;
        // The old one is removed under the load on the new one.
        clock.advance(Duration::from_secs(3600));
        gateway.reconcile_due().await.unwrap();
        assert_eq!((engine.targets().len(), held_by_local().await), if switch % 2 == 1 { (0, 1) } else { (1, 0) });
    }
    let called = callers.stop().await;
    let by_driver = recorded(&gateway, called).await;
    assert_eq!(by_driver.keys().collect::<Vec<_>>(), ["local", "scripted"]);
    let at_least = CALLERS * usize::try_from(times).unwrap() * 10;
    assert!(by_driver.values().all(|&calls| calls >= at_least), "{by_driver:?}");
    assert_eq!(gateway.reconcile_due().await.unwrap(), 0);

    gateway.delete(&cx(), &name("f"), Precondition::none()).await.unwrap();
    assert_eq!((engine.targets().len(), held_by_local().await), (0, 0));
    gateway.shutdown(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_function_that_is_switched_between_engines_under_load_fails_and_loses_no_call() {
    two_drivers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes long: `cargo xtask soak`"]
async fn soak_a_function_that_is_switched_between_engines_under_load() {
    two_drivers(soak_times()).await;
}

async fn two_gateways(times: u64) {
    let (store, engine, clock) = (store(), Engine::new(), ManualClock::default());
    engine.on_invoke(Handler::echo().after(Duration::from_millis(2)));
    let gateway = async || {
        Gateway::builder()
            .store(Arc::clone(&store))
            .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(&engine)))
            .clock(Arc::new(clock.clone()))
            .config(config())
            .without_reconciler()
            .build()
            .await
            .unwrap()
    };
    let (one, two) = (gateway().await, gateway().await);
    one.create(&cx(), &name("f"), scripted("scripted")).await.unwrap();

    let mut callers = Callers::start(&[&one, &two]);
    callers.turn_over().await;
    for update in 1..=20 * times {
        let spec = scripted("scripted").with_env("NUMBER", update.to_string());
        let function = one.update(&cx(), &name("f"), spec, Precondition::none()).await.unwrap();
        assert_eq!(function.status.phase, Phase::Ready);
        assert_eq!(engine.targets().len(), 2);
        // The other process may go on by the old route for this long, and the calls that it lets in by then end.
        // sleep: a route may be used for this long by the clock of the process, which can not be told otherwise.
        tokio::time::sleep(one.config().route_ttl).await;
        callers.turn_over().await;
        clock.advance(Duration::from_secs(3600));
        // Either process removes what is due.
        let remover = if update % 2 == 0 { &one } else { &two };
        remover.reconcile_due().await.unwrap();
        assert_eq!(engine.targets().len(), 1);
    }
    let called = callers.stop().await;
    let calls = called.len();
    assert_eq!(recorded(&two, called).await["scripted"], calls);
    assert_eq!(engine.count(Op::Invoke), calls);
    assert_eq!((one.reconcile_due().await.unwrap(), two.reconcile_due().await.unwrap()), (0, 0));
    let function = two.get(&cx(), &name("f")).await.unwrap();
    let held = engine.targets();
    assert_eq!(engine.revision(&held[0]).unwrap().generation, function.generation);
    for gateway in [one, two] {
        gateway.shutdown(Duration::from_secs(60)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_update_by_one_process_fails_and_loses_no_call_of_another() {
    two_gateways(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes long: `cargo xtask soak`"]
async fn soak_updates_by_one_process_under_the_calls_of_another() {
    two_gateways(soak_times()).await;
}
