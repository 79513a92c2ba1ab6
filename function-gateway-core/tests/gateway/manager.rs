//! The lifecycle of functions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use crate::common::{
    Setup, cx, driver, function, gateway, gateway_with, name, principal, soon, spec, spec_number, store, text,
};
use function_gateway_core::{
    AccessManager as _, Action, AuditFilter, Authorizer, CallContext, Clock, ConditionKind, Deadline, Decision, Error,
    ErrorKind, FunctionExecutor as _, FunctionFilter, FunctionManager as _, FunctionManagerExt as _, FunctionSpec,
    Gateway, Generation, InvokeRequest, LogQuery, PageRequest, Phase, Precondition, ProvidedSecret, Resource, Result,
    Retry, RevisionReason, RevisionState, Scope, Secret, SecretBinding, SecretProvider, SecretRef, SystemClock,
    TenantId, Violation,
};
use function_gateway_testkit::{Engine, Fault, Gate, Handler, ManualClock, Op, Readiness, ScriptedDriver};
use futures_util::StreamExt as _;

fn generation(number: u64) -> Generation {
    Generation::new(number).unwrap()
}

#[tokio::test]
async fn a_created_function_is_ready_and_can_be_called() {
    let setup = gateway().await;
    let created = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert_eq!(created.status.phase, Phase::Ready);
    assert_eq!(created.status.serving_generation(), Some(generation(1)));
    assert_eq!(created.owner.as_str(), "ada");
    let answer = setup.gateway.invoke(&cx(), &function("echo"), InvokeRequest::new("hello")).await.unwrap();
    assert_eq!(text(answer).await, "hello");
}

#[tokio::test]
async fn a_name_is_taken_within_its_tenant_only() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let error = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let other = CallContext::new(principal("other", "bob"));
    setup.gateway.create(&other, &name("echo"), spec()).await.unwrap();
}

#[tokio::test]
async fn a_foreign_tenants_function_does_not_exist() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let other = CallContext::new(principal("other", "bob"));
    let gateway = &setup.gateway;
    let none = Precondition::none();
    let errors = [
        gateway.get(&other, &name("echo")).await.err(),
        gateway.update(&other, &name("echo"), spec_number(1), none).await.err(),
        gateway.delete(&other, &name("echo"), none).await.err(),
        gateway.revisions(&other, &name("echo"), &PageRequest::default()).await.err(),
        gateway.revision(&other, &name("echo"), Generation::FIRST).await.err(),
        gateway.roll_back(&other, &name("echo"), Generation::FIRST, none).await.err(),
        gateway.rotate_secrets(&other, &name("echo"), Precondition::none()).await.err(),
        gateway.scale(&other, &name("echo"), 1).await.err(),
        gateway.invoke(&other, &function("echo"), InvokeRequest::new("")).await.err(),
    ];
    for (index, error) in errors.into_iter().enumerate() {
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::NotFound), "operation {index}");
    }
    assert!(gateway.list(&other, &FunctionFilter::all(), &PageRequest::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn every_violation_is_listed_and_nothing_is_stored() {
    let setup = gateway().await;
    let mut bad = spec().with_middleware("absent", serde_json::Value::Null);
    bad.limits.max_in_flight = Some(0);
    bad.readiness_path = Some("ready".into());
    bad.input_schema = Some(serde_json::json!({}));
    bad.unknown = serde_json::from_value(serde_json::json!({"timeoutz": 1})).unwrap();
    let error = setup.gateway.create(&cx(), &name("bad"), bad).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec);
    let pointers: Vec<&str> = error.violations().iter().map(|violation| violation.pointer.as_str()).collect();
    for expected in ["/timeoutz", "/limits/max_in_flight", "/readiness_path", "/input_schema", "/middleware/0/name"] {
        assert!(pointers.contains(&expected), "{expected} is not in {pointers:?}");
    }
    assert_eq!(setup.gateway.get(&cx(), &name("bad")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(setup.engine.targets().is_empty());
}

#[tokio::test]
async fn an_unknown_driver_is_refused_with_those_there_are() {
    let setup = gateway().await;
    let mut unknown = spec();
    unknown.driver = "absent".parse().unwrap();
    let violations = setup.gateway.validate(&cx(), &unknown).await.unwrap();
    assert_eq!(violations[0].pointer, "/driver");
    assert!(violations[0].reason.contains("scripted"), "{violations:?}");
}

#[tokio::test]
async fn an_unknown_middleware_is_refused_by_its_name() {
    let setup = gateway().await;
    let unknown = spec().with_middleware("cache", serde_json::json!({}));
    let violations = setup.gateway.validate(&cx(), &unknown).await.unwrap();
    let expected = "there is no middleware \"cache\" to choose; there are: none";
    assert_eq!(violations, [Violation::new("/middleware/0/name", expected)]);
}

#[tokio::test]
async fn what_the_driver_refuses_is_refused_at_creation() {
    let setup = gateway().await;
    setup.engine.on_check(|_| vec![Violation::new("/run", "no")]);
    let error = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap_err();
    assert_eq!(error.violations(), [Violation::new("/run", "no")]);
}

#[tokio::test]
async fn an_update_serves_the_new_revision_and_removes_the_old_one_later() {
    let setup = gateway().await;
    let gateway = &setup.gateway;
    gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let updated = gateway.update(&cx(), &name("echo"), spec_number(2), Precondition::none()).await.unwrap();
    assert_eq!(updated.status.serving_generation(), Some(generation(2)));
    let retired = updated.status.deployment(generation(1)).unwrap();
    assert_eq!(retired.state, RevisionState::Retired);
    let wait = retired.due_at.unwrap().since(retired.since);
    let config = gateway.config();
    assert_eq!(wait, config.route_ttl + config.default_total_timeout + config.drain_margin);
    assert_eq!(setup.engine.targets().len(), 2);
}

#[tokio::test]
async fn a_retired_revision_is_removed_once_its_calls_have_ended() {
    let clock = function_gateway_testkit::ManualClock::default();
    let setup = gateway_with(|builder| builder.clock(Arc::new(clock.clone()))).await;
    let gateway = &setup.gateway;
    gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let updated = gateway.update(&cx(), &name("echo"), spec_number(2), Precondition::none()).await.unwrap();
    gateway.reconcile_due().await.unwrap();
    assert_eq!(setup.engine.targets().len(), 2);
    let config = gateway.config();
    clock.advance(config.route_ttl + config.default_total_timeout + config.drain_margin);
    gateway.reconcile_due().await.unwrap();
    let target = updated.status.deployment(generation(2)).unwrap().target.clone();
    assert_eq!(setup.engine.targets(), [target]);
    let settled = gateway.get(&cx(), &name("echo")).await.unwrap();
    assert_eq!((settled.status.deployments.len(), settled.status.reconcile_at), (1, None));
}

#[tokio::test]
async fn an_update_that_changes_nothing_is_no_generation() {
    let setup = gateway().await;
    let created = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let updated = setup.gateway.update(&cx(), &name("echo"), spec(), Precondition::none()).await.unwrap();
    assert_eq!((updated.generation, updated.version), (created.generation, created.version));
}

#[tokio::test]
async fn a_failed_update_leaves_the_old_revision_serving() {
    let setup = gateway().await;
    let gateway = &setup.gateway;
    gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    setup.engine.set_readiness(Readiness::Failed("the image can't be pulled".into()));
    let updated = gateway.update(&cx(), &name("echo"), spec_number(2), Precondition::none()).await.unwrap();
    assert_eq!(updated.status.phase, Phase::Failed);
    assert_eq!(updated.status.serving_generation(), Some(generation(1)));
    let condition = updated.status.condition(ConditionKind::DeployFailed).unwrap();
    assert_eq!(condition.message, "the image can't be pulled");
    let answer = gateway.invoke(&cx(), &function("echo"), InvokeRequest::new("still here")).await.unwrap();
    assert_eq!(text(answer).await, "still here");

    let error = gateway.wait_until_ready(&cx(), &name("echo")).await.unwrap_err();
    assert!(error.message().contains("the image can't be pulled"), "{error}");

    setup.engine.set_readiness(Readiness::Immediate);
    let mended = gateway.update(&cx(), &name("echo"), spec_number(3), Precondition::none()).await.unwrap();
    assert_eq!(mended.status.serving_generation(), Some(generation(3)));
    assert_eq!(mended.status.condition(ConditionKind::DeployFailed), None);
}

#[tokio::test]
async fn a_function_that_takes_long_is_given_back_as_it_is_and_gets_ready_without_its_caller() {
    let setup = gateway().await;
    let gate = Gate::new();
    setup.engine.set_readiness(Readiness::Gated(gate.clone()));
    let hurry = cx().with_deadline(Deadline::after(Duration::from_millis(20)));
    let created = setup.gateway.create(&hurry, &name("slow"), spec()).await.unwrap();
    assert_eq!(created.status.phase, Phase::Deploying);
    let error = setup.gateway.invoke(&cx(), &function("slow"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::NotReady, Retry::Transient));
    gate.open();
    soon(async {
        while setup.gateway.get(&cx(), &name("slow")).await.unwrap().status.phase != Phase::Ready {
            setup.gateway.reconcile_due().await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_transient_failure_to_deploy_is_tried_again() {
    let setup = gateway().await;
    let down = Error::new(ErrorKind::Unavailable, "the engine is down");
    setup.engine.inject(Op::Deploy, Fault::error(down).times(2));
    let created = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert_eq!(created.status.phase, Phase::Ready);
    assert_eq!(setup.engine.count(Op::Deploy), 3);
}

/// A provider that is out of reach a number of times before it gives what it has.
#[derive(Debug)]
struct Flaky(AtomicU32);

#[async_trait]
impl SecretProvider for Flaky {
    async fn get(&self, _: &CallContext, _: &TenantId, _: &SecretRef) -> Result<Option<ProvidedSecret>> {
        match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(Error::new(ErrorKind::DependencyUnavailable, "the vault is sealed")),
            Err(_) => Ok(Some(ProvidedSecret::new(Secret::new("value"), "1"))),
        }
    }
}

/// A gateway whose driver takes secrets at deployment, from a provider that is out of reach so many times.
async fn sealed(times: u32, clock: Arc<dyn Clock>) -> (Setup, Arc<Flaky>) {
    let (engine, store, vault) = (Engine::new(), store(), Arc::new(Flaky(AtomicU32::new(times))));
    engine.on_invoke(Handler::secrets());
    let at_deploy = driver(&engine).with_capabilities(|capabilities| {
        (capabilities.secrets_at_deploy, capabilities.secrets_per_call) = (true, false);
    });
    let gateway = Gateway::builder()
        .store(Arc::clone(&store))
        .driver("scripted".parse().unwrap(), Arc::new(at_deploy))
        .secrets(Arc::clone(&vault) as Arc<dyn SecretProvider>)
        .clock(clock)
        .without_reconciler()
        .build()
        .await
        .unwrap();
    (Setup { gateway, engine, store }, vault)
}

fn with_key(number: u32) -> FunctionSpec {
    spec_number(number).with_secret(SecretBinding::env("key".parse().unwrap(), "KEY"))
}

#[tokio::test]
async fn a_secret_provider_that_is_down_for_a_moment_is_asked_again_before_anything_is_deployed() {
    let (setup, vault) = sealed(2, Arc::new(SystemClock)).await;
    let created = setup.gateway.create(&cx(), &name("f"), with_key(1)).await.unwrap();
    assert_eq!((created.status.phase, setup.engine.count(Op::Deploy)), (Phase::Ready, 1));
    assert_eq!(vault.0.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_secret_provider_that_is_down_puts_a_deployment_off() {
    let clock = ManualClock::default();
    let (setup, vault) = sealed(u32::MAX, Arc::new(clock.clone())).await;
    let gateway = &setup.gateway;
    let hurry = || cx().with_deadline(Deadline::after(Duration::from_secs(1)));
    let created = gateway.create(&hurry(), &name("f"), with_key(1)).await.unwrap();
    // It is on its way and says what it waits for. Nothing is deployed without the secret, and nothing can be called.
    assert_eq!((created.status.phase, setup.engine.count(Op::Deploy)), (Phase::Pending, 0));
    let waiting = created.status.deployment(generation(1)).unwrap();
    assert!(waiting.message.contains("the vault is sealed") && waiting.due_at.is_some(), "{waiting:?}");
    let error = gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::NotReady, Retry::Transient));

    vault.0.store(0, Ordering::SeqCst);
    converge(gateway, &clock).await;
    let ready = gateway.get(&cx(), &name("f")).await.unwrap();
    assert_eq!((ready.status.phase, setup.engine.count(Op::Deploy)), (Phase::Ready, 1));
    let answer = gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await.unwrap();
    assert_eq!(text(answer).await, r#"{"KEY":"value"}"#);

    // What serves goes on while an update waits for the provider.
    vault.0.store(u32::MAX, Ordering::SeqCst);
    let updated = gateway.update(&hurry(), &name("f"), with_key(2), Precondition::none()).await.unwrap();
    assert_eq!((updated.generation, updated.status.serving_generation()), (generation(2), Some(generation(1))));
    let answer = gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await.unwrap();
    assert_eq!(text(answer).await, r#"{"KEY":"value"}"#);
    vault.0.store(0, Ordering::SeqCst);
    converge(gateway, &clock).await;
    let ready = gateway.get(&cx(), &name("f")).await.unwrap();
    assert_eq!(ready.status.serving_generation(), Some(generation(2)));
}

/// Does what is due until nothing is, as time passes.
async fn converge(gateway: &Gateway, clock: &ManualClock) {
    for _ in 0..50 {
        clock.advance(Duration::from_secs(10));
        gateway.reconcile_due().await.unwrap();
    }
    assert_eq!(gateway.reconcile_due().await.unwrap(), 0, "something is stuck");
}

#[tokio::test]
async fn a_failed_function_is_tried_again_by_asking_for_the_same() {
    let setup = gateway().await;
    setup.engine.inject(Op::Deploy, Fault::error(Error::new(ErrorKind::Engine, "no")).times(1));
    let created = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert_eq!(created.status.phase, Phase::Failed);
    let again = setup.gateway.update(&cx(), &name("echo"), spec(), Precondition::none()).await.unwrap();
    assert_eq!((again.status.phase, again.generation), (Phase::Ready, generation(1)));
}

#[tokio::test]
async fn one_odd_answer_of_an_engine_does_not_fail_a_generation_for_good() {
    let setup = gateway().await;
    setup.engine.set_readiness(Readiness::AfterPolls(3));
    setup.engine.inject(Op::Status, Fault::error(Error::new(ErrorKind::Engine, "gibberish")).times(1));
    let created = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert_eq!(created.status.phase, Phase::Ready);
}

#[tokio::test]
async fn a_permanent_failure_to_deploy_is_not_tried_again() {
    let setup = gateway().await;
    setup.engine.inject(Op::Deploy, Fault::error(Error::new(ErrorKind::Engine, "the engine says no")));
    let created = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert_eq!((created.status.phase, created.status.reconcile_at), (Phase::Failed, None));
    let error = setup.gateway.invoke(&cx(), &function("echo"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::NotReady, Retry::Never));
}

#[tokio::test]
async fn preconditions_are_kept() {
    let setup = gateway().await;
    let created = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let stale = Precondition::version(function_gateway_core::Version::FIRST);
    assert_ne!(created.version, function_gateway_core::Version::FIRST);
    for condition in [stale, Precondition::generation(generation(9))] {
        let error = setup.gateway.update(&cx(), &name("echo"), spec_number(1), condition).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
        let error = setup.gateway.delete(&cx(), &name("echo"), condition).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    }
    let current = Precondition::version(created.version);
    setup.gateway.update(&cx(), &name("echo"), spec_number(1), current).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_concurrent_updates_of_one_generation_one_wins() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|number| {
            let gateway = setup.gateway.clone();
            tokio::spawn(async move {
                let condition = Precondition::generation(Generation::FIRST);
                gateway.update(&cx(), &name("echo"), spec_number(number), condition).await
            })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::PreconditionFailed),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(setup.gateway.get(&cx(), &name("echo")).await.unwrap().generation, generation(2));
}

#[tokio::test]
async fn a_roll_back_is_a_new_generation_of_an_old_specification() {
    let setup = gateway().await;
    let gateway = &setup.gateway;
    gateway.create(&cx(), &name("echo"), spec_number(1)).await.unwrap();
    gateway.update(&cx(), &name("echo"), spec_number(2), Precondition::none()).await.unwrap();
    let back = gateway.roll_back(&cx(), &name("echo"), generation(1), Precondition::none()).await.unwrap();
    assert_eq!((back.generation, &back.spec), (generation(3), &spec_number(1)));
    let revisions = gateway.revisions(&cx(), &name("echo"), &PageRequest::default()).await.unwrap().items;
    let reasons: Vec<_> = revisions.iter().map(|revision| revision.reason).collect();
    let rolled_back = RevisionReason::RolledBack { to: generation(1) };
    assert_eq!(reasons, [rolled_back, RevisionReason::Updated, RevisionReason::Created]);
    let error = gateway.roll_back(&cx(), &name("echo"), generation(9), Precondition::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_rotation_is_a_new_generation_of_the_same_specification() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let rotated = setup.gateway.rotate_secrets(&cx(), &name("echo"), Precondition::none()).await.unwrap();
    assert_eq!((rotated.generation, &rotated.spec), (generation(2), &spec()));
    let revision = setup.gateway.revision(&cx(), &name("echo"), generation(2)).await.unwrap();
    assert_eq!(revision.reason, RevisionReason::SecretRotated);
}

#[tokio::test]
async fn a_deleted_function_is_gone_from_store_and_engine_and_its_name_is_free() {
    let setup = gateway().await;
    let first = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert!(setup.gateway.delete(&cx(), &name("echo"), Precondition::none()).await.unwrap().is_none());
    assert!(setup.engine.targets().is_empty());
    let error = setup.gateway.invoke(&cx(), &function("echo"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let second = setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert_ne!(first.id, second.id);
}

#[tokio::test]
async fn a_function_whose_engine_is_down_is_deleted_once_it_is_back() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    setup.engine.inject(Op::Remove, Fault::error(Error::new(ErrorKind::Unavailable, "the engine is down")));
    let hurry = cx().with_deadline(Deadline::after(Duration::from_millis(20)));
    let left = setup.gateway.delete(&hurry, &name("echo"), Precondition::none()).await.unwrap().unwrap();
    assert_eq!(left.status.phase, Phase::Deleting);
    for reference in ["echo", "echo@1"] {
        let error = setup.gateway.invoke(&cx(), &function(reference), InvokeRequest::new("")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotReady, "{reference}");
    }
    setup.engine.lose_all();
    assert_eq!(setup.gateway.sweep().await.unwrap().repaired, 0, "what is being deleted is not repaired");
    assert_eq!(setup.gateway.get(&cx(), &name("echo")).await.unwrap().status.phase, Phase::Deleting);
    assert!(left.status.condition(ConditionKind::RemoveFailed).is_some());
    let error = setup.gateway.update(&cx(), &name("echo"), spec_number(1), Precondition::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    setup.engine.heal(Op::Remove);
    assert!(setup.gateway.delete(&cx(), &name("echo"), Precondition::none()).await.unwrap().is_none());
    assert!(setup.engine.targets().is_empty());
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let setup = gateway().await;
    let bob = CallContext::new(principal("acme", "bob"));
    for number in 0..7 {
        let spec = spec().with_label("parity", if number % 2 == 0 { "even" } else { "odd" });
        let who = if number < 3 { cx() } else { bob.clone() };
        setup.gateway.create(&who, &name(&format!("f{number}")), spec).await.unwrap();
    }
    let names = async |filter: FunctionFilter| -> Vec<String> {
        let all = setup.gateway.list_all(&cx(), &filter).await.unwrap();
        all.iter().map(|function| function.key.name.to_string()).collect()
    };
    assert_eq!(names(FunctionFilter::all()).await.len(), 7);
    assert_eq!(names(FunctionFilter::all().with_label("parity", "odd")).await, ["f1", "f3", "f5"]);
    assert_eq!(names(FunctionFilter::all().with_name_prefix("f6")).await, ["f6"]);
    assert_eq!(names(FunctionFilter::all().with_phase(Phase::Failed)).await, Vec::<String>::new());
    assert_eq!(names(FunctionFilter::all().with_driver("scripted".parse().unwrap())).await.len(), 7);
    let mine = setup.gateway.list_mine(&cx(), &PageRequest::first(2)).await.unwrap();
    assert_eq!(mine.items.len(), 2);
    let rest = setup.gateway.list_mine(&cx(), &PageRequest::first(2).after(mine.next.unwrap())).await.unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));
}

#[tokio::test]
async fn a_readiness_path_is_asked_before_the_route_moves() {
    let setup = gateway().await;
    let mut with_path = spec();
    with_path.readiness_path = Some("/ready".into());
    let gate = Gate::new();
    let opened = gate.clone();
    setup.engine.on_invoke(Handler::new(move |_, request| {
        let ready = opened.is_open();
        async move {
            assert_eq!((request.method.as_str(), &*request.path), ("GET", "/ready"));
            let status = if ready { http::StatusCode::OK } else { http::StatusCode::SERVICE_UNAVAILABLE };
            Ok(function_gateway_core::InvokeResponse::new(status, ""))
        }
    }));
    let hurry = cx().with_deadline(Deadline::after(Duration::from_millis(20)));
    let waiting = setup.gateway.create(&hurry, &name("slow"), with_path).await.unwrap();
    assert_eq!(waiting.status.phase, Phase::Deploying);
    assert!(waiting.status.condition(ConditionKind::Progressing).unwrap().message.contains("/ready"));
    gate.open();
    soon(async {
        while setup.gateway.get(&cx(), &name("slow")).await.unwrap().status.phase != Phase::Ready {
            setup.gateway.reconcile_due().await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[derive(Debug)]
struct ReadOnly;

#[async_trait::async_trait]
impl Authorizer for ReadOnly {
    async fn authorize(&self, _: &CallContext, action: Action, _: Resource<'_>) -> Result<Decision> {
        Ok(if matches!(action, Action::Read | Action::List) { Decision::Allow } else { Decision::Deny })
    }
}

#[tokio::test]
async fn the_authorizer_guards_manager_executor_and_records_and_refused_changes_are_audited() {
    let allowed = gateway().await;
    allowed.gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    let guarded =
        crate::common::over(&allowed.store, &allowed.engine).authorizer(Arc::new(ReadOnly)).build().await.unwrap();
    let none = Precondition::none();
    let errors = [
        guarded.create(&cx(), &name("other"), spec()).await.err(),
        guarded.update(&cx(), &name("echo"), spec_number(1), none).await.err(),
        guarded.delete(&cx(), &name("echo"), none).await.err(),
        guarded.validate(&cx(), &spec()).await.err(),
        guarded.invoke(&cx(), &function("echo"), InvokeRequest::new("")).await.err(),
        guarded.executions(&cx(), &Default::default(), &PageRequest::default()).await.err(),
    ];
    for (index, error) in errors.into_iter().enumerate() {
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::PermissionDenied), "operation {index}");
    }
    guarded.get(&cx(), &name("echo")).await.unwrap();
    let events = allowed.gateway.audit_events(&cx(), &AuditFilter::all(), &PageRequest::default()).await.unwrap();
    let done: Vec<_> = events.items.iter().map(|event| (event.action, event.allowed)).collect();
    let refused = [(Action::Delete, false), (Action::Update, false), (Action::Create, false)];
    assert_eq!(done, [&refused[..], &[(Action::Create, true)]].concat());
}

#[tokio::test]
async fn a_log_is_there_before_the_first_call_after_a_restart() {
    let (engine, store) = (Engine::new(), store());
    let host = || {
        let driver = ScriptedDriver::on(&engine).with_capabilities(|caps| caps.scope = Scope::PerProcess);
        let builder = Gateway::builder().store(Arc::clone(&store));
        builder.driver("scripted".parse().unwrap(), Arc::new(driver)).without_reconciler().build()
    };
    host().await.unwrap().create(&cx(), &name("f"), spec()).await.unwrap();
    engine.lose_all();
    let restarted = host().await.unwrap();
    let log = restarted.logs(&cx(), &name("f"), LogQuery::default()).await.unwrap();
    assert_eq!(log.count().await, 0);
    assert_eq!(engine.targets().len(), 1);
}

#[tokio::test]
async fn a_driver_that_is_not_there_hides_nothing_else_that_is_wrong() {
    let Setup { gateway, .. } = gateway().await;
    let spec =
        serde_json::json!({"driver": "none", "run": {"custom": {"kind": "x"}}, "colour": 1, "readiness_path": "x"});
    let found = gateway.validate(&cx(), &serde_json::from_value(spec).unwrap()).await.unwrap();
    let mut pointers: Vec<_> = found.iter().map(|violation| violation.pointer.as_str()).collect();
    pointers.sort_unstable();
    assert_eq!(pointers, ["/colour", "/driver", "/readiness_path"]);
}
