//! The value of a secret is in the function's answer and nowhere else, whatever the function does with it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code fails by panicking")]

#[cfg(test)]
#[path = "common/mod.rs"]
mod common;

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use function_gateway::store::memory::MemoryStore;
use function_gateway::store::sql::SqlStore;
use function_gateway::{
    AccessManager as _, Body, DriverRequest, Error, ErrorKind, FaasDriver as _, FunctionExecutor as _,
    FunctionExecutorExt as _, FunctionFailure, FunctionManager as _, FunctionSpec, Gateway, InvocationId,
    InvocationStore as _, InvokeRequest, InvokeResponse, KeepPayloads, LogQuery, LogSink, MemorySecrets, PayloadFormat,
    Precondition, RecordMode, Result, RetryPolicy, Secret, SecretBinding, SecretChain, Violation,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_secrets::{Secrets, SecretsOptions};
use function_gateway_testkit::{Engine, Fault, Handler, Op, Readiness, ScriptedDriver};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use metrics_util::debugging::{DebuggingRecorder, Snapshotter};
use serde_json::{Value, json};
use tracing_subscriber::fmt::format::FmtSpan;

use common::{cx, function, name, records, scripted, sh, soon, store};

/// With what JSON and `Debug` escape in its middle, so that its ends are found in whatever form it shows.
const CANARY: &str = "zQ7%-\"canary\"\n\té-Kx9%";
const ENDS: [&str; 2] = ["zQ7", "Kx9"];

/// What was written by `tracing`, from TRACE on, spans with their fields included; and the metrics.
struct Outside {
    log: Arc<Mutex<Vec<u8>>>,
    metrics: Snapshotter,
}

fn outside() -> &'static Outside {
    static OUTSIDE: OnceLock<Outside> = OnceLock::new();
    OUTSIDE.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&log);
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(move || Writer(Arc::clone(&writer)))
            .init();
        let recorder = DebuggingRecorder::new();
        let metrics = recorder.snapshotter();
        recorder.install().unwrap();
        Outside { log, metrics }
    })
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[track_caller]
fn assert_clean(what: &str, text: &str) {
    for end in ENDS {
        assert!(!text.contains(end), "{what} shows the secret: {text}");
    }
}

#[track_caller]
fn assert_debug_clean(what: &str, value: &dyn Debug) {
    assert_clean(what, &format!("{value:?} {value:#?}"));
}

#[track_caller]
fn assert_error_clean(what: &str, error: &Error) {
    assert_clean(what, &error.to_string());
    assert_debug_clean(what, error);
    assert_clean(what, error.detail().unwrap_or_default());
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = source {
        assert_clean(what, &format!("{error} {error:?}"));
        source = error.source();
    }
}

struct Setup {
    gateway: Gateway,
    store: Arc<MemoryStore>,
    engine: Engine,
    provider: Arc<MemorySecrets>,
    others: Vec<Box<dyn Debug>>,
}

/// A process whose drivers hand secrets over at each call.
async fn setup() -> Setup {
    outside();
    let (engine, store) = (Engine::new(), store());
    let provider = Arc::new(MemorySecrets::new());
    provider.set("acme".parse().unwrap(), "token".parse().unwrap(), Secret::new(CANARY));
    let chain = SecretChain::new(vec![Arc::clone(&provider) as _]);
    let secrets = Secrets::new(chain.clone(), SecretsOptions::default());
    let local = Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap());
    let scripted = Arc::new(ScriptedDriver::on(&engine));
    let gateway = Gateway::builder()
        .store(Arc::clone(&store))
        .driver("local".parse().unwrap(), Arc::clone(&local) as _)
        .driver("scripted".parse().unwrap(), Arc::clone(&scripted) as _)
        .middleware_for_all(Arc::new(secrets.clone()))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    let others: Vec<Box<dyn Debug>> = vec![Box::new((chain, secrets, local, scripted))];
    Setup { gateway, store, engine, provider, others }
}

/// A process without the middleware, whose driver hands secrets over at deployment.
async fn setup_at_deploy() -> Setup {
    let setup = setup().await;
    setup.another_process_at_deploy().await
}

impl Setup {
    /// A new process over the same store and engine.
    async fn another_process_at_deploy(self) -> Self {
        let driver = ScriptedDriver::on(&self.engine).with_capabilities(|caps| {
            caps.secrets_per_call = false;
            caps.secrets_at_deploy = true;
        });
        let gateway = Gateway::builder()
            .store(Arc::clone(&self.store))
            .driver("scripted".parse().unwrap(), Arc::new(driver))
            .secrets(Arc::clone(&self.provider) as _)
            .without_reconciler()
            .build()
            .await
            .unwrap();
        Self { gateway, ..self }
    }

    /// Looks wherever a secret may have been left.
    async fn assert_clean(&self) {
        for record in records(&self.gateway).await {
            assert_clean("the record", &serde_json::to_string_pretty(&*record).unwrap());
            assert_debug_clean("the record", &record);
            for kept in [&record.payload, &record.result, &record.logs].into_iter().flatten() {
                assert_clean("what is kept", &String::from_utf8_lossy(&kept.bytes));
            }
        }
        for function in self.gateway.list(&cx(), &Default::default(), &Default::default()).await.unwrap().items {
            assert_clean("the function", &serde_json::to_string(&*function).unwrap());
            assert_debug_clean("the function", &function);
        }
        for event in self.gateway.audit_events(&cx(), &Default::default(), &Default::default()).await.unwrap().items {
            assert_clean("the audit event", &serde_json::to_string(&*event).unwrap());
            assert_debug_clean("the audit event", &event);
        }
        for value in [&self.gateway as &dyn Debug, &self.store, &self.engine, &self.provider, &self.others] {
            assert_debug_clean("Debug", value);
        }
        let log = String::from_utf8_lossy(&outside().log.lock().unwrap()).into_owned();
        assert_clean("tracing", &log);
        assert_debug_clean("the metrics", &outside().metrics.snapshot().into_vec());
    }

    async fn create(&self, spec: FunctionSpec) {
        self.gateway.create(&cx(), &name("f"), spec).await.unwrap();
    }

    async fn delete(&self) {
        self.gateway.delete(&cx(), &name("f"), Precondition::none()).await.unwrap();
    }

    /// A call whose payload and headers hold the secret too. Gives the body as it came, its error included.
    async fn call(&self) -> Result<(InvokeResponse, Bytes, Option<Error>)> {
        let request = InvokeRequest::json(&json!({"token": CANARY}))
            .unwrap()
            .with_path("/a")
            .with_query("token=zQ7")
            .with_header("x-token".parse().unwrap(), "zQ7-Kx9".parse().unwrap());
        let mut response = soon(self.gateway.invoke(&cx(), &function("f"), request)).await?;
        assert_debug_clean("the answer's Debug", &response);
        let (mut read, mut error) = (Vec::new(), None);
        let mut body = std::mem::take(&mut response.body).into_stream();
        while let Some(chunk) = soon(body.next()).await {
            match chunk {
                Ok(chunk) => read.extend_from_slice(&chunk),
                Err(broken) => error = Some(broken),
            }
        }
        Ok((response, read.into(), error))
    }
}

/// Each way to record and to answer.
fn ways() -> impl Iterator<Item = (RecordMode, bool)> {
    [RecordMode::Buffered, RecordMode::Durable].into_iter().flat_map(|mode| [(mode, false), (mode, true)])
}

fn kept(mut spec: FunctionSpec, (mode, streaming): (RecordMode, bool)) -> FunctionSpec {
    spec.record.mode = Some(mode);
    spec.record.payloads = Some(KeepPayloads::Always);
    spec.streaming = streaming;
    spec
}

fn in_env(spec: FunctionSpec) -> FunctionSpec {
    spec.with_secret(SecretBinding::env("token".parse().unwrap(), "TOKEN"))
}

fn in_envelope(mut spec: FunctionSpec) -> FunctionSpec {
    spec.format = PayloadFormat::Envelope;
    spec.with_secret(SecretBinding::envelope("token".parse().unwrap(), "token"))
}

#[tokio::test]
async fn a_process_that_echoes_its_secret() {
    let setup = setup().await;
    for way in ways() {
        for end in ["exit 0", "exit 3", "kill -TERM $$"] {
            setup
                .create(kept(in_env(sh(&format!("printf %s \"$TOKEN\"; printf %s \"$TOKEN\" >&2; {end}"))), way))
                .await;
            let (response, body, error) = setup.call().await.unwrap();
            assert_eq!(body, CANARY, "{way:?}, {end}");
            assert_eq!(response.outcome.is_success() && error.is_none(), end == "exit 0", "{way:?}, {end}");
            error.iter().for_each(|error| assert_error_clean("the body's end", error));
            assert!(records(&setup.gateway).await[0].logs.is_some());
            setup.assert_clean().await;
            setup.delete().await;
        }
    }
}

/// Nothing of it gets into the files of a database, where the log of writes would keep it for long.
#[tokio::test]
async fn a_database_of_a_gateway_whose_functions_echo_their_secret() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqlStore::open(&format!("sqlite:{}", folder.path().join("gateway.db").display())).await.unwrap();
    let provider = MemorySecrets::new();
    provider.set("acme".parse().unwrap(), "token".parse().unwrap(), Secret::new(CANARY));
    let secrets = Secrets::new(SecretChain::new(vec![Arc::new(provider) as _]), SecretsOptions::default());
    let gateway = Gateway::builder()
        .store(Arc::new(store.clone()))
        .driver("local".parse().unwrap(), Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap()))
        .middleware_for_all(Arc::new(secrets))
        .build()
        .await
        .unwrap();
    let script = "printf %s \"$TOKEN\"; printf %s \"$TOKEN\" >&2; exit 3";
    for (number, way) in ways().enumerate() {
        let name = name(&format!("f{number}"));
        gateway.create(&cx(), &name, kept(in_env(sh(script)), way)).await.unwrap();
        let request = InvokeRequest::new(CANARY).with_query("token=zQ7");
        let answer = gateway.invoke(&cx(), &name.into(), request).await.unwrap();
        match answer.body.collect(1000).await {
            Ok(body) => assert_eq!(body, CANARY),
            // A stream tells at its end how the process ended.
            Err(error) => assert_error_clean("the body's end", &error),
        }
    }
    store.flush().await.unwrap();
    let kept = records(&gateway).await;
    assert!(kept.len() == 4 && kept.iter().all(|record| record.logs.is_some() && record.result.is_some()));
    gateway.shutdown(Duration::from_secs(10)).await.unwrap();
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files {
        assert_clean(&file.display().to_string(), &String::from_utf8_lossy(&std::fs::read(&file).unwrap()));
    }
}

#[tokio::test]
async fn a_process_whose_log_is_followed_while_it_runs() {
    let setup = setup().await;
    for way in ways().filter(|(_, streaming)| *streaming) {
        setup.create(kept(in_env(sh("printf '%s, a line\\n' \"$TOKEN\" >&2; cat")), way)).await;
        // The process runs for as long as its payload goes on.
        let (asked, was_asked) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        let payload = stream::once(async move {
            asked.send(()).unwrap();
            ended.await.unwrap();
            Ok(Bytes::from_static(b"done"))
        });
        let request = InvokeRequest::new(Body::from_stream(payload));
        let (gateway, id) = (setup.gateway.clone(), InvocationId::generate());
        let call = tokio::spawn(async move {
            gateway.invoke(&cx().with_invocation_id(id), &function("f"), request).await?.body.collect(100).await
        });
        soon(was_asked).await.unwrap();
        let mut log = setup.gateway.execution_logs(&cx(), id, true).await.unwrap();
        let mut logged = Vec::new();
        while !logged.ends_with(b"\n") {
            logged.extend_from_slice(&soon(log.next()).await.unwrap().unwrap());
        }
        assert_eq!(String::from_utf8_lossy(&logged), "[redacted], a line\n");
        end.send(()).unwrap();
        assert!(soon(log.next()).await.is_none());
        assert_eq!(soon(call).await.unwrap().unwrap(), "done");
        setup.assert_clean().await;
        setup.delete().await;
    }
}

#[tokio::test]
async fn a_process_that_logs_its_whole_envelope() {
    let setup = setup().await;
    for mode in [RecordMode::Buffered, RecordMode::Durable] {
        // In the log the value stands as JSON escapes it.
        let script = "cat >&2; echo '{\"context\": {\"error\": {\"message\": \"no\"}}}'";
        setup.create(kept(in_envelope(sh(script)), (mode, false))).await;
        let (response, _, _) = setup.call().await.unwrap();
        assert!(!response.outcome.is_success());
        let logs = records(&setup.gateway).await[0].logs.clone().unwrap();
        assert!(String::from_utf8_lossy(&logs.bytes).contains(function_gateway::REDACTED), "{logs:?}");
        setup.assert_clean().await;
        setup.delete().await;
    }
}

/// The secret as the function knows it, by whichever way it came.
async fn secret_of(request: DriverRequest) -> String {
    if let [secret, ..] = &*request.secrets {
        return secret.secret.expose_str().unwrap().to_owned();
    }
    let envelope: Value = serde_json::from_slice(&request.body.collect(1 << 20).await.unwrap()).unwrap();
    envelope["context"]["secrets"]["token"].as_str().unwrap().to_owned()
}

fn halves(secret: &str) -> [String; 2] {
    let middle = secret.char_indices().nth(secret.chars().count() / 2).unwrap().0;
    let (one, two) = secret.split_at(middle);
    [one.to_owned(), two.to_owned()]
}

fn telling_error(kind: ErrorKind, secret: &str) -> Error {
    Error::new(kind, format!("the token {secret} is wrong"))
        .with_context("said", secret)
        .with_detail(secret)
        .with_source(io::Error::other(secret.to_owned()))
        .with_violations(vec![Violation::new(format!("/{secret}"), secret).with_schema_pointer(secret)])
}

/// What a function does with its secret.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Leak {
    Answers,
    Rejects,
    Fails,
    Errors,
    AnswersInPieces,
    BreaksOff,
}

impl Leak {
    const ALL: [Self; 6] =
        [Self::Answers, Self::Rejects, Self::Fails, Self::Errors, Self::AnswersInPieces, Self::BreaksOff];

    fn handler(self) -> Handler {
        Handler::new(move |_, request| self.answer(request))
    }

    async fn answer(self, request: DriverRequest) -> Result<InvokeResponse> {
        let logs = request.logs.clone();
        let is_enveloped = request.revision.spec.format == PayloadFormat::Envelope;
        let secret = secret_of(request).await;
        halves(&secret).iter().for_each(|half| logs.write(half.as_bytes()));
        logs.write(json!({"token": secret}).to_string().as_bytes());
        let said = if is_enveloped {
            let context = json!({"logs": {"stdout": [secret], "stderr": [secret]}});
            json!({"payload": secret, "context": context}).to_string()
        } else {
            secret.clone()
        };
        let pieces = |end: Option<Error>| {
            let pieces = halves(&said).map(|half| Ok(Bytes::from(half)));
            Body::from_stream(stream::iter(pieces.into_iter().chain(end.map(Err)).collect::<Vec<_>>()))
        };
        let with_header = |response: InvokeResponse| {
            let told = json!(secret).to_string().escape_default().to_string();
            response.with_header("x-token".parse().unwrap(), told.parse().unwrap())
        };
        Ok(match self {
            Self::Answers => with_header(InvokeResponse::new(StatusCode::OK, said)),
            Self::Rejects => with_header(InvokeResponse::new(StatusCode::BAD_REQUEST, said)),
            Self::Fails => {
                let mut failure = FunctionFailure::new(format!("the token {secret} is wrong"));
                failure.kind = Some(secret);
                InvokeResponse::failed(failure, said)
            }
            Self::Errors => return Err(telling_error(ErrorKind::Engine, &secret)),
            Self::AnswersInPieces => InvokeResponse::new(StatusCode::OK, pieces(None)),
            Self::BreaksOff => {
                let end = telling_error(ErrorKind::FunctionBroken, &secret);
                InvokeResponse::new(StatusCode::OK, pieces(Some(end)))
            }
        })
    }
}

async fn every_leak(setup: &Setup, delivered: fn(FunctionSpec) -> FunctionSpec, ways: &[(RecordMode, bool)]) {
    for &way in ways {
        for leak in Leak::ALL {
            setup.engine.on_invoke(leak.handler());
            let mut spec = kept(delivered(scripted("scripted")), way);
            spec.retry = (!spec.streaming).then(|| RetryPolicy::attempts(2));
            setup.create(spec).await;
            match setup.call().await {
                Ok((_, body, error)) => {
                    assert!(String::from_utf8(body.to_vec()).unwrap().contains("zQ7"), "{leak:?} {way:?}");
                    assert_eq!(error.is_some(), leak == Leak::BreaksOff, "{leak:?} {way:?}");
                    error.iter().for_each(|error| assert_error_clean("the body's end", error));
                }
                Err(error) => {
                    assert!(matches!(leak, Leak::Errors | Leak::BreaksOff), "{leak:?} {way:?}: {error:?}");
                    assert_error_clean("the error", &error);
                }
            }
            let record = Arc::clone(&records(&setup.gateway).await[0]);
            assert!(record.logs.is_some() && record.payload.is_some(), "{leak:?} {way:?}");
            if !way.1 {
                let typed = setup.gateway.invoke_json::<_, u32>(&cx(), &function("f"), &1).await.unwrap_err();
                assert_error_clean("the typed call's error", &typed);
            }
            setup.assert_clean().await;
            setup.delete().await;
        }
    }
    let log = String::from_utf8_lossy(&outside().log.lock().unwrap()).into_owned();
    assert!(
        log.contains("faas.invoke") && log.contains("[redacted]"),
        "what is looked through is not what was written"
    );
}

#[tokio::test]
async fn every_way_to_show_a_secret_of_the_call() {
    every_leak(&setup().await, in_env, &ways().collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn every_way_to_show_a_secret_of_the_envelope() {
    let setup = setup().await;
    every_leak(&setup, in_envelope, &[(RecordMode::Buffered, false), (RecordMode::Durable, false)]).await;
}

#[tokio::test]
async fn every_way_to_show_a_secret_of_the_deployment() {
    every_leak(&setup_at_deploy().await, in_env, &ways().collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_value_that_a_limit_cuts_is_not_kept_in_part() {
    let setup = setup().await;
    setup.engine.on_invoke(Handler::new(async |_, request: DriverRequest| {
        let logs = request.logs.clone();
        let said = format!("12345{}", secret_of(request).await);
        logs.write(said.as_bytes());
        Ok(InvokeResponse::new(StatusCode::OK, said))
    }));
    for way in ways() {
        for limit in 5..40 {
            let mut spec = kept(in_env(scripted("scripted")), way);
            spec.record.max_payload_bytes = Some(limit);
            spec.record.max_log_bytes = Some(limit);
            setup.create(spec).await;
            setup.call().await.unwrap();
            let record = Arc::clone(&records(&setup.gateway).await[0]);
            let text = |kept: &function_gateway::KeptBytes| String::from_utf8(kept.bytes.to_vec()).unwrap();
            for kept in [record.result.as_ref().unwrap(), record.logs.as_ref().unwrap()] {
                let expected = "12345[redacted]";
                assert!(expected.starts_with(&text(kept)), "{way:?}, {limit}: {kept:?}");
                assert_eq!(kept.len, Some(5 + CANARY.len() as u64));
            }
            assert!(!text(record.payload.as_ref().unwrap()).contains('z'), "{way:?}, {limit}: {record:?}");
            setup.delete().await;
        }
    }
}

#[tokio::test]
async fn a_deployment_that_fails_does_not_tell() {
    let setup = setup_at_deploy().await;
    setup.engine.inject(Op::Deploy, Fault::error(telling_error(ErrorKind::Engine, CANARY)).times(1));
    let failed = setup.gateway.create(&cx(), &name("f"), in_env(scripted("scripted"))).await.unwrap();
    assert!(failed.status.phase == function_gateway::Phase::Failed, "{failed:?}");
    setup.assert_clean().await;
    setup.delete().await;

    setup.engine.set_readiness(Readiness::Failed(format!("it crashes: bad token {CANARY}")));
    setup.create(in_env(scripted("scripted"))).await;
    setup.assert_clean().await;
    setup.engine.inject(Op::Remove, Fault::error(telling_error(ErrorKind::Unavailable, CANARY)).times(1));
    let soon = cx().with_deadline(function_gateway::Deadline::after(Duration::from_millis(50)));
    let left = setup.gateway.delete(&soon, &name("f"), Precondition::none()).await.unwrap();
    assert!(left.is_some());
    setup.assert_clean().await;
}

#[tokio::test]
async fn a_process_that_has_not_deployed_a_function_knows_its_secrets_too() {
    let setup = setup_at_deploy().await;
    setup.create(kept(in_env(scripted("scripted")), (RecordMode::Buffered, false))).await;
    let setup = setup.another_process_at_deploy().await;
    setup.engine.on_invoke(Leak::Errors.handler());
    assert_error_clean("the error", &setup.call().await.unwrap_err());
    setup.assert_clean().await;
}

#[tokio::test]
async fn what_was_rotated_in_the_provider_alone_is_still_known_where_it_was_deployed() {
    let setup = setup_at_deploy().await;
    setup.create(kept(in_env(scripted("scripted")), (RecordMode::Buffered, false))).await;
    setup.provider.set("acme".parse().unwrap(), "token".parse().unwrap(), Secret::new("another one"));
    setup.engine.on_invoke(Leak::Errors.handler());
    assert_error_clean("the error", &setup.call().await.unwrap_err());
    setup.gateway.rotate_secrets(&cx(), &name("f"), Precondition::none()).await.unwrap();
    setup.assert_clean().await;
}

#[tokio::test]
async fn the_functions_own_log_does_not_tell_what_it_was_deployed_with() {
    let setup = setup_at_deploy().await;
    // A log is given line by line, so a value of several lines would not be found in it.
    setup.provider.set("acme".parse().unwrap(), "token".parse().unwrap(), Secret::new("zQ7-Kx9"));
    setup.create(in_env(scripted("scripted"))).await;
    setup.engine.on_invoke(Handler::new(async |_, request: DriverRequest| {
        request.logs.clone().write(format!("the token is {}\n", secret_of(request).await).as_bytes());
        Ok(InvokeResponse::new(StatusCode::OK, ""))
    }));
    // A call that is none of the gateway's, so that nothing is redacted on its way into the log.
    let target = setup.engine.targets().remove(0);
    let revision = setup.engine.revision(&target).unwrap();
    let request = DriverRequest::new(revision, "", LogSink::detached(1000));
    ScriptedDriver::on(&setup.engine).invoke(&cx(), &target, request).await.unwrap();
    let lines = setup.gateway.logs(&cx(), &name("f"), LogQuery::default()).await.unwrap();
    let lines: Vec<_> = lines.map(|line| line.unwrap().text).collect().await;
    assert_eq!(lines, ["the token is [redacted]"]);
}
