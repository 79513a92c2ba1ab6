//! What bad input gets: an error that names what is wrong, where, and what would be right; and nothing is stored half.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use function_gateway::{
    AccessManager as _, AuditFilter, Body, Cursor, CursorKind, Deadline, Delivery, DriverName, Error, ErrorKind,
    Function, FunctionExecutor as _, FunctionManager as _, FunctionName, FunctionRef, FunctionSpec, Gateway,
    Generation, InvalidName, InvocationId, InvocationState, InvokeRequest, LogQuery, MemorySecrets, PageRequest,
    PayloadFormat, Phase, Precondition, PrincipalId, ProcessWorkload, RecordFilter, Retry, Secret, SecretBinding,
    SecretChain, SecretRef, TenantId,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_secrets::{Secrets, SecretsOptions};
use function_gateway_testkit::{Readiness, ScriptedDriver};
use function_gateway_validation::Validation;
use futures_util::stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

use crate::common::{cx, cx_of, function, name, records, scripted, sh, soon, store, text};

/// A gateway with everything, whose tenant has the secrets `key`, `binary` and `nul`.
async fn gateway() -> Gateway {
    let vault = MemorySecrets::new();
    let tenant: TenantId = cx().tenant().clone();
    vault.set(tenant.clone(), "key".parse().unwrap(), Secret::new("value"));
    vault.set(tenant.clone(), "binary".parse().unwrap(), Secret::new(vec![0xff, 0xfe]));
    vault.set(tenant, "nul".parse().unwrap(), Secret::new(b"a\0b".to_vec()));
    let secrets = SecretChain::new(vec![Arc::new(vault)]);
    let (slow, broken) = (ScriptedDriver::new(), ScriptedDriver::new());
    slow.engine().set_readiness(Readiness::Never);
    broken.engine().set_readiness(Readiness::Failed("the image can't be pulled".into()));
    Gateway::builder()
        .store(store())
        .driver("local".parse().unwrap(), Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap()))
        .driver("slow".parse().unwrap(), Arc::new(slow))
        .driver("broken".parse().unwrap(), Arc::new(broken))
        .middleware_for_all(Arc::new(Validation::default()))
        .middleware_for_all(Arc::new(Secrets::new(secrets, SecretsOptions::new())))
        .build()
        .await
        .unwrap()
}

/// What somebody gets to read who did something wrong.
struct Expected {
    kind: ErrorKind,
    /// The place in the specification or the payload, as a JSON Pointer.
    pointer: Option<&'static str>,
    /// What message, reason or context say.
    says: &'static [&'static str],
    delivery: Delivery,
    retry: Retry,
}

impl Expected {
    /// An error that nothing was done for, and that stays as long as nothing is changed.
    fn new(kind: ErrorKind, says: &'static [&'static str]) -> Self {
        Self { kind, pointer: None, says, delivery: Delivery::NotSent, retry: Retry::Never }
    }

    fn at(kind: ErrorKind, pointer: &'static str, says: &'static [&'static str]) -> Self {
        Self { pointer: Some(pointer), ..Self::new(kind, says) }
    }

    fn executed(mut self) -> Self {
        self.delivery = Delivery::Executed;
        self
    }

    fn transient(mut self) -> Self {
        self.retry = Retry::Transient;
        self
    }

    #[track_caller]
    fn assert(&self, case: &str, error: &Error) {
        assert_eq!(error.kind(), self.kind, "{case}: {error:?}");
        assert_eq!((error.delivery(), error.retry()), (self.delivery, self.retry), "{case}: {error:?}");
        let pointers: Vec<_> = error.violations().iter().map(|violation| violation.pointer.as_str()).collect();
        assert_eq!(pointers, self.pointer.into_iter().collect::<Vec<_>>(), "{case}: {error:?}");
        let shown = error.to_string();
        for part in self.says {
            assert!(shown.contains(part), "{case}: {shown:?} does not say {part:?}");
        }
    }
}

/// What is said of a text that is no name.
fn no_name<N: FromStr<Err = InvalidName>>(text: &str) -> Error {
    text.parse::<N>().map(drop).expect_err(text).into()
}

#[test]
fn invalid_names() {
    let long = "x".repeat(64);
    let from_bytes = String::from_utf8_lossy(b"caf\xe9");
    let rows: [(&str, Error, &'static [&'static str]); 17] = [
        ("no name", no_name::<FunctionName>(""), &["function name", "empty"]),
        ("upper case", no_name::<FunctionName>("Resize"), &["\"Resize\"", "'R'", "a-z, 0-9 and '-'"]),
        ("a dash first", no_name::<FunctionName>("-a"), &["\"-a\"", "start and end"]),
        ("a dash last", no_name::<FunctionName>("a-"), &["\"a-\"", "start and end"]),
        ("too long", no_name::<FunctionName>(&long), &["64 bytes", "at most 63"]),
        ("not ASCII", no_name::<FunctionName>("größe"), &["'ö'", "a-z"]),
        ("bytes that are not UTF-8", no_name::<FunctionName>(&from_bytes), &["\"caf\u{fffd}\"", "'\u{fffd}'", "a-z"]),
        ("a NUL byte", no_name::<FunctionName>("a\0"), &["'\\0'", "a-z"]),
        ("a driver", no_name::<DriverName>("Local"), &["driver name", "'L'", "a-z"]),
        ("a way out of a folder, as a tenant", no_name::<TenantId>("a/b"), &["tenant", "'/'", "letters, digits"]),
        ("a way out of a folder, as a secret", no_name::<SecretRef>(".."), &["secret name", "start with a letter"]),
        ("a principal with a line break", no_name::<PrincipalId>("a\nb"), &["principal", "control character", "'\\n'"]),
        ("an invocation's id", no_name::<InvocationId>("77"), &["invocation id", "\"77\"", "length"]),
        ("a generation that is no number", no_name::<FunctionRef>("a@x"), &["\"a@x\"", "whole number from 1"]),
        ("a generation from before the first", no_name::<FunctionRef>("a@0"), &["\"a@0\"", "whole number from 1"]),
        ("a reference to no function", no_name::<FunctionRef>("@1"), &["function name", "empty"]),
        ("an alias", no_name::<FunctionRef>("a:B"), &["'B'", "a-z"]),
    ];
    for (case, error, says) in rows {
        Expected::new(ErrorKind::InvalidArgument, says).assert(case, &error);
    }
}

#[tokio::test]
async fn cursors_that_no_list_gave() {
    let gateway = gateway().await;
    gateway.create(&cx(), &name("f"), cat()).await.unwrap();
    let not_utf8 = [&[1, b'f'][..], b"\xff\xfe"].concat();
    let rows = [
        ("no cursor at all", Cursor::from_text("next, please")),
        ("not ASCII", Cursor::from_text("größe")),
        ("nothing", Cursor::from_text("")),
        ("too long", Cursor::after(CursorKind::Functions, &"f".repeat(2000))),
        ("a key that is not UTF-8", Cursor::from_text(URL_SAFE_NO_PAD.encode(not_utf8))),
        ("another version", Cursor::from_text(URL_SAFE_NO_PAD.encode([2, b'f', b'f']))),
        ("another list's", Cursor::after(CursorKind::Scan, "acme/f")),
        ("a key of no revision", Cursor::after(CursorKind::Revisions, "first")),
        ("a key of no record", Cursor::after(CursorKind::Records, "first")),
        ("a key of no API key", Cursor::after(CursorKind::ApiKeys, "first")),
        ("a key of no audit event", Cursor::after(CursorKind::Audit, "first")),
    ];
    let refused = Expected::new(ErrorKind::InvalidArgument, &["cursor", "this list", "start again"]);
    for (case, cursor) in rows {
        let page = PageRequest::first(10).after(cursor);
        let lists = [
            gateway.list(&cx(), &Default::default(), &page).await.map(drop),
            gateway.revisions(&cx(), &name("f"), &page).await.map(drop),
            gateway.executions(&cx(), &RecordFilter::default(), &page).await.map(drop),
            gateway.api_keys(&cx(), &page).await.map(drop),
            gateway.audit_events(&cx(), &AuditFilter::all(), &page).await.map(drop),
        ];
        for list in lists {
            refused.assert(case, &list.expect_err(case));
        }
    }
}

/// Files that can't be run, in a folder that goes with it.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new() -> Self {
        let programs = Self(tempfile::tempdir().unwrap());
        fs::write(programs.path("data.txt"), "no program").unwrap();
        fs::write(programs.path("script.sh"), "#!/bin/sh\ncat\n").unwrap();
        fs::set_permissions(programs.path("script.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        programs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn function(&self, name: &str) -> FunctionSpec {
        let program = ProcessWorkload::new(self.path(name).to_str().unwrap());
        FunctionSpec::new("local".parse().unwrap(), program).with_env("PATH", "/usr/bin:/bin")
    }
}

fn cat() -> FunctionSpec {
    sh("exec cat").with_env("PATH", "/usr/bin:/bin")
}

/// A specification out of JSON, as a REST API takes it.
fn from_json(mut change: serde_json::Value) -> FunctionSpec {
    let mut spec = serde_json::to_value(cat()).unwrap();
    spec.as_object_mut().unwrap().append(change.as_object_mut().unwrap());
    serde_json::from_value(spec).unwrap()
}

/// Specifications that nobody takes.
fn refused_specs(programs: &Programs) -> Vec<(&'static str, FunctionSpec, Expected)> {
    let invalid = |pointer, says| Expected::at(ErrorKind::InvalidSpec, pointer, says);
    let mut elsewhere = cat();
    elsewhere.driver = "nowhere".parse().unwrap();
    let mut memory = cat();
    memory.scale = serde_json::from_value(json!({"min": 2})).unwrap();
    let mut queue = cat();
    queue.limits.max_queued = Some(3);
    vec![
        ("unknown driver", elsewhere, invalid("/driver", &["nowhere", "local"])),
        ("unknown middleware", cat().with_middleware("cache", json!({})), invalid("/middleware/0/name", &["cache"])),
        (
            "a setting that does not exist",
            from_json(json!({"timeoutz": {}})),
            invalid("/timeoutz", &["no such setting"]),
        ),
        ("a setting that nobody honours", memory, invalid("/scale/min", &["local-process", "can't honour"])),
        ("a setting that needs another", queue, invalid("/limits/max_in_flight", &["is needed"])),
        (
            "an annotation of nobody",
            cat().with_annotation("colour", "red"),
            invalid("/annotations/colour", &["no such"]),
        ),
        (
            "an invalid schema",
            cat().with_input_schema(json!({"type": "objekt"})),
            invalid("/input_schema/type", &["objekt"]),
        ),
        (
            "a schema that is fetched",
            cat().with_output_schema(json!({"$ref": "https://example.com/schema.json"})),
            invalid("/output_schema/$ref", &["example.com"]),
        ),
        ("program not found", programs.function("missing"), invalid("/run/process/command", &["no file", "missing"])),
        ("program not executable", programs.function("data.txt"), invalid("/run/process/command", &["not executable"])),
        (
            "a variable that is the driver's",
            cat().with_env("FUNCTION_NAME", "x"),
            invalid("/env/FUNCTION_NAME", &["driver sets"]),
        ),
        (
            "a secret in the envelope of a raw function",
            cat().with_secret(SecretBinding::envelope("key".parse().unwrap(), "key")),
            invalid("/secrets/0/deliver/envelope", &["format: envelope"]),
        ),
    ]
}

#[tokio::test]
async fn a_specification_that_is_refused_leaves_nothing_behind() {
    let (gateway, programs) = (gateway().await, Programs::new());
    for (case, spec, expected) in refused_specs(&programs) {
        let error = gateway.create(&cx(), &name("f"), spec.clone()).await.unwrap_err();
        expected.assert(case, &error);
        let violations = gateway.validate(&cx(), &spec).await.unwrap();
        assert_eq!(violations, error.violations(), "{case}");
        let missing = gateway.get(&cx(), &name("f")).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound, "{case}");
    }
    let all = gateway.list(&cx(), &Default::default(), &PageRequest::default()).await.unwrap();
    assert!(all.items.is_empty());
    let created = gateway.create(&cx(), &name("f"), cat()).await.unwrap();
    assert_eq!((created.status.phase, created.generation.get()), (Phase::Ready, 1));
    assert_eq!(generations(&gateway).await, [1]);
}

/// The generations of `f` of which there is a revision, newest first.
async fn generations(gateway: &Gateway) -> Vec<u64> {
    let page = gateway.revisions(&cx(), &name("f"), &PageRequest::default()).await.unwrap();
    page.items.iter().map(|revision| revision.generation.get()).collect()
}

#[tokio::test]
async fn an_update_that_is_refused_changes_nothing() {
    let (gateway, programs) = (gateway().await, Programs::new());
    let before = gateway.create(&cx(), &name("f"), cat()).await.unwrap();
    for (case, spec, expected) in refused_specs(&programs) {
        let error = gateway.update(&cx(), &name("f"), spec, Precondition::none()).await.unwrap_err();
        expected.assert(case, &error);
        assert_eq!(*gateway.get(&cx(), &name("f")).await.unwrap(), *before, "{case}");
    }
    assert_eq!(generations(&gateway).await, [1]);
    let answer = gateway.invoke(&cx(), &function("f"), InvokeRequest::new("still there")).await.unwrap();
    assert_eq!(text(answer).await, "still there");
}

#[tokio::test]
async fn a_function_that_exists_or_was_changed_meanwhile_is_left_alone() {
    let gateway = gateway().await;
    let before = gateway.create(&cx(), &name("f"), cat()).await.unwrap();
    let again = gateway.create(&cx(), &name("f"), cat()).await.unwrap_err();
    Expected::new(ErrorKind::AlreadyExists, &["f"]).assert("created twice", &again);
    let stale = Precondition::version(serde_json::from_value(json!(77)).unwrap());
    let late = gateway.update(&cx(), &name("f"), sh("true"), stale).await.unwrap_err();
    Expected::new(ErrorKind::PreconditionFailed, &["version", "read it"]).assert("a stale version", &late);
    assert_eq!(*gateway.get(&cx(), &name("f")).await.unwrap(), *before);
}

/// A call that goes wrong: to which function, what is sent, and what it gets. `Some` names the code in its record; `None`
/// is a call that was refused at the door, of which there is none.
type Call = (&'static str, FunctionSpec, InvokeRequest, Expected, Option<&'static str>);

fn wrong_calls() -> Vec<Call> {
    let named = json!({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]});
    let typed = cat().with_input_schema(named.clone());
    let mut small = cat();
    small.limits.max_request_bytes = Some(10);
    let mut terse = sh("echo 12345678901").with_env("PATH", "/usr/bin:/bin");
    terse.limits.max_response_bytes = Some(10);
    let mut envelope = cat();
    envelope.format = PayloadFormat::Envelope;
    let binary = SecretBinding::envelope("binary".parse().unwrap(), "field");
    let mut mute = sh("printf '{\"payload\": \"\\377\"}'");
    mute.format = PayloadFormat::Envelope;
    let mut chatty = sh("echo done");
    chatty.format = PayloadFormat::Envelope;
    let chunks = ["12345", "678901"].map(|chunk| Ok(Bytes::from(chunk)));
    let chunks = Body::from_stream(stream::iter(chunks));
    let unlisted = InvokeRequest::new("{}").with_secrets(["key".parse().unwrap()]);
    let not_utf8 = || InvokeRequest::new(Bytes::from_static(b"{\"name\": \"\xff\xfe\"}"));
    let input = |pointer, says| Expected::at(ErrorKind::InvalidInput, pointer, says);
    vec![
        (
            "oversized payload",
            small.clone(),
            InvokeRequest::new("12345678901"),
            Expected::new(ErrorKind::PayloadTooLarge, &["10 bytes", "limit_bytes: 10"]),
            Some("payload_too_large"),
        ),
        (
            "oversized payload whose size nobody knows before",
            small,
            InvokeRequest::new(chunks),
            Expected::new(ErrorKind::PayloadTooLarge, &["10 bytes", "limit_bytes: 10"]),
            Some("payload_too_large"),
        ),
        (
            "input that breaks the schema",
            typed.clone(),
            InvokeRequest::json(&json!({"name": 7})).unwrap(),
            input("/name", &["string"]),
            Some("invalid_input"),
        ),
        (
            "input that is no JSON",
            typed.clone(),
            InvokeRequest::new("name=Ada"),
            Expected::new(ErrorKind::InvalidInput, &["JSON"]),
            Some("invalid_input"),
        ),
        (
            "input that is not UTF-8, against a schema",
            typed,
            not_utf8(),
            Expected::new(ErrorKind::InvalidInput, &["UTF-8 after the first 10 bytes"]),
            Some("invalid_input"),
        ),
        (
            "input that is not UTF-8, for an envelope",
            envelope.clone(),
            not_utf8(),
            Expected::new(ErrorKind::InvalidInput, &["envelope", "UTF-8 after the first 10 bytes"]),
            Some("invalid_input"),
        ),
        (
            "a secret that is not UTF-8, for an envelope",
            envelope.with_secret(binary),
            InvokeRequest::new("{}"),
            Expected::new(ErrorKind::Misconfigured, &["UTF-8", "secret: binary", "field: field"]),
            Some("misconfigured"),
        ),
        (
            "a secret with a NUL byte, for a variable",
            cat().with_secret(SecretBinding::env("nul".parse().unwrap(), "KEY")),
            InvokeRequest::new(""),
            Expected::new(ErrorKind::Misconfigured, &["NUL byte", "variable", "secret: nul"]),
            Some("misconfigured"),
        ),
        (
            "a secret that is missing",
            cat().with_secret(SecretBinding::env("absent".parse().unwrap(), "KEY")),
            InvokeRequest::new(""),
            Expected::new(ErrorKind::Misconfigured, &["absent"]),
            Some("misconfigured"),
        ),
        (
            "a secret that is not listed",
            cat(),
            unlisted,
            Expected::new(ErrorKind::InvalidArgument, &["key", "does not list"]),
            Some("invalid_argument"),
        ),
        (
            "output that breaks the schema",
            cat().with_output_schema(named.clone()),
            InvokeRequest::new(r#"{"name": 7}"#),
            Expected::at(ErrorKind::InvalidOutput, "/name", &["string"]).executed(),
            Some("invalid_output"),
        ),
        (
            "output that is not UTF-8, against a schema",
            cat().with_output_schema(named),
            not_utf8(),
            Expected::new(ErrorKind::InvalidOutput, &["UTF-8 after the first 10 bytes"]).executed(),
            Some("invalid_output"),
        ),
        (
            "output that is not UTF-8, in an envelope",
            mute,
            InvokeRequest::new(""),
            Expected::new(ErrorKind::InvalidOutput, &["envelope", "UTF-8 after the first 13 bytes"]).executed(),
            Some("invalid_output"),
        ),
        (
            "output that is no envelope",
            chatty,
            InvokeRequest::new(""),
            Expected::new(ErrorKind::InvalidOutput, &["envelope", "line: 1", "column: 1"]).executed(),
            Some("invalid_output"),
        ),
        (
            "output over the limit",
            terse,
            InvokeRequest::new(""),
            Expected::new(ErrorKind::OutputTooLarge, &["10 bytes", "limit_bytes: 10"]).executed(),
            Some("output_too_large"),
        ),
        (
            "a path that is none",
            cat(),
            InvokeRequest::new("").with_path("up/../there"),
            Expected::new(ErrorKind::InvalidArgument, &["'/'", "up/../there"]),
            None,
        ),
        (
            "a NUL byte in the query",
            cat(),
            InvokeRequest::new("").with_query("a\0b"),
            Expected::new(ErrorKind::InvalidArgument, &["NUL", "query"]),
            Some("invalid_argument"),
        ),
    ]
}

#[tokio::test]
async fn a_wrong_call_says_what_is_wrong_and_is_recorded_once() {
    for (case, spec, request, expected, code) in wrong_calls() {
        let gateway = gateway().await;
        let created = gateway.create(&cx(), &name("f"), spec).await.unwrap();
        assert_eq!(created.status.phase, Phase::Ready, "{case}");
        let error = soon(gateway.invoke(&cx(), &function("f"), request)).await.unwrap_err();
        expected.assert(case, &error);
        assert_eq!(error.context_value("function"), Some("f"), "{case}");
        let records = records(&gateway).await;
        let failures: Vec<_> = records.iter().map(|record| record.failure.as_ref().unwrap()).collect();
        let codes: Vec<_> = failures.iter().map(|failure| failure.code.as_str()).collect();
        assert_eq!(codes, code.into_iter().collect::<Vec<_>>(), "{case}");
        for (record, failure) in records.iter().zip(failures) {
            assert_eq!(record.state, InvocationState::Failed, "{case}");
            assert_eq!(Some(record.id.to_string().as_str()), error.context_value("invocation"), "{case}");
            assert!(failure.message.contains(error.message()), "{case}: {failure:?}");
        }
    }
}

#[tokio::test]
async fn a_call_to_what_can_t_serve_is_refused_and_leaves_no_record() {
    let gateway = gateway().await;
    gateway.create(&cx(), &name("mine"), cat()).await.unwrap();
    let soon_ready = cx().with_deadline(Deadline::after(Duration::from_millis(50)));
    let pending = gateway.create(&soon_ready, &name("pending"), scripted("slow")).await.unwrap();
    assert_eq!(pending.status.phase, Phase::Deploying);
    let failed = gateway.create(&cx(), &name("failed"), scripted("broken")).await.unwrap();
    assert_eq!(failed.status.phase, Phase::Failed);
    let not_found = || Expected::new(ErrorKind::NotFound, &["function"]);
    let rows = [
        ("unknown function", cx(), "absent", not_found()),
        ("another tenant's function", cx_of("globex"), "mine", not_found()),
        ("unknown generation", cx(), "mine@7", Expected::new(ErrorKind::NotFound, &["7"])),
        ("function not ready", cx(), "pending", Expected::new(ErrorKind::NotReady, &["pending"]).transient()),
        ("function that failed", cx(), "failed", Expected::new(ErrorKind::NotReady, &["failed"])),
        ("an alias", cx(), "mine:prod", Expected::new(ErrorKind::Unsupported, &["alias"])),
        (
            "a deadline already past",
            cx().with_deadline(Deadline::after(Duration::ZERO)),
            "mine",
            Expected::new(ErrorKind::DeadlineExceeded, &["total"]),
        ),
    ];
    for (case, cx, called, expected) in rows {
        let error = gateway.invoke(&cx, &function(called), InvokeRequest::new("x")).await.unwrap_err();
        expected.assert(case, &error);
    }
    assert!(records(&gateway).await.is_empty());
}

/// A change is not a call: it is stored first, and the deadline only says how long its caller waits for the rest.
#[tokio::test]
async fn a_change_whose_deadline_is_past_is_stored_whole_and_goes_on_without_its_caller() {
    let gateway = gateway().await;
    let late = || cx().with_deadline(Deadline::after(Duration::ZERO));
    let created = gateway.create(&late(), &name("f"), cat()).await.unwrap();
    assert_eq!((created.status.phase, created.generation.get()), (Phase::Pending, 1));
    soon(async {
        while gateway.get(&cx(), &name("f")).await.unwrap().status.phase != Phase::Ready {
            gateway.reconcile_due().await.unwrap();
        }
    })
    .await;
    gateway.delete(&late(), &name("f"), Precondition::none()).await.unwrap();
    soon(async {
        while gateway.get(&cx(), &name("f")).await.is_ok() {
            gateway.reconcile_due().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn another_tenant_s_function_is_as_if_it_did_not_exist() {
    let (gateway, stranger) = (gateway().await, cx_of("globex"));
    let before: Arc<Function> = gateway.create(&cx(), &name("f"), cat()).await.unwrap();
    let answer = gateway.invoke(&cx(), &function("f"), InvokeRequest::new("x")).await.unwrap();
    let id = answer.invocation_id().unwrap();
    let there = attempts(&gateway, "f", id).await;
    let nowhere = attempts(&gateway, "nowhere", InvocationId::generate()).await;
    for ((case, there, said), (_, _, of_none)) in there.iter().zip(&nowhere) {
        Expected::new(ErrorKind::NotFound, &["there is no"]).assert(case, there);
        assert_eq!(said, of_none, "{case}");
    }
    let seen = gateway.executions(&stranger, &RecordFilter::default(), &PageRequest::default()).await.unwrap();
    assert!(seen.items.is_empty());
    assert_eq!(*gateway.get(&cx(), &name("f")).await.unwrap(), *before);
}

/// What a stranger gets for all there is to try, and the message without the name that was asked for.
async fn attempts(gateway: &Gateway, f: &str, id: InvocationId) -> Vec<(&'static str, Error, String)> {
    let (cx, name, none) = (cx_of("globex"), name(f), Precondition::none());
    let page = PageRequest::default();
    let results = [
        ("invoke", gateway.invoke(&cx, &function(f), InvokeRequest::new("x")).await.map(drop)),
        ("get", gateway.get(&cx, &name).await.map(drop)),
        ("update", gateway.update(&cx, &name, sh("true"), none).await.map(drop)),
        ("roll back", gateway.roll_back(&cx, &name, Generation::FIRST, none).await.map(drop)),
        ("rotate secrets", gateway.rotate_secrets(&cx, &name, Precondition::none()).await.map(drop)),
        ("delete", gateway.delete(&cx, &name, none).await.map(drop)),
        ("scale", gateway.scale(&cx, &name, 0).await),
        ("revisions", gateway.revisions(&cx, &name, &page).await.map(drop)),
        ("revision", gateway.revision(&cx, &name, Generation::FIRST).await.map(drop)),
        ("logs", gateway.logs(&cx, &name, LogQuery::default()).await.map(drop)),
        ("execution", gateway.execution(&cx, id).await.map(drop)),
    ];
    let nameless = |error: &Error| error.message().replace(&format!("{f:?}"), "it").replace(&id.to_string(), "it");
    let refused = results.map(|(case, result)| (case, result.expect_err(case)));
    refused
        .map(|(case, error)| {
            let said = nameless(&error);
            (case, error, said)
        })
        .into()
}

#[tokio::test]
async fn a_program_that_goes_away_later_is_the_function_s_fault() {
    let (gateway, programs) = (gateway().await, Programs::new());
    gateway.create(&cx(), &name("f"), programs.function("script.sh")).await.unwrap();
    let call = async || gateway.invoke(&cx(), &function("f"), InvokeRequest::new("x")).await;
    assert_eq!(text(call().await.unwrap()).await, "x");
    fs::set_permissions(programs.path("script.sh"), fs::Permissions::from_mode(0o644)).unwrap();
    let says = Expected::new(ErrorKind::Misconfigured, &["not executable"]);
    says.assert("no longer executable", &call().await.unwrap_err());
    fs::remove_file(programs.path("script.sh")).unwrap();
    let says = Expected::new(ErrorKind::Misconfigured, &["not found"]);
    says.assert("gone", &call().await.unwrap_err());
}

/// The function writes without an end, and started a child that writes nothing, so that only the kill ends it.
#[tokio::test]
async fn a_function_that_says_too_much_is_killed_with_all_that_it_started() {
    for streaming in [false, true] {
        let (gateway, folder) = (gateway().await, tempfile::tempdir().unwrap());
        let pids = folder.path().join("pids");
        let script = "sleep 1000 & echo $$ $! > \"$PIDS\"; exec yes";
        let mut spec = sh(script).with_env("PATH", "/usr/bin:/bin").with_env("PIDS", pids.to_str().unwrap());
        spec.limits.max_response_bytes = Some(100_000);
        spec.streaming = streaming;
        gateway.create(&cx(), &name("f"), spec).await.unwrap();
        let error = soon(async {
            let answer = gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await?;
            assert!(streaming, "what is kept whole is refused before its answer begins");
            answer.body.collect(u64::MAX).await
        });
        let expected = Expected::new(ErrorKind::OutputTooLarge, &["100000 bytes", "limit_bytes: 100000"]).executed();
        expected.assert("too much", &error.await.unwrap_err());
        let pids = fs::read_to_string(&pids).unwrap();
        let pids: Vec<i32> = pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 2, "the function and its child");
        for pid in pids {
            ended(pid).await;
        }
        gateway.shutdown(Duration::from_secs(60)).await.unwrap();
        let records = records(&gateway).await;
        let codes: Vec<_> = records.iter().map(|record| record.failure.as_ref().unwrap().code.as_str()).collect();
        assert_eq!(codes, ["output_too_large"], "streaming: {streaming}");
    }
}

/// Waits until a process has ended, whoever has to reap it.
async fn ended(pid: i32) {
    let Ok(pidfd) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return };
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    let waiting = tokio::task::spawn_blocking(move || {
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).unwrap() == 1
    });
    assert!(waiting.await.unwrap(), "process {pid} still runs");
}
