//! From any point at which a host may die, the next one brings store and engine to what is wanted.

use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::store::memory::{MemoryStore, MemoryStoreOptions};
use function_gateway_core::{
    ConditionKind, Error, ErrorKind, FunctionExecutor as _, FunctionManager as _, FunctionStore, Gateway,
    InvocationStore, InvokeRequest, Phase, Precondition, Reconciled,
};
use function_gateway_testkit::crash::{CrashDriver, CrashPlan, CrashStore};
use function_gateway_testkit::{Engine, Fault, ManualClock, Op, Readiness};

use crate::common::{cx, driver, function, gateway, name, soon, spec_number, text};

/// What outlives a host: the database, the engine and time.
struct World {
    store: Arc<MemoryStore>,
    engine: Engine,
    clock: ManualClock,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::default();
        let options = MemoryStoreOptions::default().with_clock(Arc::new(clock.clone()));
        let store = Arc::new(MemoryStore::with_options("test".parse().unwrap(), options));
        let engine = Engine::new();
        engine.set_readiness(Readiness::AfterPolls(1));
        Self { store, engine, clock }
    }

    async fn host(&self, plan: &CrashPlan) -> Gateway {
        let functions = CrashStore::new(Arc::clone(&self.store) as Arc<dyn FunctionStore>, plan.clone());
        Gateway::builder()
            .function_store(Arc::new(functions))
            .invocation_store(Arc::clone(&self.store) as Arc<dyn InvocationStore>)
            .driver(
                "scripted".parse().unwrap(),
                Arc::new(CrashDriver::new(Arc::new(driver(&self.engine)), plan.clone())),
            )
            .clock(Arc::new(self.clock.clone()))
            .without_reconciler()
            .build()
            .await
            .unwrap()
    }

    /// Lets time pass and does what is due until nothing is. Leases of the dead host run out meanwhile.
    async fn converge(&self, gateway: &Gateway) {
        self.clock.advance(gateway.config().lease_ttl);
        for _ in 0..50 {
            gateway.reconcile_due().await.unwrap();
            self.clock.advance(Duration::from_secs(10));
        }
        assert_eq!(gateway.reconcile_due().await.unwrap(), 0, "something is stuck");
        gateway.sweep().await.unwrap();
    }

    /// Nothing is in the engine that is not in the store, and the other way round.
    async fn assert_consistent(&self, plan: &CrashPlan) {
        let function = FunctionStore::get(&*self.store, &key()).await.unwrap();
        let mut wanted: Vec<_> = function
            .iter()
            .flat_map(|function| function.status.deployments.iter().map(|deployment| deployment.target.clone()))
            .collect();
        wanted.sort();
        let mut held = self.engine.targets();
        held.sort();
        assert_eq!(held, wanted, "{plan:?}");
        if let Some(function) = function {
            assert_eq!(function.status.phase, Phase::Ready, "{plan:?}");
            assert_eq!(function.status.serving_generation(), Some(function.generation), "{plan:?}");
            assert_eq!(held.len(), 1, "{plan:?}");
        }
    }
}

fn key() -> function_gateway_core::FunctionKey {
    function_gateway_core::FunctionKey::new(cx().tenant().clone(), name("f"))
}

/// Drives what is due, as the clock that a test holds does not move by itself.
async fn with_time_passing<T>(world: &World, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(60)) => world.clock.advance(Duration::from_millis(100)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    Create,
    Update,
    Delete,
}

async fn change(world: &World, gateway: &Gateway, change: Change) {
    let work = async {
        match change {
            Change::Create => drop(gateway.create(&cx(), &name("f"), spec_number(1)).await),
            Change::Update => drop(gateway.update(&cx(), &name("f"), spec_number(2), Precondition::none()).await),
            Change::Delete => drop(gateway.delete(&cx(), &name("f"), Precondition::none()).await),
        }
        // Retired revisions go once their calls have ended.
        world.clock.advance(Duration::from_secs(60));
        gateway.reconcile_due().await.unwrap();
    };
    with_time_passing(world, work).await;
}

async fn prepared(what: Change) -> World {
    let world = World::new();
    if what != Change::Create {
        let host = world.host(&CrashPlan::never()).await;
        change(&world, &host, Change::Create).await;
        host.shutdown(Duration::from_secs(10)).await.unwrap();
    }
    world
}

async fn killed_at_every_step(what: Change) {
    let world = prepared(what).await;
    let dry = CrashPlan::never();
    let host = world.host(&dry).await;
    change(&world, &host, what).await;
    let steps = dry.steps();
    assert!(steps > 5, "{what:?} takes {steps} steps");
    for plan in CrashPlan::every(steps) {
        let world = prepared(what).await;
        let before = FunctionStore::get(&*world.store, &key()).await.unwrap();
        let ended = soon(plan.run(async { change(&world, &world.host(&plan).await, what).await })).await;
        assert!(ended.is_none() || plan.has_crashed() || plan.steps() <= steps, "{plan:?}");

        let next = world.host(&CrashPlan::never()).await;
        world.converge(&next).await;
        world.assert_consistent(&plan).await;
        let after = FunctionStore::get(&*world.store, &key()).await.unwrap();
        match what {
            Change::Create => {}
            // An update that was not stored was not promised; the function itself is never lost.
            Change::Update => assert!(after.is_some(), "{plan:?}"),
            Change::Delete => {
                let untouched = after
                    .as_ref()
                    .is_some_and(|after| Some(after.generation) == before.as_ref().map(|it| it.generation));
                assert!(after.is_none() || untouched, "{plan:?}");
            }
        }
        if after.is_some() {
            let answer = next.invoke(&cx(), &function("f"), InvokeRequest::new("alive")).await.unwrap();
            assert_eq!(text(answer).await, "alive", "{plan:?}");
        }
        // The next host carries out what the dead one did not get to.
        change(&world, &next, what).await;
        world.converge(&next).await;
        world.assert_consistent(&plan).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_killed_at_any_step_of_a_creation_leaves_nothing_stuck_and_no_orphan() {
    killed_at_every_step(Change::Create).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_killed_at_any_step_of_an_update_leaves_nothing_stuck_and_no_orphan() {
    killed_at_every_step(Change::Update).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_killed_at_any_step_of_a_deletion_leaves_nothing_stuck_and_no_orphan() {
    killed_at_every_step(Change::Delete).await;
}

#[tokio::test]
async fn a_sweep_removes_what_belongs_to_no_function_and_nothing_else() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec_number(1)).await.unwrap();
    let kept = setup.engine.targets();
    let orphan = spec_number(2);
    let driver = driver(&setup.engine);
    let foreign = deploy_orphan(&driver, "other-gateway", orphan.clone()).await;
    let ours = deploy_orphan(&driver, "test", orphan).await;
    let swept = setup.gateway.sweep().await.unwrap();
    assert_eq!((swept.removed, swept.repaired), (1, 0));
    let left = setup.engine.targets();
    assert!(left.contains(&foreign) && !left.contains(&ours) && left.contains(&kept[0]));
}

async fn deploy_orphan(
    driver: &dyn function_gateway_core::FaasDriver,
    gateway: &str,
    spec: function_gateway_core::FunctionSpec,
) -> function_gateway_core::DriverRef {
    use function_gateway_core::{DeployRequest, FunctionId, Generation, Revision, RevisionReason, Timestamp};
    let (gateway, id) = (gateway.parse().unwrap(), FunctionId::generate());
    let created = (Timestamp::now(), "ada".parse().unwrap());
    let revision = Revision::new(key(), id, Generation::FIRST, spec, created, RevisionReason::Created);
    let target = driver.reference(&gateway, &revision);
    driver.deploy(&cx(), &target, DeployRequest::new(gateway, Arc::new(revision))).await.unwrap();
    target
}

#[tokio::test]
async fn a_sweep_repairs_what_was_removed_behind_the_gateways_back() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec_number(1)).await.unwrap();
    setup.engine.lose_all();
    let swept = setup.gateway.sweep().await.unwrap();
    assert_eq!((swept.removed, swept.repaired), (0, 1));
    assert_eq!(setup.engine.targets().len(), 1);
    let function = setup.gateway.get(&cx(), &name("f")).await.unwrap();
    assert_eq!(function.status.phase, Phase::Ready);
    assert!(function.status.condition(ConditionKind::Repaired).is_some());
}

#[tokio::test]
async fn a_function_that_another_process_reconciles_is_left_to_it() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec_number(1)).await.unwrap();
    let lease = setup.store.acquire_lease(&key(), Duration::from_secs(60)).await.unwrap().unwrap();
    assert_eq!(setup.gateway.reconcile_one(&key()).await.unwrap(), Reconciled::Busy);
    setup.store.release_lease(&lease).await.unwrap();
    assert_eq!(setup.gateway.reconcile_one(&key()).await.unwrap(), Reconciled::Settled);
}

#[tokio::test]
async fn the_gateways_own_task_does_what_is_due() {
    let clock = ManualClock::default();
    let engine = Engine::new();
    let store = crate::common::store();
    let mut config = function_gateway_core::GatewayConfig::default();
    config.reconcile_interval = Duration::from_millis(1);
    let gateway = Gateway::builder()
        .store(store)
        .driver("scripted".parse().unwrap(), Arc::new(driver(&engine)))
        .clock(Arc::new(clock.clone()))
        .config(config)
        .build()
        .await
        .unwrap();
    gateway.create(&cx(), &name("f"), spec_number(1)).await.unwrap();
    gateway.update(&cx(), &name("f"), spec_number(2), Precondition::none()).await.unwrap();
    assert_eq!(engine.targets().len(), 2);
    clock.advance(Duration::from_secs(60));
    soon(engine.until(|engine| engine.targets().len() == 1)).await;
    assert_eq!(engine.count(Op::Remove), 1);
    gateway.shutdown(Duration::from_secs(10)).await.unwrap();
}

/// The answer got lost, not the removal: removing again is what brings both sides together.
#[tokio::test(start_paused = true)]
async fn a_removal_that_worked_and_says_otherwise_leaves_nothing_stuck() {
    for what in [Change::Update, Change::Delete] {
        let world = with_lost_removal(what).await;
        let plan = CrashPlan::never();
        let host = world.host(&plan).await;
        change(&world, &host, what).await;
        world.converge(&host).await;
        world.assert_consistent(&plan).await;
        assert!(world.engine.count(Op::Remove) > 1, "{what:?}");
        let after = FunctionStore::get(&*world.store, &key()).await.unwrap();
        assert_eq!(after.is_some(), what == Change::Update);
    }
}

/// The host that got the wrong answer dies as well, at any step: the next one has only store and engine to go by.
#[tokio::test(start_paused = true)]
async fn a_removal_whose_answer_is_lost_with_its_host_leaves_nothing_stuck_and_no_orphan() {
    for what in [Change::Update, Change::Delete] {
        let dry = CrashPlan::never();
        let world = with_lost_removal(what).await;
        change(&world, &world.host(&dry).await, what).await;
        let mut lost = 0;
        for plan in CrashPlan::every(dry.steps()) {
            let world = with_lost_removal(what).await;
            soon(plan.run(async { change(&world, &world.host(&plan).await, what).await })).await;
            assert!(plan.has_crashed(), "{plan:?}");
            lost += world.engine.count(Op::Remove);
            let next = world.host(&CrashPlan::never()).await;
            world.converge(&next).await;
            world.assert_consistent(&plan).await;
            // Whatever the dead host did not get to: the next one brings it to the same end.
            change(&world, &next, what).await;
            world.converge(&next).await;
            world.assert_consistent(&plan).await;
            let after = FunctionStore::get(&*world.store, &key()).await.unwrap();
            assert_eq!(after.is_some(), what == Change::Update, "{plan:?}");
        }
        assert!(lost > 0, "{what:?}: no host died after a removal");
    }
}

async fn with_lost_removal(what: Change) -> World {
    let world = prepared(what).await;
    let lost = Error::new(ErrorKind::Unavailable, "the connection broke");
    world.engine.inject(Op::Remove, Fault::error(lost).times(1).after_effect());
    world
}
