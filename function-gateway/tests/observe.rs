//! What a host sees of calls: spans, trace context and figures.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code fails by panicking")]

#[cfg(test)]
#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use function_gateway::{
    CallContext, Deadline, Delivery, Error, ErrorKind, FunctionExecutor as _, FunctionManager as _, FunctionSpec,
    Gateway, InvokeRequest, InvokeResponse, Origin, RetryPolicy, TraceParent, call_headers,
};
use function_gateway_testkit::{Engine, Gate, Handler, ScriptedDriver};
use futures_util::StreamExt as _;
use http::StatusCode;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use common::{cx, function, name, scripted, store, text};

/// A span with the fields as they are by now.
#[derive(Debug, Clone, Default)]
struct Span {
    name: &'static str,
    target: String,
    fields: BTreeMap<&'static str, String>,
    closed: bool,
}

impl Span {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Span {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Keeps the spans of the gateway's calls, in the order in which they began.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<(Id, Span)>>>);

impl Spans {
    /// Has this thread's spans kept from now on.
    fn keep(&self) -> DefaultGuard {
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }

    fn all(&self) -> Vec<Span> {
        self.0.lock().unwrap().iter().map(|(_, span)| span.clone()).collect()
    }

    #[track_caller]
    fn only(&self) -> Span {
        let spans = self.all();
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans[0].clone()
    }

    fn change(&self, id: &Id, change: impl FnOnce(&mut Span)) {
        // An id is used again once its span is closed.
        if let Some((_, span)) = self.0.lock().unwrap().iter_mut().find(|(known, span)| known == id && !span.closed) {
            change(span);
        }
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let metadata = attributes.metadata();
        let mut span = Span { name: metadata.name(), target: metadata.target().to_owned(), ..Span::default() };
        attributes.record(&mut span);
        self.0.lock().unwrap().push((id.clone(), span));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.change(id, |span| values.record(span));
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.change(&id, |span| span.closed = true);
    }
}

/// The figures by name and labels, in one line each; a histogram by how many values it has. Counters start anew.
fn figures(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let one = |(key, _, _, value): (metrics_util::CompositeKey, _, _, DebugValue)| {
        let key = key.key();
        let mut labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        labels.sort();
        let count = match value {
            DebugValue::Counter(count) => count,
            DebugValue::Histogram(values) => {
                assert!(values.iter().all(|seconds| (0.0..600.0).contains(&seconds.0)), "{key:?} is in seconds");
                values.len() as u64
            }
            DebugValue::Gauge(_) => panic!("{key:?} is a gauge"),
        };
        (format!("{} {}", key.name(), labels.join(" ")), count)
    };
    snapshotter.snapshot().into_vec().into_iter().map(one).filter(|(_, count)| *count > 0).collect()
}

struct Setup {
    gateway: Gateway,
    engine: Engine,
    spans: Spans,
}

/// What is observed of the gateway begins with the first call.
async fn with(spec: FunctionSpec) -> Setup {
    let engine = Engine::new();
    let gateway = Gateway::builder()
        .store(store())
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(&engine)))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    gateway.create(&cx(), &name("f"), spec).await.unwrap();
    Setup { gateway, engine, spans: Spans::default() }
}

fn retried() -> FunctionSpec {
    let mut spec = scripted("scripted");
    let mut policy = RetryPolicy::attempts(3);
    (policy.initial_backoff, policy.max_backoff) = (Duration::ZERO, Duration::ZERO);
    spec.retry = Some(policy);
    spec
}

fn streaming() -> FunctionSpec {
    let mut spec = scripted("scripted");
    spec.streaming = true;
    spec
}

impl Setup {
    async fn call(&self, cx: &CallContext, request: InvokeRequest) -> Result<InvokeResponse, Error> {
        self.gateway.invoke(cx, &function("f"), request).await
    }
}

#[tokio::test]
async fn a_call_is_one_span_by_the_conventions() {
    let setup = with(scripted("scripted")).await;
    let _kept = setup.spans.keep();
    let answer = setup.call(&cx().with_origin(Origin::Event), InvokeRequest::new("x")).await.unwrap();
    let span = setup.spans.only();
    assert_eq!((span.name, &*span.target, span.closed), ("faas.invoke", "function_gateway", true));
    let traceparent: TraceParent = span.field("function_gateway.traceparent").parse().unwrap();
    assert_eq!(
        traceparent,
        setup.gateway.execution(&cx(), answer.invocation_id().unwrap()).await.unwrap().trace.unwrap()
    );
    let id = answer.invocation_id().unwrap().to_string();
    let expected = [
        ("faas.invocation_id", &*id),
        ("faas.invoked_name", "f"),
        ("faas.invoked_provider", "scripted"),
        ("faas.trigger", "event"),
        ("function_gateway.attempts", "1"),
        ("function_gateway.generation", "1"),
        ("function_gateway.tenant", "acme"),
        ("function_gateway.traceparent", span.field("function_gateway.traceparent")),
        ("otel.kind", "client"),
    ];
    assert_eq!(span.fields.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_failure_names_its_type() {
    let unavailable = Error::new(ErrorKind::Unavailable, "down").with_delivery(Delivery::NotSent);
    let cases = [
        (Handler::failing("no"), "function_failed", "1"),
        (Handler::status(StatusCode::NOT_FOUND, "what?"), "function_rejected", "1"),
        (Handler::error(unavailable), "unavailable", "3"),
        (Handler::hang(), "deadline_exceeded", "1"),
    ];
    for (handler, error_type, attempts) in cases {
        let setup = with(retried()).await;
        setup.engine.on_invoke(handler);
        let _kept = setup.spans.keep();
        let hurry = cx().with_deadline(Deadline::after(Duration::from_secs(1)));
        let _ = setup.call(&hurry, InvokeRequest::new("")).await;
        let span = setup.spans.only();
        assert_eq!((span.field("error.type"), span.field("function_gateway.attempts")), (error_type, attempts));
        assert!(span.closed, "{error_type}");
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled() {
    let setup = with(scripted("scripted")).await;
    setup.engine.on_invoke(Handler::hang());
    let _kept = setup.spans.keep();
    let cx = cx();
    {
        let mut call = std::pin::pin!(setup.call(&cx, InvokeRequest::new("")));
        assert!(futures_util::poll!(&mut call).is_pending());
        assert!(!setup.spans.only().closed);
    }
    let span = setup.spans.only();
    assert_eq!((span.field("error.type"), span.closed), ("cancelled", true));
}

#[tokio::test]
async fn a_span_lives_until_the_streamed_answer_has_ended() {
    let gate = Gate::new();
    for (handler, error_type) in [
        (Handler::stream(["a", "b"], &gate), ""),
        (Handler::break_off(["a", "b"], &gate), "function_broken"),
        (Handler::stream(["a", "b"], &Gate::new()), "cancelled"),
    ] {
        let setup = with(streaming()).await;
        setup.engine.on_invoke(handler);
        let _kept = setup.spans.keep();
        let recorder = DebuggingRecorder::new();
        let _recorded = metrics::set_default_local_recorder(&recorder);
        let answer = setup.call(&cx(), InvokeRequest::new("")).await.unwrap();
        assert!(!setup.spans.only().closed);
        assert!(figures(&recorder.snapshotter()).is_empty());
        gate.open();
        let mut body = answer.body.into_stream();
        if error_type == "cancelled" {
            assert!(futures_util::poll!(body.next()).is_pending());
            drop(body);
        } else {
            while body.next().await.is_some() {}
        }
        let span = setup.spans.only();
        assert_eq!((span.field("error.type"), span.closed), (error_type, true));
        let counted = figures(&recorder.snapshotter());
        assert_eq!(counted["faas.invocations faas.invoked_name=f tenant=acme"], 1, "{error_type}");
        let errors = format!("faas.errors error.type={error_type} faas.invoked_name=f tenant=acme");
        assert_eq!(counted.contains_key(&errors), !error_type.is_empty(), "{counted:?}");
    }
}

/// A function that tells what of the trace reaches it.
fn tells_its_trace() -> Handler {
    Handler::new(async |cx: CallContext, _| {
        let headers: BTreeMap<_, _> = call_headers(&cx).into_iter().collect();
        let told = json!({"traceparent": headers.get("traceparent"), "tracestate": headers.get("tracestate")});
        Ok(InvokeResponse::new(StatusCode::OK, told.to_string()))
    })
}

#[tokio::test]
async fn a_trace_goes_on_through_the_gateway() {
    const IN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const OTHER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let header = |request: InvokeRequest, name: &'static str, value: &'static str| {
        request.with_header(name.parse().unwrap(), value.parse().unwrap())
    };
    let with_headers =
        |parent, state| header(header(InvokeRequest::new(""), "traceparent", parent), "tracestate", state);
    let mut two_states = with_headers(IN, "a=1,b=2");
    two_states.headers.append("tracestate", "c=3".parse().unwrap());
    let host = || cx().with_trace(OTHER.parse().unwrap());
    let cases = [
        ("by headers", cx(), two_states, Some(IN), Some("a=1,b=2,c=3")),
        ("without vendors' data", cx(), header(InvokeRequest::new(""), "traceparent", IN), Some(IN), None),
        ("by the host", host().with_trace_state("h=1"), InvokeRequest::new(""), Some(OTHER), Some("h=1")),
        ("by the host, over the headers", host(), with_headers(IN, "a=1"), Some(OTHER), None),
        ("none: a new one", cx(), InvokeRequest::new(""), None, None),
        ("one that can't be read: a new one", cx(), with_headers("00-zz", "a=1"), None, None),
        ("vendors' data alone: a new one", cx(), header(InvokeRequest::new(""), "tracestate", "a=1"), None, None),
    ];
    let setup = with(scripted("scripted")).await;
    setup.engine.on_invoke(tells_its_trace());
    for (what, cx, request, parent, state) in cases {
        let told: Value = serde_json::from_str(&text(setup.call(&cx, request).await.unwrap()).await).unwrap();
        let passed_on: TraceParent = told["traceparent"].as_str().unwrap().parse().unwrap();
        assert_eq!(told["tracestate"].as_str(), state, "{what}");
        match parent.map(|parent| parent.parse::<TraceParent>().unwrap()) {
            Some(parent) => {
                assert_eq!((passed_on.trace_id(), passed_on.is_sampled()), (parent.trace_id(), true), "{what}");
                assert_ne!(passed_on, parent, "{what}: a hop has a span id of its own");
            }
            None => assert!(!IN.contains(&passed_on.trace_id()) && !passed_on.is_sampled(), "{what}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_and_timed() {
    let setup = with(scripted("scripted")).await;
    let recorder = DebuggingRecorder::new();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let hurry = || cx().with_deadline(Deadline::after(Duration::from_secs(1)));
    let handlers = [
        Handler::echo(),
        Handler::echo(),
        Handler::failing("no"),
        Handler::status(StatusCode::CONFLICT, ""),
        Handler::hang(),
    ];
    for handler in handlers {
        setup.engine.on_invoke(handler);
        let _ = setup.call(&hurry(), InvokeRequest::new("")).await;
    }
    let of_f = |error_type: &str| format!("faas.errors error.type={error_type} faas.invoked_name=f tenant=acme");
    let expected = BTreeMap::from([
        ("faas.invocations faas.invoked_name=f tenant=acme".to_owned(), 5),
        ("faas.invoke_duration faas.invoked_name=f tenant=acme".to_owned(), 5),
        ("faas.timeouts faas.invoked_name=f tenant=acme".to_owned(), 1),
        (of_f("function_failed"), 1),
        (of_f("function_rejected"), 1),
        (of_f("deadline_exceeded"), 1),
        ("function_gateway.phase_duration phase=driver".to_owned(), 5),
        ("function_gateway.phase_duration phase=total".to_owned(), 5),
    ]);
    assert_eq!(figures(&recorder.snapshotter()), expected);
}

#[tokio::test]
async fn what_is_refused_before_the_pipeline_is_counted_and_is_no_invocation() {
    let setup = with(scripted("scripted")).await;
    let _kept = setup.spans.keep();
    let recorder = DebuggingRecorder::new();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let past = cx().with_deadline(Deadline::after(Duration::ZERO));
    setup.call(&past, InvokeRequest::new("")).await.unwrap_err();
    setup.call(&cx(), InvokeRequest::new("").with_path("relative")).await.unwrap_err();
    for _ in 0..2 {
        setup.gateway.invoke(&cx(), &function("absent"), InvokeRequest::new("")).await.unwrap_err();
    }
    let expected = BTreeMap::from([
        ("function_gateway.refusals code=deadline_exceeded".to_owned(), 1),
        ("function_gateway.refusals code=invalid_argument".to_owned(), 1),
        ("function_gateway.refusals code=not_found".to_owned(), 2),
    ]);
    assert_eq!(figures(&recorder.snapshotter()), expected);
    assert!(setup.spans.all().is_empty());
}

#[tokio::test]
async fn a_refusal_by_a_limit_is_observed() {
    let mut limited = scripted("scripted");
    limited.limits.max_in_flight = Some(1);
    limited.limits.max_queued = Some(0);
    let setup = with(limited).await;
    setup.engine.on_invoke(Handler::hang());
    let cx = cx();
    let mut first = std::pin::pin!(setup.call(&cx, InvokeRequest::new("")));
    assert!(futures_util::poll!(&mut first).is_pending());
    let _kept = setup.spans.keep();
    let recorder = DebuggingRecorder::new();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    setup.call(&cx, InvokeRequest::new("")).await.unwrap_err();
    assert_eq!(setup.spans.only().field("error.type"), "rate_limited");
    let counted = figures(&recorder.snapshotter());
    assert_eq!(counted["faas.errors error.type=rate_limited faas.invoked_name=f tenant=acme"], 1);
}
