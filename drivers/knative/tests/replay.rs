//! Replays every recorded exchange with a real API server, real Knative controllers and a real ingress: what the driver makes of the
//! answers is what they mean. What it does not ask for, or that says nothing to it, is listed with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

#[cfg(test)]
mod fake;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use fake::{At, Fake, Fault, NAMESPACE, Options, REVISIONS, SERVICES};
use function_gateway_core::{
    CallContext, Deadline, Delivery, DeployRequest, DeploymentState, DeploymentStatus, DriverRef, DriverRequest,
    ErrorKind, FaasDriver, FunctionId, FunctionKey, FunctionSpec, Generation, InvocationId, ListScope, LogQuery,
    LogSink, Principal, Revision, RevisionReason, Timestamp,
};
use function_gateway_knative::{Knative, KnativeConfig};
use futures_util::StreamExt as _;
use http::Method;
use serde_json::{Value, json};

use Delivery::{NotSent, Unknown};
use ErrorKind::{Conflict, DeadlineExceeded, FunctionBroken, Misconfigured, NotReady, Unavailable};

const GATEWAY: &str = "g1";
const FUNCTION: [u8; 16] = [7; 16];

#[derive(Clone)]
struct Exchange {
    name: String,
    request: Value,
    response: Value,
    events: Vec<Value>,
}

impl Exchange {
    fn all(files: &[&str]) -> Vec<Self> {
        let read = |file: &&str| {
            let path = format!("{}/tests/fixtures/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
        };
        let events = |exchange: &Value| {
            let lines = exchange["stream"].as_array().into_iter().flatten();
            lines.map(|line| line["line"].clone()).filter(Value::is_object).collect()
        };
        let exchanges = files.iter().flat_map(read);
        exchanges
            .map(|exchange| Self {
                name: exchange["name"].as_str().unwrap().to_owned(),
                request: exchange["request"].clone(),
                response: exchange["response"].clone(),
                events: events(&exchange),
            })
            .collect()
    }

    fn path(&self) -> &str {
        self.request["path"].as_str().unwrap_or_default().split('?').next().unwrap()
    }

    fn method(&self) -> &str {
        self.request["method"].as_str().unwrap()
    }

    fn status(&self) -> u16 {
        u16::try_from(self.response["status"].as_u64().unwrap()).unwrap()
    }

    fn text(&self) -> String {
        match &self.response["body"] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            document => document.to_string(),
        }
    }

    /// The answer as it was, but for the headers that say how long it is and by which connection it came.
    fn answer(&self) -> Fault {
        let headers = self.response["headers"].as_object().cloned().unwrap_or_default();
        let own = |name: &str| !["content-length", "transfer-encoding", "connection", "date"].contains(&name);
        let headers =
            headers.into_iter().map(|(name, value)| (name.to_lowercase(), value.as_str().unwrap().to_owned()));
        Fault::Answer(self.status(), headers.filter(|(name, _)| own(name)).collect(), self.text())
    }
}

fn cx() -> CallContext {
    let principal = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
    CallContext::new(principal)
        .with_invocation_id(InvocationId::generate())
        .with_deadline(Deadline::after(fake::PATIENCE))
}

fn revision(spec: FunctionSpec) -> Arc<Revision> {
    let key = FunctionKey::new("acme".parse().unwrap(), "fun".parse().unwrap());
    let created = (Timestamp::now(), "ada".parse().unwrap());
    let (id, reason) = (FunctionId::from_bytes(FUNCTION), RevisionReason::Created);
    Arc::new(Revision::new(key, id, Generation::FIRST, spec, created, reason))
}

fn reference(service: &str, generation: u64) -> DriverRef {
    let id = FunctionId::from_bytes(FUNCTION);
    DriverRef::new(format!("v1/{GATEWAY}/{id}/{generation}/{NAMESPACE}/0/{service}"))
}

fn echo() -> FunctionSpec {
    fake::spec("lab.local/fn:1", "echo").with_annotation("knative.dev/accept-repeats", "true")
}

/// A driver of its own, so that nothing is known from before.
fn driver(config: &KnativeConfig) -> Knative {
    Knative::new(config.clone()).unwrap()
}

/// What the driver says of a generation.
async fn status(config: &KnativeConfig, target: &DriverRef) -> DeploymentStatus {
    let driver = driver(config);
    let status = driver.status(&cx(), target).await.unwrap();
    driver.shutdown(Instant::now()).await.unwrap();
    status
}

// Calls

/// What a recorded answer to a call means, where it is not the function's own. The function is there all the time here, so that a route
/// that was missing is one that is not ready.
fn of_call(name: &str, status: u16) -> Option<(ErrorKind, Delivery)> {
    Some(match name {
        "unknown host" | "cluster-local via external" | "cluster-local svc name via external" => (NotReady, NotSent),
        _ if name.starts_with("failed service") || name.starts_with("after delete") => (NotReady, NotSent),
        "timeout before first byte (sleep 10 > responseStart 3)" => (DeadlineExceeded, Unknown),
        "function closes connection without answering" => (FunctionBroken, Unknown),
        _ if name.starts_with("cc1 x16") && status == 503 => (Unavailable, NotSent),
        _ => return None,
    })
}

#[tokio::test]
async fn every_recorded_call() {
    let fake = Fake::start(Options::default()).await;
    let config = fake.config();
    let driver = driver(&config);
    let revision = revision(echo());
    let target = driver.reference(&GATEWAY.parse().unwrap(), &revision);
    driver.deploy(&cx(), &target, DeployRequest::new(GATEWAY.parse().unwrap(), Arc::clone(&revision))).await.unwrap();
    while driver.status(&cx(), &target).await.unwrap().state != DeploymentState::Ready {
        tokio::task::yield_now().await;
    }
    let mut told = BTreeSet::new();
    for exchange in Exchange::all(&["invoke", "invoke2"]) {
        let Exchange { name, request, response, .. } = &exchange;
        if response.is_null() {
            // The client of the recording gave up.
            continue;
        }
        let method = Method::from_bytes(exchange.method().as_bytes()).unwrap();
        fake.fail(At::Ingress, Some(method.clone()), "", exchange.answer(), 1);
        let mut call = DriverRequest::new(Arc::clone(&revision), "", LogSink::detached(0));
        call.method = method;
        call.query = request["url"].as_str().and_then(|url| url.split_once('?')).map(|(_, query)| query.to_owned());
        let answered = driver.invoke(&cx(), &target, call).await;
        let recorded = (response["body"].as_str().unwrap_or_default(), exchange.status());
        let expected = of_call(name, recorded.1).or_else(|| match recorded {
            (text, 502) if text.starts_with("dial tcp") => Some((Unavailable, NotSent)),
            (text, 502) if text.starts_with("EOF") => Some((FunctionBroken, Unknown)),
            (text, 404) if text.starts_with("Error getting") => Some((NotReady, NotSent)),
            ("", 404) => Some((NotReady, NotSent)),
            _ => None,
        });
        match (answered, expected) {
            (Ok(answer), None) => {
                assert_eq!(answer.status.as_u16(), exchange.status(), "{name}");
                assert_eq!(answer.body.collect(1 << 24).await.unwrap(), exchange.text(), "{name}");
            }
            (Err(error), Some(expected)) => {
                assert_eq!((error.kind(), error.delivery()), expected, "{name}: {error:?}");
                told.insert(error.kind().code());
            }
            (answered, expected) => panic!("{name}: {answered:?} in place of {expected:?}"),
        }
    }
    let all = ["deadline_exceeded", "function_broken", "not_ready", "unavailable"];
    assert_eq!(told.into_iter().collect::<Vec<_>>(), all);
}

// States

/// A recorded Service as one of ours: its Revisions are generations, each with its tag.
fn ours(recorded: &Value) -> (String, u64, Value) {
    let name = recorded["metadata"]["name"].as_str().unwrap();
    let service = format!("{name}-ours");
    let mut text = recorded.to_string();
    for number in 1..=5 {
        text = text.replace(&format!("{name}-{number:05}"), &format!("{service}-g{number}"));
    }
    let mut object: Value = serde_json::from_str(&text).unwrap();
    let metadata = &mut object["metadata"];
    metadata["name"] = json!(service);
    metadata["labels"] = json!({
        "function-gateway/gateway": GATEWAY,
        "function-gateway/function": FunctionId::from_bytes(FUNCTION).to_string(),
    });
    let number_of = |name: &Value| name.as_str()?.rsplit_once("-g")?.1.parse::<u64>().ok();
    // Before Knative has looked at it, the newest is the next one.
    let latest = number_of(&object["status"]["latestCreatedRevisionName"]).unwrap_or(1);
    let observed = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    let newest = if observed || object["status"].is_null() { latest } else { latest + 1 };
    object["spec"]["template"]["metadata"]["name"] = json!(format!("{service}-g{newest}"));
    let mut wanted = vec![json!({"latestRevision": true, "percent": 100})];
    for generation in 1..=newest {
        let tag = format!("g{generation}");
        object["metadata"]["annotations"][format!("held.function-gateway/{tag}")] =
            json!(reference(&service, generation));
        wanted.push(json!({"tag": tag, "revisionName": format!("{service}-{tag}"), "percent": 0}));
    }
    object["spec"]["traffic"] = json!(wanted);
    // The route is set up for all of its names at a time.
    let routed = object["status"]["traffic"].as_array().into_iter().flatten();
    if let Some(last) = routed.filter_map(|part| number_of(&part["revisionName"])).max() {
        let told = |generation: u64| {
            let url = format!("http://g{generation}-{service}.fns.example.lab");
            json!({"tag": format!("g{generation}"), "revisionName": format!("{service}-g{generation}"), "url": url})
        };
        object["status"]["traffic"] = (1..=last).map(told).collect();
    }
    object["status"]["frozen"] = json!(true);
    (service, newest, object)
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// The newest Revision, by what its Service says of it.
fn newest_revision(service: &Value, name: &str) -> Option<Value> {
    if service["status"]["latestCreatedRevisionName"] != name {
        return None;
    }
    let made = condition(service, "ConfigurationsReady");
    let said = |name: &str| made[name].as_str().unwrap_or_default();
    let ready =
        json!({"type": "Ready", "status": said("status"), "reason": said("reason"), "message": said("message")});
    Some(json!({
        "metadata": {"name": name, "generation": 1},
        "status": {"observedGeneration": 1, "conditions": [ready], "frozen": true},
    }))
}

async fn check(fake: &Fake, recorded: &Value, name: &str) -> DeploymentState {
    let (service, newest, object) = ours(recorded);
    let revision = format!("{service}-g{newest}");
    fake.delete(REVISIONS, &revision);
    if let Some(made) = newest_revision(&object, &revision) {
        fake.put(REVISIONS, NAMESPACE, made);
    }
    fake.put(SERVICES, NAMESPACE, object.clone());
    let status = status(&fake.config(), &reference(&service, newest)).await;
    // What was recorded says so of the generation that it has observed, and of no other.
    let observed = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    let expected = match condition(&object, "Ready")["status"].as_str() {
        Some("True") if observed => DeploymentState::Ready,
        _ if observed && condition(&object, "ConfigurationsReady")["status"] == "False" => DeploymentState::Failed,
        _ => DeploymentState::Progressing,
    };
    assert_eq!(status.state, expected, "{name}: {status:?} of {object}");
    assert_eq!(status.message.is_empty(), expected == DeploymentState::Ready, "{name}: {status:?}");
    fake.delete(SERVICES, &service);
    expected
}

#[tokio::test]
async fn every_recorded_state() {
    let fake = Fake::start(Options { controlled: false, ..Options::default() }).await;
    let mut states = [0; 3];
    let files = [
        "crud",
        "crud2",
        "services-misc",
        "services-misc2",
        "fail-f-crash",
        "fail-f-nolisten",
        "fail-f-pull",
        "fail-f-secret",
        "fail-f-tag",
        "fail-f-unsched",
    ];
    for exchange in Exchange::all(&files) {
        let watched = exchange.events.iter().filter(|event| event["type"] != "ERROR" && event["type"] != "BOOKMARK");
        let shown = (exchange.method() == "GET" && exchange.response["body"]["kind"] == "Service")
            .then_some(&exchange.response["body"]);
        for recorded in watched.map(|event| &event["object"]).chain(shown) {
            // With tags and splits of its own, or on its way out, it is nothing that the driver has made.
            let has_tags = recorded["spec"]["traffic"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|part| !part["tag"].is_null() || part["percent"] != 100);
            let missing = recorded["spec"]["traffic"][0]["revisionName"].is_string();
            if has_tags || missing || recorded["metadata"]["deletionTimestamp"].is_string() {
                continue;
            }
            match check(&fake, recorded, &exchange.name).await {
                DeploymentState::Ready => states[0] += 1,
                DeploymentState::Failed => states[1] += 1,
                _ => states[2] += 1,
            }
        }
    }
    assert!(states.iter().all(|count| *count >= 10), "{states:?}");
}

#[tokio::test]
async fn every_recorded_failure_of_a_revision() {
    let fake = Fake::start(Options { controlled: false, ..Options::default() }).await;
    for (file, told) in [
        ("fail-f-crash", "the container ends with the exit code 3: Container failed with: fn starting"),
        ("fail-f-nolisten", "it does not listen, or its probe fails"),
        ("fail-f-pull", "the image can't be pulled: Back-off pulling image"),
        ("fail-f-secret", "the container can't be made: is a secret missing?"),
        ("fail-f-tag", "the image can't be found: Unable to fetch image"),
        ("fail-f-unsched", "no node has room for it: "),
    ] {
        let all = Exchange::all(&[file]);
        let find = |start: &str| {
            let body = &all.iter().find(|exchange| exchange.name.starts_with(start)).unwrap().response["body"];
            if body["items"].is_array() { body["items"][0].clone() } else { body.clone() }
        };
        let (service, newest, object) = ours(&find("get "));
        let mut made = find("revision ");
        made["metadata"]["name"] = json!(format!("{service}-g{newest}"));
        fake.put(REVISIONS, NAMESPACE, made);
        fake.put(SERVICES, NAMESPACE, object);
        let status = status(&fake.config(), &reference(&service, newest)).await;
        assert_eq!(status.state, DeploymentState::Failed, "{file}: {status:?}");
        assert!(status.message.starts_with(told), "{file}: {status:?}");
    }
}

// Management

/// What is not replayed as an answer to the driver, and why.
fn not_replayed(exchange: &Exchange) -> Option<&'static str> {
    let path = exchange.path();
    Some(match exchange.name.as_str() {
        _ if !exchange.events.is_empty() => {
            "its events are replayed as states, and ends of watches by the tests of faults"
        }
        _ if exchange.response.is_null() || exchange.response["status"].is_null() => "it has no answer",
        _ if exchange.response["body"].is_null() && exchange.status() < 300 => "its body was left out",
        "create secret" | "create configmap" => "the driver applies Secrets, and makes no ConfigMap",
        _ if path.contains("/configurations") || path.contains("/routes") => "the driver asks for neither",
        _ if path.contains("/revisions") => "Revisions are replayed with their Services",
        "list continue" | "list bad continue" | "list bad selector" | "list bad fieldSelector" => {
            "the driver makes selectors and tokens by itself, and the tests of faults have pages"
        }
        _ => return None,
    })
}

/// What a refusal means, by the recorded code and reason.
fn of_refusal(exchange: &Exchange) -> (ErrorKind, bool) {
    let body = &exchange.response["body"];
    match (exchange.status(), body["reason"].as_str().unwrap_or_default()) {
        (401 | 403, _) => (Unavailable, true),
        (404, _) => (Unavailable, true),
        (409, "AlreadyExists") if body["message"].as_str().unwrap().contains("being deleted") => (Unavailable, true),
        (409, _) => (Conflict, true),
        (400 | 413 | 422, _) => (Misconfigured, false),
        (415, _) => (ErrorKind::Engine, false),
        (code, reason) => panic!("{}: {code} {reason}", exchange.name),
    }
}

#[tokio::test]
async fn every_recorded_answer_of_the_api_server() {
    let fake = Fake::start(Options { controlled: false, ..Options::default() }).await;
    let config = fake.config();
    let revision = revision(echo());
    let gateway = GATEWAY.parse().unwrap();
    let request = || DeployRequest::new(GATEWAY.parse().unwrap(), Arc::clone(&revision));
    let (mut replayed, mut left) = (0, 0);
    let files = [
        "crud",
        "crud2",
        "services-misc",
        "services-misc2",
        "fail-f-crash",
        "fail-f-nolisten",
        "fail-f-pull",
        "fail-f-secret",
        "fail-f-tag",
        "fail-f-unsched",
    ];
    for exchange in Exchange::all(&files) {
        if not_replayed(&exchange).is_some() {
            left += 1;
            continue;
        }
        replayed += 1;
        let (name, path, code) = (exchange.name.clone(), exchange.path().to_owned(), exchange.status());
        let driver = driver(&config);
        let target = driver.reference(&gateway, &revision);
        let answer = |method: Method, part: &str| fake.fail(At::Api, Some(method), part, exchange.answer(), 1);
        let refused = |error: function_gateway_core::Error| {
            assert_eq!((error.kind(), error.is_transient()), of_refusal(&exchange), "{name}: {error:?}");
            assert_eq!(error.delivery(), NotSent, "{name}");
        };
        match (exchange.method(), path.as_str()) {
            ("GET", "/version" | "/apis/serving.knative.dev/v1") => {
                answer(Method::GET, &path);
                driver.probe(&cx()).await.unwrap();
            }
            ("GET", path) if path.contains("/pods") && path.ends_with("/log") => {
                driver.deploy(&cx(), &target, request()).await.unwrap();
                fake.put(
                    fake::PODS,
                    NAMESPACE,
                    json!({"metadata": {"name": "pod", "labels": {
                    "serving.knative.dev/revision": format!("{}-g1", target.as_str().rsplit('/').next().unwrap())}}}),
                );
                answer(Method::GET, "/log?");
                let (cx, query) = (cx(), LogQuery::default());
                match driver.logs(&cx, &target, query).await {
                    Ok(lines) => {
                        let lines: Vec<_> = lines.collect().await;
                        // A pod that has gone, or whose container has not started, has none.
                        assert_eq!(
                            lines.len(),
                            if code == 200 { exchange.text().lines().count() } else { 0 },
                            "{name}"
                        );
                    }
                    Err(error) => assert_eq!((code, error.kind()), (500, Unavailable), "{name}: {error:?}"),
                }
                driver.remove(&cx, &target).await.unwrap();
            }
            ("GET", path) if path.contains("/pods") => {
                driver.deploy(&cx(), &target, request()).await.unwrap();
                answer(Method::GET, "/pods?");
                let (cx, query) = (cx(), LogQuery::default());
                // None of them has a log here.
                assert_eq!(driver.logs(&cx, &target, query).await.unwrap().count().await, 0, "{name}");
                driver.remove(&cx, &target).await.unwrap();
            }
            ("GET", path) if path.ends_with("/services") => {
                answer(Method::GET, "limit=");
                let cx = cx();
                for item in driver.list(&cx, ListScope::All(GATEWAY.parse().unwrap())).collect::<Vec<_>>().await {
                    match code {
                        // Of what does not bear its labels the API server shows nothing to who asks for them.
                        200 => assert!(item.is_err(), "{name}"),
                        _ => refused(item.unwrap_err()),
                    }
                }
            }
            ("GET", _) => {
                answer(Method::GET, "/services/");
                let seen = driver.status(&cx(), &target).await;
                match code {
                    200 => assert_eq!(seen.unwrap().state, DeploymentState::Missing, "{name}"),
                    404 if exchange.response["body"].is_object() => {
                        assert_eq!(seen.unwrap().state, DeploymentState::Missing, "{name}");
                    }
                    _ => refused(seen.unwrap_err()),
                }
            }
            ("DELETE", _) => {
                driver.deploy(&cx(), &target, request()).await.unwrap();
                answer(Method::DELETE, "/services/");
                let removed = driver.remove(&cx(), &target).await;
                match code {
                    200 if exchange.response["body"]["kind"] == "Service" => {
                        assert!(removed.unwrap_err().message().contains("foregroundDeletion"), "{name}");
                    }
                    // A precondition that is not met is begun anew with what is there by then.
                    200 | 404 | 409 => removed.unwrap(),
                    _ => refused(removed.unwrap_err()),
                }
                fake.delete(SERVICES, target.as_str().rsplit('/').next().unwrap());
            }
            (_, _) => {
                answer(Method::PATCH, "/services/");
                let deployed = driver.deploy(&cx(), &target, request()).await;
                let body = &exchange.response["body"];
                // Others came before, or manage a field: it is begun anew, or taken over.
                let again = code == 409 && body["reason"] == "Conflict";
                match code {
                    200 | 201 => drop(deployed.unwrap()),
                    _ if again => drop(deployed.unwrap()),
                    _ => refused(deployed.unwrap_err()),
                }
                fake.delete(SERVICES, target.as_str().rsplit('/').next().unwrap());
            }
        }
        driver.shutdown(Instant::now()).await.unwrap();
        for service in fake.names(SERVICES) {
            fake.delete(SERVICES, &service);
        }
    }
    assert!(replayed > 150 && left < 100, "{replayed} replayed, {left} left");
}
