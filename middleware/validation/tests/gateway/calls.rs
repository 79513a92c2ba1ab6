//! Functions are created and called.

use std::sync::Arc;

use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, CustomWorkload, Delivery, Error, ErrorClass, ErrorKind, FunctionExecutor as _, FunctionManager as _,
    FunctionSpec, Gateway, InvocationState, InvokeRequest, InvokeResponse, Outcome, PageRequest, PayloadFormat,
    Principal, RecordFilter, Result, TimedPhase, Violation,
};
use function_gateway_testkit::{Engine, Handler, Op, ScriptedDriver};
use function_gateway_validation::Validation;
use http::{Method, StatusCode};
use serde_json::{Value, json};

struct Setup {
    gateway: Gateway,
    engine: Engine,
}

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

fn spec() -> FunctionSpec {
    FunctionSpec::new("scripted".parse().unwrap(), CustomWorkload::new("scripted", json!({})))
}

async fn setup() -> Setup {
    let engine = Engine::new();
    let gateway = Gateway::builder()
        .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::on(&engine)))
        .middleware_for_all(Arc::new(Validation::default()))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    Setup { gateway, engine }
}

async fn with(spec: FunctionSpec) -> Setup {
    let setup = setup().await;
    setup.create(spec).await.unwrap();
    setup
}

impl Setup {
    async fn create(&self, spec: FunctionSpec) -> Result<()> {
        self.gateway.create(&cx(), &"f".parse().unwrap(), spec).await.map(drop)
    }

    async fn call(&self, request: InvokeRequest) -> Result<InvokeResponse> {
        self.gateway.invoke(&cx(), &"f".parse().unwrap(), request).await
    }

    async fn send(&self, payload: &'static str) -> Result<InvokeResponse> {
        self.call(InvokeRequest::new(payload)).await
    }

    async fn failure(&self) -> (InvocationState, ErrorClass, Delivery) {
        let page = self.gateway.executions(&cx(), &RecordFilter::default(), &PageRequest::default()).await.unwrap();
        let record = &page.items[0];
        let failure = record.failure.as_ref().unwrap();
        (record.state, failure.class, failure.delivery)
    }
}

async fn text(response: InvokeResponse) -> String {
    String::from_utf8(response.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

fn number() -> Value {
    json!({"type": "number"})
}

#[tokio::test]
async fn a_function_with_a_broken_schema_is_not_created() {
    let setup = setup().await;
    let broken = spec().with_input_schema(json!({"$ref": "https://a.test/"})).with_output_schema(json!({"type": 1}));
    let error = setup.create(broken).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec);
    let pointers: Vec<_> = error.violations().iter().map(|found| &*found.pointer).collect();
    assert_eq!(pointers, ["/input_schema/$ref", "/output_schema/type"]);
    assert_eq!(setup.send("1").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_function_with_a_schema_does_not_stream() {
    let mut streaming = spec().with_input_schema(number());
    streaming.streaming = true;
    let error = setup().await.create(streaming).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec);
}

#[tokio::test]
async fn a_payload_that_meets_the_schema_reaches_the_function_as_it_came() {
    let setup = with(spec().with_input_schema(number())).await;
    let response = setup.send(" 1.50 ").await.unwrap();
    let state = Arc::clone(response.call.as_ref().unwrap());
    assert_eq!(text(response).await, " 1.50 ");
    assert!(state.timings().get(TimedPhase::Validate).is_some());
}

#[tokio::test]
async fn a_payload_that_breaks_the_schema_never_reaches_the_function() {
    let setup = with(spec().with_input_schema(number())).await;
    let get = InvokeRequest::new("").with_method(Method::GET);
    for request in [InvokeRequest::new("\"x\""), InvokeRequest::new("x"), InvokeRequest::new(""), get] {
        let error = setup.call(request).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::InvalidInput, Delivery::NotSent));
        assert_eq!(setup.failure().await, (InvocationState::Failed, ErrorClass::Caller, Delivery::NotSent));
    }
    assert_eq!(setup.engine.count(Op::Invoke), 0);
}

#[tokio::test]
async fn a_result_that_breaks_the_schema_is_the_functions_failure() {
    let setup = with(spec().with_output_schema(number())).await;
    assert_eq!(text(setup.send("1").await.unwrap()).await, "1");
    let error = setup.send("\"x\"").await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::InvalidOutput, Delivery::Executed));
    assert_eq!(error.violations()[0].schema_pointer.as_deref(), Some("/type"));
    assert_eq!(setup.failure().await, (InvocationState::Failed, ErrorClass::Function, Delivery::Executed));
}

#[tokio::test]
async fn a_functions_own_error_passes_whatever_its_schema_says() {
    let setup = with(spec().with_output_schema(number())).await;
    for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::NOT_FOUND] {
        setup.engine.on_invoke(Handler::status(status, "not a number"));
        let response = setup.send("1").await.unwrap();
        assert_eq!((response.status, response.outcome.is_success()), (status, false));
        assert_eq!(text(response).await, "not a number");
    }
    setup.engine.on_invoke(Handler::failing("out of paper"));
    let response = setup.send("1").await.unwrap();
    assert!(matches!(&response.outcome, Outcome::Failed(failure) if failure.message == "out of paper"));
    setup.engine.on_invoke(Handler::error(Error::new(ErrorKind::Unavailable, "no engine")));
    assert_eq!(setup.send("1").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_broken_payload_is_not_tried_again_and_a_broken_result_neither() {
    let mut retried = spec().with_input_schema(number()).with_output_schema(json!({"maximum": 1}));
    retried.retry = Some(function_gateway_core::RetryPolicy::attempts(3));
    retried.idempotent = true;
    let setup = with(retried).await;
    setup.send("\"x\"").await.unwrap_err();
    assert_eq!(setup.engine.count(Op::Invoke), 0);
    setup.send("2").await.unwrap_err();
    assert_eq!(setup.engine.count(Op::Invoke), 1);
}

#[tokio::test]
async fn schemas_are_about_the_payload_not_about_its_envelope() {
    let mut wrapped = spec().with_input_schema(number()).with_output_schema(number());
    wrapped.format = PayloadFormat::Envelope;
    let setup = with(wrapped).await;
    setup.engine.on_invoke(Handler::status(StatusCode::OK, r#"{"context": {}, "payload": 2}"#));
    assert_eq!(text(setup.send("1").await.unwrap()).await, "2");
    setup.engine.on_invoke(Handler::status(StatusCode::OK, r#"{"context": {}, "payload": "x"}"#));
    assert_eq!(setup.send("1").await.unwrap_err().kind(), ErrorKind::InvalidOutput);
}

#[tokio::test]
async fn an_update_brings_its_own_schema() {
    let setup = with(spec().with_input_schema(number())).await;
    let text_only = spec().with_input_schema(json!({"type": "string"}));
    let precondition = function_gateway_core::Precondition::none();
    setup.gateway.update(&cx(), &"f".parse().unwrap(), text_only, precondition).await.unwrap();
    assert!(setup.send("\"x\"").await.is_ok());
    assert_eq!(setup.send("1").await.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn without_validation_a_schema_is_refused() {
    let gateway = Gateway::builder()
        .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
        .driver("scripted".parse().unwrap(), Arc::new(ScriptedDriver::new()))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    let error = gateway.create(&cx(), &"f".parse().unwrap(), spec().with_input_schema(number())).await.unwrap_err();
    assert_eq!(error.violations()[0].pointer, "/input_schema");
}

#[tokio::test]
async fn nothing_of_a_payload_is_kept_of_a_refusal() {
    const CANARY: &str = "canary-3f9a1c";
    let setup = with(spec().with_input_schema(number())).await;
    let error = setup.send("\"canary-3f9a1c\"").await.unwrap_err();
    let page = setup.gateway.executions(&cx(), &RecordFilter::default(), &PageRequest::default()).await.unwrap();
    let shown = format!("{error} {error:?} {:?} {}", page.items, json!(*page.items[0]));
    assert!(!shown.contains(CANARY), "{shown}");
}

#[tokio::test]
async fn a_check_finds_what_a_call_would_be_refused_for_and_no_call_comes_of_it() {
    let schema = json!({
        "properties": {"a/b": {"items": {"maximum": 1}}, "key": {"const": 1}, "x": {}},
        "required": ["x"],
        "additionalProperties": false,
    });
    let setup = with(spec().with_input_schema(schema)).await;
    let check = async |payload| {
        let request = InvokeRequest::new(payload);
        setup.gateway.check_payload(&cx(), &"f".parse().unwrap(), request).await.unwrap()
    };
    assert_eq!(check(r#"{"x": 1}"#).await, []);
    let document = r#"{"a/b": [2, 3], "key": "canary-7", "more": "canary-7"}"#;
    let no_json = ["", "canary-7", r#"{"x": 1, "x": canary-7}"#];
    let mut found = vec![check(document).await];
    for broken in no_json {
        found.push(check(broken).await);
    }
    let records = setup.gateway.executions(&cx(), &RecordFilter::default(), &PageRequest::default()).await.unwrap();
    assert!(records.items.is_empty());

    assert_eq!(found[0].len(), 5);
    assert_eq!(setup.send(document).await.unwrap_err().violations(), found[0]);
    for (broken, found) in no_json.into_iter().zip(&found[1..]) {
        let refused = setup.send(broken).await.unwrap_err();
        assert!(refused.violations().is_empty());
        assert_eq!(*found, [Violation::new("", refused.message())]);
    }
    assert!(!format!("{found:?}").contains("canary-7"), "{found:?}");
    assert_eq!(setup.engine.count(Op::Invoke), 0);
}

#[tokio::test]
async fn a_check_is_about_the_payload_alone() {
    let mut wrapped = spec().with_input_schema(number()).with_output_schema(number());
    wrapped.format = PayloadFormat::Envelope;
    let setup = with(wrapped).await;
    let check = async |payload| {
        setup.gateway.check_payload(&cx(), &"f".parse().unwrap(), InvokeRequest::new(payload)).await.unwrap()
    };
    assert_eq!(check("1").await, []);
    // Once, and not once more by the envelope.
    assert_eq!(check("no json").await.len(), 1);

    let setup = with(spec().with_output_schema(number())).await;
    let any = InvokeRequest::new("no json");
    assert_eq!(setup.gateway.check_payload(&cx(), &"f".parse().unwrap(), any).await.unwrap(), []);
}
