//! The middleware of this example, in a gateway over a scripted engine.

#![expect(clippy::unwrap_used, reason = "test code fails by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use custom_middleware::{AskAgain, CallToken, ContentTypes, RenameFields, TOKEN_HEADER};
use function_gateway::store::memory::MemoryStore;
use function_gateway::{
    CallContext, CustomWorkload, DriverRequest, Error, ErrorKind, FunctionExecutor as _, FunctionManager as _,
    FunctionSpec, Gateway, GatewayBuilder, Invocation, InvocationRecord, InvokeRequest, InvokeResponse, KeepPayloads,
    Middleware, Next, PageRequest, Principal, RecordFilter, Result, Secret, Stage, Violation,
};
use function_gateway_testkit::{Engine, Handler, Op, ScriptedDriver};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

struct Setup {
    gateway: Gateway,
    engine: Engine,
    cx: CallContext,
}

impl Setup {
    async fn new(change: impl FnOnce(GatewayBuilder) -> GatewayBuilder) -> Self {
        let driver = ScriptedDriver::new();
        let engine = driver.engine().clone();
        let builder = Gateway::builder()
            .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
            .driver("scripted".parse().unwrap(), Arc::new(driver))
            .without_reconciler();
        let gateway = change(builder).build().await.unwrap();
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        Self { gateway, engine, cx }
    }

    async fn create(&self, spec: FunctionSpec) -> Result<()> {
        self.gateway.create(&self.cx, &"fun".parse().unwrap(), spec).await.map(drop)
    }

    async fn invoke(&self, request: InvokeRequest) -> Result<InvokeResponse> {
        self.gateway.invoke(&self.cx, &"fun".parse().unwrap(), request).await
    }

    async fn record(&self) -> Arc<InvocationRecord> {
        let page = PageRequest::default();
        self.gateway.executions(&self.cx, &RecordFilter::default(), &page).await.unwrap().items.remove(0)
    }
}

fn spec() -> FunctionSpec {
    FunctionSpec::new("scripted".parse().unwrap(), CustomWorkload::new("scripted", json!({})))
}

fn renaming(settings: Value) -> FunctionSpec {
    spec().with_middleware("rename-fields", settings)
}

fn rename_colour() -> FunctionSpec {
    renaming(json!({"fields": {"colour": "color"}}))
}

fn typed(content_type: &'static str) -> InvokeRequest {
    InvokeRequest::new("{}").with_header(CONTENT_TYPE, HeaderValue::from_static(content_type))
}

async fn text(response: InvokeResponse) -> String {
    String::from_utf8(response.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

fn pointers(error: &Error) -> Vec<&str> {
    assert_eq!(error.kind(), ErrorKind::InvalidSpec);
    error.violations().iter().map(|violation| violation.pointer.as_str()).collect()
}

/// Writes down when a call passes on its way in, and on its way back.
#[derive(Debug)]
struct Step(&'static str, Stage, Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Middleware for Step {
    fn name(&self) -> &str {
        self.0
    }

    fn stage(&self) -> Stage {
        self.1
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        self.2.lock().unwrap().push(format!("{} in", self.0));
        let result = next.run(call).await;
        self.2.lock().unwrap().push(format!("{} out", self.0));
        result
    }
}

#[tokio::test]
async fn the_order_goes_by_stage_then_by_registration_and_back_the_other_way_round() {
    let seen = Arc::default();
    let step = |name, stage| Arc::new(Step(name, stage, Arc::clone(&seen)));
    let setup = Setup::new(|builder| {
        builder
            .middleware(step("prepare", Stage::Prepare))
            .middleware(step("first check", Stage::Validate))
            .middleware(step("observe", Stage::Observe))
            .middleware(step("second check", Stage::Validate))
    })
    .await;
    setup.create(spec()).await.unwrap();
    setup.invoke(InvokeRequest::new("hi")).await.unwrap();
    let way = ["observe", "first check", "second check", "prepare"];
    let there = way.iter().map(|name| format!("{name} in"));
    let back = way.iter().rev().map(|name| format!("{name} out"));
    assert_eq!(*seen.lock().unwrap(), there.chain(back).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_payload_of_another_content_type_does_not_reach_the_function() {
    let setup = Setup::new(|builder| builder.middleware(Arc::new(ContentTypes::only(["application/json"])))).await;
    setup.create(spec()).await.unwrap();
    for refused in [typed("text/plain"), typed("application/jsonp"), InvokeRequest::new("untyped")] {
        let error = setup.invoke(refused).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.message(), "the payload's content type has to be application/json");
    }
    assert_eq!(setup.engine.count(Op::Invoke), 0);
    let found = setup.gateway.check_payload(&setup.cx, &"fun".parse().unwrap(), typed("text/plain")).await.unwrap();
    assert_eq!(found, [Violation::new("", "the payload's content type has to be application/json")]);
    assert_eq!(setup.record().await.failure.as_ref().unwrap().code, ErrorKind::InvalidInput.code());

    for passing in [typed("Application/JSON; charset=utf-8"), InvokeRequest::new("")] {
        setup.invoke(passing).await.unwrap();
    }
    assert_eq!(setup.engine.count(Op::Invoke), 2);
}

async fn with_rename_fields() -> Setup {
    Setup::new(|builder| builder.middleware_by_choice(Arc::new(RenameFields))).await
}

#[tokio::test]
async fn fields_are_renamed_for_the_function_that_chooses_it_and_no_other() {
    let setup = with_rename_fields().await;
    setup.engine.on_invoke(Handler::new(async |_, _| {
        let body = r#"{"colour": "red", "size": 3}"#;
        Ok(InvokeResponse::new(StatusCode::OK, body).with_header(CONTENT_LENGTH, HeaderValue::from(body.len())))
    }));
    setup.create(rename_colour()).await.unwrap();
    let response = setup.invoke(InvokeRequest::new("")).await.unwrap();
    assert!(!response.headers.contains_key(CONTENT_LENGTH));
    assert_eq!(text(response).await, r#"{"color":"red","size":3}"#);

    let other = "other".parse().unwrap();
    setup.gateway.create(&setup.cx, &other, spec()).await.unwrap();
    let response = setup.gateway.invoke(&setup.cx, &other.into(), InvokeRequest::new("")).await.unwrap();
    assert_eq!(text(response).await, r#"{"colour": "red", "size": 3}"#);
}

#[tokio::test]
async fn a_result_whose_fields_cannot_be_renamed_is_an_invalid_output() {
    let setup = with_rename_fields().await;
    setup.create(rename_colour()).await.unwrap();
    for result in ["[]", "no JSON", r#"{"colour": 1, "color": 2}"#] {
        let error = setup.invoke(InvokeRequest::new(result)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOutput, "{result}");
    }
}

#[tokio::test]
async fn a_failure_of_the_function_passes_as_it_is() {
    let setup = with_rename_fields().await;
    setup.engine.on_invoke(Handler::status(StatusCode::BAD_REQUEST, r#"{"colour":"which?"}"#));
    setup.create(rename_colour()).await.unwrap();
    let response = setup.invoke(InvokeRequest::new("")).await.unwrap();
    assert_eq!(response.status, StatusCode::BAD_REQUEST);
    assert_eq!(text(response).await, r#"{"colour":"which?"}"#);
}

#[tokio::test]
async fn wrong_settings_are_refused_each_at_its_place() {
    let setup = with_rename_fields().await;
    let cases = [
        (json!(null), vec!["/middleware/0/settings"]),
        (json!({}), vec!["/middleware/0/settings/fields"]),
        (json!({"fields": {}}), vec!["/middleware/0/settings/fields"]),
        (json!({"fields": {"a": "b"}, "a/b": 1}), vec!["/middleware/0/settings/a~1b"]),
        (
            json!({"fields": {"a": "x", "b": "x", "c~d": 7}}),
            vec!["/middleware/0/settings/fields/b", "/middleware/0/settings/fields/c~0d"],
        ),
    ];
    for (settings, expected) in cases {
        let error = setup.create(renaming(settings.clone())).await.unwrap_err();
        assert_eq!(pointers(&error), expected, "{settings}");
    }
    assert_eq!(setup.gateway.get(&setup.cx, &"fun".parse().unwrap()).await.unwrap_err().kind(), ErrorKind::NotFound);

    let second = rename_colour().with_middleware("rename-fields", json!(7));
    assert_eq!(pointers(&setup.create(second).await.unwrap_err()), ["/middleware/1/settings"]);
}

#[tokio::test]
async fn a_middleware_that_nobody_registered_cannot_be_chosen() {
    let setup = Setup::new(|builder| builder).await;
    assert_eq!(pointers(&setup.create(rename_colour()).await.unwrap_err()), ["/middleware/0/name"]);
}

#[tokio::test]
async fn a_streaming_function_cannot_choose_what_reads_results_whole() {
    let setup = with_rename_fields().await;
    let mut streaming = rename_colour();
    streaming.streaming = true;
    let error = setup.create(streaming).await.unwrap_err();
    assert_eq!(pointers(&error), ["/streaming"]);
    assert!(error.to_string().contains("rename-fields"), "{error}");
}

fn with_tokens(builder: GatewayBuilder) -> GatewayBuilder {
    let count = AtomicUsize::new(0);
    builder.middleware(Arc::new(CallToken::new(move |_| {
        let count = count.fetch_add(1, Ordering::Relaxed);
        Secret::new(format!("canary-{count}"))
    })))
}

#[tokio::test]
async fn the_function_gets_the_token_and_nothing_that_is_kept_shows_it() {
    let setup = Setup::new(with_tokens).await;
    setup.engine.on_invoke(Handler::new(async |_, request: DriverRequest| {
        let token = request.headers[TOKEN_HEADER].as_bytes().to_vec();
        request.logs.write(&token);
        Ok(InvokeResponse::new(StatusCode::OK, token))
    }));
    let mut spec = spec();
    spec.record.payloads = Some(KeepPayloads::Always);
    setup.create(spec).await.unwrap();
    assert_eq!(text(setup.invoke(InvokeRequest::new("")).await.unwrap()).await, "canary-0");

    let record = setup.record().await;
    assert_eq!(&record.result.as_ref().unwrap().bytes[..], b"[redacted]");
    assert_eq!(&record.logs.as_ref().unwrap().bytes[..], b"[redacted]");
}

#[tokio::test]
async fn an_error_does_not_show_the_token() {
    let setup = Setup::new(with_tokens).await;
    setup.engine.on_invoke(Handler::error(Error::new(ErrorKind::Engine, "bad token canary-0")));
    setup.create(spec()).await.unwrap();
    assert_eq!(setup.invoke(InvokeRequest::new("")).await.unwrap_err().message(), "bad token [redacted]");
}

/// Answers nothing at first, and then with the payload and the token.
fn empty_at_first() -> Handler {
    let calls = Arc::new(AtomicUsize::new(0));
    Handler::new(move |_, request: DriverRequest| {
        let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            let tokens: Vec<_> =
                request.headers.get_all(TOKEN_HEADER).iter().map(|token| token.to_str().unwrap()).collect();
            let answer =
                format!("{} with {}", String::from_utf8_lossy(request.body.as_bytes().unwrap()), tokens.join(" "));
            Ok(InvokeResponse::new(StatusCode::OK, if first { String::new() } else { answer }))
        }
    })
}

async fn asking_again(idempotent: bool) -> Setup {
    let setup = Setup::new(|builder| with_tokens(builder.middleware(Arc::new(AskAgain)))).await;
    setup.engine.on_invoke(empty_at_first());
    let mut spec = spec();
    spec.idempotent = idempotent;
    setup.create(spec).await.unwrap();
    setup
}

#[tokio::test]
async fn an_empty_answer_is_asked_for_again_by_a_call_as_it_was() {
    let setup = asking_again(true).await;
    let answer = setup.invoke(InvokeRequest::new("hi")).await.unwrap();
    assert_eq!(text(answer).await, "hi with canary-1");
    let record = setup.record().await;
    assert_eq!(record.attempts, 2);
}

#[tokio::test]
async fn a_function_that_is_not_idempotent_is_asked_once() {
    let setup = asking_again(false).await;
    let answer = setup.invoke(InvokeRequest::new("hi")).await.unwrap();
    assert_eq!(text(answer).await, "");
    assert_eq!(setup.engine.count(Op::Invoke), 1);
}

#[tokio::test]
async fn two_middleware_at_a_stage_that_holds_one_are_refused_when_the_gateway_is_built() {
    let step = Step("my retry", Stage::Retry, Arc::default());
    let error = Gateway::builder()
        .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
        .middleware(Arc::new(step))
        .build()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
}
