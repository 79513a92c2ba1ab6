//! From events to executions, over a scripted engine and the store in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    Action, AsyncPolicy, AuditFilter, CallContext, CustomWorkload, DeadLetterFilter, ErrorKind, FunctionExecutor as _,
    FunctionManager as _, FunctionSpec, Gateway, GatewayId, InvocationId, InvocationRecord, InvocationState, Origin,
    PageRequest, Principal, QueueManager as _, RecordFilter, ScopeAuthorizer, Version, Waited, WorkerConfig,
};
use function_gateway_events::{
    Event, EventBroker, EventForm, FailurePolicy, Filter, Filters, Retries, Strategy, SubscriptionName,
    SubscriptionSpec, VALIDATION_ERROR,
};
use function_gateway_testkit::{Engine, Handler, ScriptedDriver};
use function_gateway_validation::Validation;
use serde_json::json;

struct Setup {
    gateway: Gateway,
    engine: Engine,
    broker: EventBroker,
}

fn principal(id: &str) -> Principal {
    Principal::new("acme".parse().unwrap(), id.parse().unwrap())
}

fn cx() -> CallContext {
    CallContext::new(principal("ada"))
}

fn name(text: &str) -> SubscriptionName {
    text.parse().unwrap()
}

fn function(text: &str) -> function_gateway_core::FunctionName {
    text.parse().unwrap()
}

fn spec() -> FunctionSpec {
    FunctionSpec::new("scripted".parse().unwrap(), CustomWorkload::new("scripted", json!({})))
}

async fn setup(functions: &[&str]) -> Setup {
    let (engine, store) = (Engine::new(), Arc::new(MemoryStore::new(GatewayId::generate())));
    let gateway = Gateway::builder()
        .store(Arc::clone(&store))
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(&engine)))
        .middleware_for_all(Arc::new(Validation::default()))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    for function in functions {
        gateway.create(&cx(), &function.parse().unwrap(), spec()).await.unwrap();
    }
    gateway.start_workers(WorkerConfig::default()).unwrap();
    let broker = EventBroker::new(gateway.clone(), store);
    Setup { gateway, engine, broker }
}

fn event(id: &str, data: &str) -> Event {
    let built = Event::builder().id(id).source("/shop").event_type("order.created");
    built.data("application/json", data.to_owned()).build().unwrap()
}

async fn ended(setup: &Setup, id: InvocationId) -> Arc<InvocationRecord> {
    match setup.gateway.wait(&cx(), id, Duration::from_secs(30)).await.unwrap() {
        Waited::Ended(record) => record,
        other => panic!("{other:?}"),
    }
}

async fn all(setup: &Setup, of: &str) -> Vec<Arc<InvocationRecord>> {
    let filter = RecordFilter::of(function(of));
    setup.gateway.executions(&cx(), &filter, &PageRequest::default()).await.unwrap().items
}

/// Waits until nothing is left to be done.
async fn idle(setup: &Setup) {
    tokio::time::timeout(Duration::from_secs(30), async {
        while setup.gateway.queue_depth(&cx(), None).await.unwrap().open > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_event_executes_what_subscribes_to_it() {
    let setup = setup(&["f", "g", "h"]).await;
    let orders = Filters::new(vec![Filter::prefix("type", "order.").unwrap()]).unwrap();
    let both = SubscriptionSpec::to_all(vec![function("f"), function("g")]).with_filters(orders);
    setup.broker.create(&cx(), name("orders"), both).await.unwrap();
    let others = Filters::new(vec![Filter::exact("type", "other").unwrap()]).unwrap();
    setup.broker.create(&cx(), name("others"), SubscriptionSpec::to(function("h")).with_filters(others)).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    setup.engine.on_invoke(Handler::new(move |cx, request| {
        noted.lock().unwrap().push(request.headers.clone());
        async move { Handler::echo().answer(cx, request).await }
    }));
    let published = setup.broker.publish(&cx(), &event("1", r#"{"total":1}"#)).await.unwrap();
    assert_eq!((published.id.as_str(), published.source.as_str()), ("1", "/shop"));
    let functions: Vec<_> = published.triggered.iter().map(|triggered| triggered.function.as_str()).collect();
    assert_eq!(functions, ["f", "g"]);
    for triggered in &published.triggered {
        assert_eq!((triggered.subscription.as_str(), triggered.is_repeated), ("orders", false));
        let record = ended(&setup, triggered.invocation).await;
        assert_eq!((record.state, record.origin), (InvocationState::Succeeded, Origin::Event));
        let event = record.lineage.as_ref().unwrap().event.clone().unwrap();
        assert_eq!(
            (event.id.as_str(), event.kind.as_str(), event.subscription.as_str()),
            ("1", "order.created", "orders")
        );
        let answer = setup.gateway.result(&cx(), triggered.invocation).await.unwrap();
        assert_eq!(answer.body.collect(100).await.unwrap(), r#"{"total":1}"#);
    }
    let headers = seen.lock().unwrap().clone();
    assert!(headers.iter().all(|headers| headers["ce-type"] == "order.created" && headers["ce-id"] == "1"));
    assert!(all(&setup, "h").await.is_empty());
}

#[tokio::test]
async fn an_event_is_told_by_its_source_and_id() {
    let setup = setup(&["f"]).await;
    setup.broker.create(&cx(), name("s"), SubscriptionSpec::to(function("f"))).await.unwrap();
    let first = setup.broker.publish(&cx(), &event("1", "{}")).await.unwrap();
    for data in ["{}", r#"{"changed":true}"#] {
        let again = setup.broker.publish(&cx(), &event("1", data)).await.unwrap();
        assert!(again.triggered[0].is_repeated);
        assert_eq!(again.triggered[0].invocation, first.triggered[0].invocation);
    }
    let other = Event::builder().id("1").source("/elsewhere").event_type("order.created").build().unwrap();
    assert!(!setup.broker.publish(&cx(), &other).await.unwrap().triggered[0].is_repeated);
    idle(&setup).await;
    assert_eq!(all(&setup, "f").await.len(), 2);
}

#[tokio::test]
async fn functions_are_executed_in_order_or_independently() {
    for (strategy, expected) in [
        (Strategy::SequentialStop, vec!["a", "b"]),
        (Strategy::SequentialGoOn, vec!["a", "b", "c"]),
        (Strategy::Parallel, vec!["a", "b", "c"]),
    ] {
        let setup = setup(&["a", "b", "c"]).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        setup.engine.on_invoke(Handler::new(move |cx, request| {
            let function = request.revision.key.name.as_str().to_owned();
            let inner = if function == "b" { Handler::failing("no") } else { Handler::echo() };
            noted.lock().unwrap().push(function);
            async move { inner.answer(cx, request).await }
        }));
        let functions = vec![function("a"), function("b"), function("c")];
        let wanted = SubscriptionSpec::to_all(functions).with_strategy(strategy);
        setup.broker.create(&cx(), name("s"), wanted).await.unwrap();
        let published = setup.broker.publish(&cx(), &event("1", "{}")).await.unwrap();
        assert_eq!(published.triggered.len(), if strategy == Strategy::Parallel { 3 } else { 1 });
        idle(&setup).await;
        let mut seen = seen.lock().unwrap().clone();
        if strategy == Strategy::Parallel {
            seen.sort();
        }
        assert_eq!(seen, expected, "{strategy:?}");
        let last = all(&setup, "b").await;
        assert_eq!(last[0].lineage.as_ref().unwrap().event.as_ref().unwrap().id, "1");
    }
}

#[tokio::test]
async fn a_failure_is_dealt_with_as_the_subscription_says() {
    for (policy, attempts, dead, rescued) in [
        (FailurePolicy::OfFunction, 1, 1, 0),
        (FailurePolicy::Drop, 1, 0, 0),
        (FailurePolicy::DeadLetter, 1, 1, 0),
        (FailurePolicy::Retry(quick(Retries::attempts(3).at_least_once())), 3, 1, 0),
        (FailurePolicy::Retry(Retries::attempts(3)), 1, 1, 0),
        (FailurePolicy::Function(function("rescue")), 1, 0, 1),
    ] {
        let setup = setup(&["f", "rescue"]).await;
        setup.engine.on_invoke(Handler::new(|cx, request| async move {
            let fails = request.revision.key.name.as_str() == "f";
            let inner = if fails { Handler::failing("bad luck") } else { Handler::echo() };
            inner.answer(cx, request).await
        }));
        let wanted = SubscriptionSpec::to(function("f")).with_on_failure(policy.clone());
        setup.broker.create(&cx(), name("s"), wanted).await.unwrap();
        let published = setup.broker.publish(&cx(), &event("1", "{}")).await.unwrap();
        let record = ended(&setup, published.triggered[0].invocation).await;
        assert_eq!((record.state, record.attempts), (InvocationState::Failed, attempts), "{policy:?}");
        idle(&setup).await;
        let filter = DeadLetterFilter::default();
        let letters = setup.gateway.dead_letters(&cx(), &filter, &PageRequest::default()).await.unwrap().items;
        assert_eq!((letters.len(), all(&setup, "rescue").await.len()), (dead, rescued), "{policy:?}");
    }
}

fn quick(mut retries: Retries) -> Retries {
    (retries.initial_backoff_ms, retries.max_backoff_ms) = (Some(1), Some(2));
    retries
}

#[tokio::test]
async fn what_a_function_does_not_take_is_dead_with_all_that_is_wrong_and_may_be_told() {
    let setup = setup(&["told"]).await;
    let schema = json!({"type": "object", "required": ["a", "b"]});
    setup.gateway.create(&cx(), &function("f"), spec().with_input_schema(schema)).await.unwrap();
    let quiet = Filters::new(vec![Filter::exact("type", "order.created").unwrap()]).unwrap();
    let wanted = SubscriptionSpec::to(function("f")).with_filters(quiet).telling_invalid();
    setup.broker.create(&cx(), name("s"), wanted).await.unwrap();
    let invalid = Filters::new(vec![Filter::exact("type", VALIDATION_ERROR).unwrap()]).unwrap();
    let told = SubscriptionSpec::to(function("told")).with_filters(invalid);
    setup.broker.create(&cx(), name("told"), told).await.unwrap();

    let published = setup.broker.publish(&cx(), &event("1", "{}")).await.unwrap();
    let record = ended(&setup, published.triggered[0].invocation).await;
    let failure = record.failure.clone().unwrap();
    assert_eq!((failure.code.as_str(), failure.violations.len(), record.attempts), ("invalid_input", 2, 0));
    let dead = setup.gateway.queued(&cx(), record.id).await.unwrap();
    assert_eq!(dead.progress.failure.as_ref().unwrap().violations.len(), 2);
    idle(&setup).await;
    let told = all(&setup, "told").await;
    assert_eq!(told.len(), 1);
    let answer = setup.gateway.result(&cx(), told[0].id).await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&answer.body.collect(10_000).await.unwrap()).unwrap();
    assert_eq!((&document["event"]["id"], &document["function"]), (&json!("1"), &json!("f")));
    assert_eq!(document["violations"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_event_for_a_function_that_is_gone_is_dead() {
    let setup = setup(&[]).await;
    setup.broker.create(&cx(), name("s"), SubscriptionSpec::to(function("gone"))).await.unwrap();
    let published = setup.broker.publish(&cx(), &event("1", r#"{"a":1}"#)).await.unwrap();
    let record = ended(&setup, published.triggered[0].invocation).await;
    assert_eq!(record.failure.as_ref().unwrap().code, "not_found");
    let dead = setup.gateway.queued(&cx(), record.id).await.unwrap();
    assert_eq!(dead.submission.payload, r#"{"a":1}"#);
    setup.gateway.create(&cx(), &function("gone"), spec()).await.unwrap();
    let redriven = setup.gateway.redrive(&cx(), record.id).await.unwrap();
    let record = ended(&setup, redriven.id).await;
    assert_eq!(record.state, InvocationState::Succeeded);
    assert_eq!(record.lineage.as_ref().unwrap().event.as_ref().unwrap().id, "1");
}

#[tokio::test]
async fn the_whole_event_can_be_the_payload() {
    let setup = setup(&["f"]).await;
    let wanted = SubscriptionSpec::to(function("f")).with_form(EventForm::Structured);
    setup.broker.create(&cx(), name("s"), wanted).await.unwrap();
    let published = setup.broker.publish(&cx(), &event("1", r#"{"a":1}"#)).await.unwrap();
    ended(&setup, published.triggered[0].invocation).await;
    let answer = setup.gateway.result(&cx(), published.triggered[0].invocation).await.unwrap();
    let got: serde_json::Value = serde_json::from_slice(&answer.body.collect(10_000).await.unwrap()).unwrap();
    assert_eq!((&got["id"], &got["data"]["a"]), (&json!("1"), &json!(1)));
}

#[tokio::test]
async fn subscriptions_are_kept_and_guarded_by_their_version() {
    let setup = setup(&["f", "g"]).await;
    let wanted = SubscriptionSpec::to(function("f"));
    let created = setup.broker.create(&cx(), name("s"), wanted.clone()).await.unwrap();
    assert_eq!((created.version, created.principal.id.as_str()), (Version::FIRST, "ada"));
    assert_eq!(setup.broker.get(&cx(), &name("s")).await.unwrap(), created);
    let taken = setup.broker.create(&cx(), name("s"), wanted.clone()).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    let foreign = CallContext::new(Principal::new("other".parse().unwrap(), "eve".parse().unwrap()));
    assert_eq!(setup.broker.get(&foreign, &name("s")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let changed = SubscriptionSpec::to(function("g"));
    let bob = CallContext::new(principal("bob"));
    let stale = setup.broker.update(&bob, name("s"), changed.clone(), Some(Version::new(9))).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::PreconditionFailed);
    let updated = setup.broker.update(&bob, name("s"), changed, Some(created.version)).await.unwrap();
    assert_eq!((updated.principal.id.as_str(), updated.created_at), ("bob", created.created_at));
    let listed = setup.broker.list(&cx(), &PageRequest::default()).await.unwrap().items;
    assert_eq!(listed, std::slice::from_ref(&updated));
    let published = setup.broker.publish(&cx(), &event("1", "{}")).await.unwrap();
    assert_eq!(published.triggered[0].function.as_str(), "g", "a change is seen at once in the process that made it");
    assert_eq!(ended(&setup, published.triggered[0].invocation).await.caller.as_str(), "bob");
    setup.broker.delete(&cx(), &name("s"), Some(updated.version)).await.unwrap();
    assert_eq!(setup.broker.get(&cx(), &name("s")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(setup.broker.publish(&cx(), &event("2", "{}")).await.unwrap().triggered.is_empty());
    let (cx, filter, page) = (cx(), AuditFilter::default(), PageRequest::default());
    let audit = setup.gateway.audit_log().list(cx.tenant(), &filter, &page).await.unwrap();
    let changes = audit.items.iter().filter(|event| event.action == Action::WriteSubscriptions).count();
    assert_eq!(changes, 3);
}

#[tokio::test]
async fn a_subscription_that_is_not_valid_is_refused_with_all_that_is_wrong() {
    let setup = setup(&[]).await;
    let mut wanted = SubscriptionSpec::to_all(vec![function("f"), function("f")]);
    wanted.on_failure = FailurePolicy::Retry(Retries::attempts(0));
    wanted.description = "x".repeat(2000);
    let error = setup.broker.create(&cx(), name("s"), wanted).await.unwrap_err();
    let pointers: Vec<_> = error.violations().iter().map(|violation| violation.pointer.as_str()).collect();
    assert_eq!(pointers, ["/functions/1", "/on_failure/retry/max_attempts", "/description"]);
    assert!(setup.broker.create(&cx(), name("s"), SubscriptionSpec::to_all(vec![])).await.is_err());
    for bad in ["", "-a", "A", "a_b", &"x".repeat(64)] {
        assert!(bad.parse::<SubscriptionName>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_subscription_reads_back_as_json() {
    let filters = Filters::new(vec![Filter::exact("type", "a").unwrap()]).unwrap();
    for policy in [
        FailurePolicy::OfFunction,
        FailurePolicy::Drop,
        FailurePolicy::DeadLetter,
        FailurePolicy::Retry(quick(Retries::attempts(2))),
        FailurePolicy::Function(function("f")),
    ] {
        let spec = SubscriptionSpec::to(function("f")).with_filters(filters.clone()).with_on_failure(policy);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<SubscriptionSpec>(&text).unwrap(), spec);
    }
    assert!(serde_json::from_str::<SubscriptionSpec>(r#"{"functions":["f"],"stratgy":"parallel"}"#).is_err());
}

#[tokio::test]
async fn who_may_not_publish_is_refused_and_the_owners_rights_count() {
    let store = Arc::new(MemoryStore::new(GatewayId::generate()));
    let engine = Engine::new();
    let gateway = Gateway::builder()
        .store(Arc::clone(&store))
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(&engine)))
        .authorizer(Arc::new(ScopeAuthorizer))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    let with = |scopes: &[&str]| {
        let owner = scopes.iter().fold(principal("ada"), |owner, scope| owner.with_scope(*scope));
        CallContext::new(owner)
    };
    let all = with(&["read", "write", "invoke"]);
    let mut tried = spec();
    tried.async_policy = Some(Box::new(AsyncPolicy::default()));
    gateway.create(&all, &function("f"), tried).await.unwrap();
    gateway.start_workers(WorkerConfig::default()).unwrap();
    let broker = EventBroker::new(gateway.clone(), store);
    let reader = with(&["read"]);
    assert_eq!(broker.publish(&reader, &event("1", "{}")).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    let wanted = SubscriptionSpec::to(function("f"));
    let denied = broker.create(&reader, name("s"), wanted.clone()).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    broker.create(&with(&["write"]), name("s"), wanted).await.unwrap();
    let published = broker.publish(&with(&["invoke"]), &event("1", "{}")).await.unwrap();
    let Waited::Ended(record) =
        gateway.wait(&all, published.triggered[0].invocation, Duration::from_secs(30)).await.unwrap()
    else {
        panic!("it ends");
    };
    assert_eq!(record.failure.as_ref().unwrap().code, "permission_denied", "who subscribed may not execute it");
}
