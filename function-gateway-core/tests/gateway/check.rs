//! A payload that is checked without an execution.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::{
    Action, Authorizer, Body, BodyAccess, CallContext, Cancellation, Decision, Delivery, Error, ErrorKind,
    FunctionExecutor as _, FunctionManager as _, FunctionSpec, Invocation, InvokeRequest, InvokeResponse, Middleware,
    Next, PageRequest, PayloadFormat, Rate, RecordFilter, RecordMode, Resource, Result, Stage, StatisticsQuery,
    Timestamp, Violation,
};
use function_gateway_testkit::Op;

use crate::common::{Setup, cx, function, gateway, gateway_with, name, principal, soon, spec};

async fn with_function(spec: FunctionSpec) -> Setup {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec).await.unwrap();
    setup
}

async fn check(setup: &Setup, body: impl Into<Body>) -> Result<Vec<Violation>> {
    check_with(setup, InvokeRequest::new(body)).await
}

async fn check_with(setup: &Setup, request: InvokeRequest) -> Result<Vec<Violation>> {
    soon(setup.gateway.check_payload(&cx(), &function("f"), request)).await
}

fn chunks(chunks: &'static [&'static str]) -> Body {
    Body::from_stream(futures_util::stream::iter(chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())))))
}

/// Wants payloads to hold a word, and counts the calls that come by.
#[derive(Debug)]
struct Wants(&'static str, Stage, Arc<AtomicU32>);

impl Wants {
    fn at(stage: Stage, word: &'static str) -> Arc<Self> {
        Arc::new(Self(word, stage, Arc::default()))
    }
}

#[async_trait::async_trait]
impl Middleware for Wants {
    fn name(&self) -> &str {
        self.0
    }

    fn stage(&self) -> Stage {
        self.1
    }

    fn body_access(&self) -> BodyAccess {
        if self.1 > Stage::Limit { BodyAccess::Request } else { BodyAccess::None }
    }

    async fn check(&self, call: &Invocation) -> Result<Vec<Violation>> {
        let text = std::str::from_utf8(call.request.body.as_bytes().unwrap()).unwrap();
        if text.contains("broken") {
            return Err(Error::new(ErrorKind::DependencyUnavailable, "can't be asked now"));
        }
        Ok((!text.contains(self.0)).then(|| Violation::new("", format!("has no {}", self.0))).into_iter().collect())
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        self.2.fetch_add(1, Ordering::SeqCst);
        next.run(call).await
    }
}

#[tokio::test]
async fn every_middleware_is_asked_in_its_order_and_nothing_is_executed() {
    let steps =
        [Wants::at(Stage::Prepare, "salt"), Wants::at(Stage::Validate, "oil"), Wants::at(Stage::Observe, "rice")];
    let setup =
        gateway_with(|builder| steps.iter().fold(builder, |builder, step| builder.middleware(step.clone()))).await;
    setup.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    let reasons = async |body: Body| -> Vec<String> {
        check(&setup, body).await.unwrap().into_iter().map(|found| found.reason).collect()
    };
    assert_eq!(reasons("".into()).await, ["has no rice", "has no oil", "has no salt"]);
    assert_eq!(reasons(chunks(&["ri", "ce, o", "il"])).await, ["has no salt"]);
    assert!(reasons("rice, oil, salt".into()).await.is_empty());
    let error = check(&setup, "broken").await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("function")), (ErrorKind::DependencyUnavailable, Some("f")));

    assert_eq!(setup.engine.count(Op::Invoke), 0);
    assert!(steps.iter().all(|step| step.2.load(Ordering::SeqCst) == 0));
}

#[tokio::test]
async fn a_check_is_not_recorded_and_counts_against_no_limit() {
    for mode in [RecordMode::Buffered, RecordMode::Durable] {
        let mut limited = spec();
        limited.record.mode = Some(mode);
        limited.limits.max_in_flight = Some(1);
        limited.limits.rate = Some(Rate { calls: 1, per: Duration::from_secs(3600), burst: None });
        let setup = with_function(limited).await;
        for _ in 0..3 {
            assert_eq!(check(&setup, "anything").await.unwrap(), []);
        }
        let records = setup.gateway.executions(&cx(), &RecordFilter::default(), &PageRequest::default()).await.unwrap();
        assert!(records.items.is_empty());
        let now = Timestamp::now();
        let figures = StatisticsQuery::new(now, now.plus(Duration::from_secs(60)));
        assert_eq!(setup.gateway.statistics(&cx(), &figures).await.unwrap().count, 0);
        setup.gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await.unwrap();
    }
}

#[tokio::test]
async fn a_payload_is_read_up_to_the_functions_limit() {
    let mut small = spec();
    small.limits.max_request_bytes = Some(4);
    let setup = with_function(small).await;
    assert_eq!(check(&setup, chunks(&["ab", "cd"])).await.unwrap(), []);
    for body in [Body::from("abcde"), chunks(&["abc", "de"]), chunks(&["a"]).with_declared_len(5)] {
        let error = check(&setup, body).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::PayloadTooLarge, Delivery::NotSent));
        assert_eq!(error.context_value("limit_bytes"), Some("4"));
    }
}

#[tokio::test]
async fn a_streaming_functions_payload_is_not_read() {
    let mut streaming = spec();
    streaming.streaming = true;
    let setup = with_function(streaming).await;
    assert_eq!(check(&setup, Body::from_stream(futures_util::stream::pending())).await.unwrap(), []);
}

#[tokio::test]
async fn a_payload_that_fits_into_no_envelope_is_named_as_a_call_would_name_it() {
    let mut enveloped = spec();
    enveloped.format = PayloadFormat::Envelope;
    let setup = with_function(enveloped).await;
    for good in ["", "null", r#"{"a": 1}"#] {
        assert_eq!(check(&setup, good).await.unwrap(), []);
    }
    for (bad, place) in [("{\n\"a\"", "line 2, column 3"), ("no", "line 1, column 2")] {
        let found = check(&setup, bad).await.unwrap();
        let refused = setup.gateway.invoke(&cx(), &function("f"), InvokeRequest::new(bad)).await.unwrap_err();
        assert_eq!(found, [Violation::new("", format!("{} ({place})", refused.message()))]);
    }
}

#[derive(Debug)]
struct NoCaller;

#[async_trait::async_trait]
impl Authorizer for NoCaller {
    async fn authorize(&self, _: &CallContext, action: Action, resource: Resource<'_>) -> Result<Decision> {
        let of_ada = resource.owner.is_some_and(|owner| owner.as_str() == "ada");
        let denied = action == Action::Invoke && of_ada && resource.function == Some(&name("f"));
        Ok(if denied { Decision::Deny } else { Decision::Allow })
    }
}

#[tokio::test]
async fn who_is_not_let_in_for_a_call_checks_nothing() {
    let setup = with_function(spec()).await;
    let denied = gateway_with(|builder| builder.authorizer(Arc::new(NoCaller))).await;
    denied.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    let refused = async |setup: &Setup, cx: &CallContext, request: InvokeRequest| {
        let again = request.try_clone().unwrap();
        let checked = setup.gateway.check_payload(cx, &function("f"), request).await.unwrap_err();
        let called = setup.gateway.invoke(cx, &function("f"), again).await.unwrap_err();
        assert_eq!((checked.kind(), checked.message()), (called.kind(), called.message()));
        checked.kind()
    };
    let plain = || InvokeRequest::new("x");
    let stranger = CallContext::new(principal("other", "ada"));
    let narrowed = plain().with_secrets(["unlisted".parse().unwrap()]);
    assert_eq!(refused(&denied, &cx(), plain()).await, ErrorKind::PermissionDenied);
    assert_eq!(refused(&setup, &stranger, plain()).await, ErrorKind::NotFound);
    assert_eq!(refused(&setup, &cx(), plain().with_path("below")).await, ErrorKind::InvalidArgument);
    assert_eq!(refused(&setup, &cx(), narrowed).await, ErrorKind::InvalidArgument);
    setup.gateway.shutdown(Duration::ZERO).await.unwrap();
    assert_eq!(refused(&setup, &cx(), plain()).await, ErrorKind::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_does_not_come_is_given_up() {
    let never = || Body::from_stream(futures_util::stream::pending());
    let mut hurried = spec();
    hurried.timeouts.total = Some(Duration::from_secs(1));
    let setup = with_function(hurried).await;
    let error = check(&setup, never()).await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("timeout")), (ErrorKind::DeadlineExceeded, Some("total")));

    let cancellation = Cancellation::new();
    cancellation.cancel();
    let signalled = cx().with_cancellation(cancellation);
    let error = setup.gateway.check_payload(&signalled, &function("f"), InvokeRequest::new(never())).await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::Cancelled, Delivery::NotSent));

    let gateway = setup.gateway.clone();
    let waiting =
        tokio::spawn(async move { gateway.check_payload(&cx(), &function("f"), InvokeRequest::new(never())).await });
    tokio::task::yield_now().await;
    setup.gateway.shutdown(Duration::ZERO).await.unwrap();
    let error = soon(waiting).await.unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::ShuttingDown), "{error}");
}
