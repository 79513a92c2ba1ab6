//! What goes wrong with an engine, and what the driver says of it: each a typed error with a true delivery, nothing that hangs,
//! and nothing left behind in the engine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

#[cfg(test)]
mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Fake, Fault, Flavour, Options, PASSWORD, PATIENCE, USER};
use function_gateway_core::{
    Body, CallContext, Deadline, Delivery, DeployRequest, Deployment, DeploymentState, DriverRef, DriverRequest, Error,
    ErrorKind, FaasDriver, FunctionId, FunctionKey, FunctionSpec, GatewayId, Generation, InvocationId, InvokeResponse,
    ListScope, LogQuery, LogSink, MemorySecrets, Outcome, Principal, Result, Retry, Revision, RevisionReason,
    ScaleRequest, Secret, SecretBinding, SecretVariable, Timestamp,
};
use function_gateway_openfaas::{OpenFaas, OpenFaasAuth, OpenFaasConfig};
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Method, header};
use serde_json::json;

use Delivery::{Executed, NotSent, Unknown};
use ErrorKind::{
    Engine, FunctionBroken, InvalidArgument, Misconfigured, NotDeployed, NotReady, Unavailable, Unsupported,
};

fn cx() -> CallContext {
    let principal = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
    CallContext::new(principal).with_invocation_id(InvocationId::generate()).with_deadline(Deadline::after(PATIENCE))
}

/// A driver, the engine under it, and a gateway's id.
struct Bench {
    fake: Fake,
    driver: OpenFaas,
    gateway: GatewayId,
}

#[derive(Clone)]
struct Target {
    reference: DriverRef,
    revision: Arc<Revision>,
}

impl Target {
    fn service(&self) -> &str {
        self.reference.as_str().rsplit('/').next().unwrap()
    }
}

impl Bench {
    async fn new(options: Options) -> Self {
        Self::with(options, |config| config).await
    }

    async fn with(options: Options, change: impl FnOnce(OpenFaasConfig) -> OpenFaasConfig) -> Self {
        let fake = Fake::start(options).await;
        let config = OpenFaasConfig::new(&fake.url).with_request_timeout(Duration::from_secs(5));
        let driver = OpenFaas::new(change(config)).unwrap();
        driver.probe(&cx()).await.unwrap();
        Self { fake, driver, gateway: GatewayId::generate() }
    }

    async fn netes() -> Self {
        Self::new(Options::new(Flavour::Netes)).await
    }

    fn target(&self, spec: FunctionSpec) -> Target {
        let key = FunctionKey::new("acme".parse().unwrap(), "fun".parse().unwrap());
        let created = (Timestamp::now(), "ada".parse().unwrap());
        let (id, reason) = (FunctionId::generate(), RevisionReason::Created);
        let revision = Arc::new(Revision::new(key, id, Generation::FIRST, spec, created, reason));
        Target { reference: self.driver.reference(&self.gateway, &revision), revision }
    }

    async fn try_deploy(&self, target: &Target) -> Result<DeploymentState> {
        self.try_deploy_with(target, &[]).await
    }

    async fn try_deploy_with(&self, target: &Target, secrets: &[(&str, &[u8])]) -> Result<DeploymentState> {
        let mut request = DeployRequest::new(self.gateway.clone(), Arc::clone(&target.revision));
        for (name, value) in secrets {
            request = request.with_secret(SecretVariable::new(*name, Secret::new(*value)));
        }
        Ok(self.driver.deploy(&cx(), &target.reference, request).await?.state)
    }

    async fn deployed(&self, spec: FunctionSpec) -> Target {
        let target = self.target(spec);
        self.try_deploy(&target).await.unwrap();
        while self.state(&target).await != DeploymentState::Ready {}
        target
    }

    async fn behaving(&self, behaviour: &str) -> Target {
        self.deployed(spec(behaviour)).await
    }

    async fn state(&self, target: &Target) -> DeploymentState {
        self.driver.status(&cx(), &target.reference).await.unwrap().state
    }

    async fn call(&self, target: &Target, change: impl FnOnce(&mut DriverRequest)) -> Result<InvokeResponse> {
        let mut request = DriverRequest::new(Arc::clone(&target.revision), "hello", LogSink::detached(1024));
        change(&mut request);
        self.driver.invoke(&cx(), &target.reference, request).await
    }

    async fn failed_call(&self, target: &Target) -> Error {
        self.call(target, |_| {}).await.unwrap_err()
    }

    async fn list(&self) -> Vec<Result<Deployment>> {
        self.driver.list(&cx(), ListScope::All(self.gateway.clone())).collect().await
    }
}

fn spec(behaviour: &str) -> FunctionSpec {
    fake::spec("lab/fn:v1", behaviour)
}

fn is(error: &Error, kind: ErrorKind, delivery: Delivery) {
    assert_eq!((error.kind(), error.delivery()), (kind, delivery), "{error:?}");
}

// The engine is out of reach

#[tokio::test]
async fn a_gateway_that_is_down_is_unavailable_and_nothing_was_sent() {
    let driver = OpenFaas::new(OpenFaasConfig::new("http://127.0.0.1:1")).unwrap();
    let bench = Bench::netes().await;
    let target = bench.target(spec("echo"));
    for error in [
        driver.probe(&cx()).await.unwrap_err(),
        driver.health(&cx()).await.unwrap_err(),
        driver.namespaces(&cx()).await.unwrap_err(),
        driver.status(&cx(), &target.reference).await.unwrap_err(),
        driver.remove(&cx(), &target.reference).await.unwrap_err(),
        driver.list(&cx(), ListScope::All(bench.gateway.clone())).next().await.unwrap().unwrap_err(),
        driver.logs(&cx(), &target.reference, LogQuery::default()).await.map(drop).unwrap_err(),
        driver
            .invoke(&cx(), &target.reference, DriverRequest::new(target.revision, "x", LogSink::detached(0)))
            .await
            .unwrap_err(),
    ] {
        is(&error, Unavailable, NotSent);
        assert!(error.is_transient());
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    }
}

#[tokio::test]
async fn a_provider_that_is_down_is_told_from_a_function_that_is_gone() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    bench.fake.set_provider_down(true);
    // The gateway says 404 of both.
    is(&bench.failed_call(&target).await, Unavailable, NotSent);
    for error in [
        bench.driver.probe(&cx()).await.unwrap_err(),
        bench.driver.health(&cx()).await.unwrap_err(),
        bench.driver.status(&cx(), &target.reference).await.unwrap_err(),
        bench.driver.remove(&cx(), &target.reference).await.unwrap_err(),
        bench.try_deploy(&target).await.unwrap_err(),
        bench.list().await.remove(0).unwrap_err(),
    ] {
        is(&error, Unavailable, NotSent);
        assert!(error.is_transient(), "{error:?}");
    }
    bench.fake.set_provider_down(false);
    bench.driver.health(&cx()).await.unwrap();
    assert_eq!(bench.state(&target).await, DeploymentState::Ready);
    bench.fake.delete(target.service());
    is(&bench.failed_call(&target).await, NotDeployed, NotSent);
}

#[tokio::test]
async fn without_scale_from_zero_missing_and_not_ready_are_told_apart() {
    let mut options = Options::new(Flavour::Netes);
    options.scale_from_zero = false;
    let bench = Bench::new(options).await;
    let target = bench.behaving("echo").await;
    bench.fake.set_replicas(target.service(), 1, 0);
    let error = {
        bench.fake.change(|options| options.polls_until_ready = 100);
        bench.failed_call(&target).await
    };
    is(&error, NotReady, NotSent);
    bench.fake.delete(target.service());
    is(&bench.failed_call(&target).await, NotDeployed, NotSent);
    bench.fake.set_provider_down(true);
    // The gateway's own 502: whether the call had been passed on can't be told.
    is(&bench.failed_call(&target).await, Unavailable, Unknown);
}

// Connections

#[tokio::test]
async fn a_connection_that_breaks_in_a_call_may_have_delivered_it() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    bench.fake.fail(Some(Method::POST), "/function/", Fault::Close, 1);
    is(&bench.failed_call(&target).await, Unavailable, Unknown);
    bench.fake.fail(Some(Method::POST), "/function/", Fault::CloseAfter, 1);
    let before = bench.fake.calls(target.service());
    is(&bench.failed_call(&target).await, Unavailable, Unknown);
    // It was executed, and not sent again by the driver.
    assert_eq!(bench.fake.calls(target.service()), before + 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_whole() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    bench.fake.fail(Some(Method::POST), "/function/", Fault::Cut, 1);
    is(&bench.failed_call(&target).await, FunctionBroken, Executed);
    let mut streaming = spec("echo");
    streaming.streaming = true;
    let target = bench.deployed(streaming).await;
    bench.fake.fail(Some(Method::POST), "/function/", Fault::Cut, 1);
    let response = bench.call(&target, |_| {}).await.unwrap();
    is(&response.body.collect(1024).await.unwrap_err(), FunctionBroken, Executed);
}

#[tokio::test]
async fn a_slow_answer_holds_nothing_but_its_own_call() {
    let bench = Bench::netes().await;
    let (slow, quick) = (bench.behaving("hang").await, bench.behaving("echo").await);
    let call = bench.call(&slow, |_| {});
    let others = async {
        while bench.fake.running(slow.service()) == 0 {
            tokio::task::yield_now().await;
        }
        bench.call(&quick, |_| {}).await.unwrap();
        bench.driver.remove(&cx(), &slow.reference).await.unwrap();
    };
    let (stopped, ()) = tokio::join!(call, others);
    is(&stopped.unwrap_err(), Unavailable, Unknown);
}

#[tokio::test]
async fn a_call_that_manages_ends_by_its_own_time() {
    let bench =
        Bench::with(Options::new(Flavour::Netes), |config| config.with_request_timeout(Duration::from_millis(200)))
            .await;
    let target = bench.target(spec("echo"));
    bench.fake.fail(None, "/system/", Fault::Hang, 100);
    let error = bench.driver.status(&cx(), &target.reference).await.unwrap_err();
    is(&error, Unavailable, Unknown);
    assert!(error.message().contains("in time"), "{error}");
}

#[tokio::test]
async fn a_body_that_stalls_ends_by_the_time_of_its_call() {
    let bench =
        Bench::with(Options::new(Flavour::Netes), |config| config.with_request_timeout(Duration::from_millis(200)))
            .await;
    let target = bench.behaving("echo").await;
    bench.fake.fail(Some(Method::GET), "/system/functions", Fault::Stall, 1);
    is(bench.list().await[0].as_ref().unwrap_err(), Unavailable, Unknown);
    // That of a function is its caller's: dropping it lets the connection go.
    bench.fake.fail(Some(Method::POST), "/function/", Fault::Stall, 1);
    let stalled = tokio::time::timeout(Duration::from_millis(200), bench.call(&target, |_| {})).await;
    assert!(stalled.is_err(), "{stalled:?}");
    bench.call(&target, |_| {}).await.unwrap();
    bench.driver.shutdown(Instant::now() + PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_dropped_in_the_middle_of_a_request_may_have_delivered_it() {
    let bench = Bench::netes().await;
    let mut streaming = spec("echo");
    streaming.streaming = true;
    let target = bench.deployed(streaming).await;
    bench.fake.fail(Some(Method::POST), "/function/", Fault::Close, 1);
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 4096])));
    let error = bench.call(&target, |request| request.body = Body::from_stream(endless)).await.unwrap_err();
    is(&error, Unavailable, Unknown);
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_nothing_to_who_only_asks() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    bench.fake.fail(Some(Method::GET), "/system/function/", Fault::Close, 1);
    assert_eq!(bench.state(&target).await, DeploymentState::Ready);
    bench.fake.fail(Some(Method::GET), "/system/function/", Fault::Close, 2);
    is(&bench.driver.status(&cx(), &target.reference).await.unwrap_err(), Unavailable, Unknown);
}

#[tokio::test]
async fn a_payload_that_breaks_off_is_the_caller_s_own_error() {
    let bench = Bench::netes().await;
    let mut streaming = spec("echo");
    streaming.streaming = true;
    let target = bench.deployed(streaming).await;
    let own = || Error::new(ErrorKind::RequestTimeout, "the caller went silent");
    let parts = [Ok(Bytes::from_static(b"a")), Err(own())];
    let answered = bench.call(&target, |request| request.body = Body::from_stream(stream::iter(parts))).await;
    let error = match answered {
        Err(error) => {
            is(&error, ErrorKind::RequestTimeout, Unknown);
            return;
        }
        // It had begun to answer.
        Ok(response) => response.body.collect(1024).await.unwrap_err(),
    };
    assert_eq!(error.delivery(), Executed);
}

// What the gateway answers

#[tokio::test]
async fn every_answer_that_is_not_the_function_s_says_whose_it_is() {
    type Headers = &'static [(&'static str, &'static str)];
    const PROXY: Headers = &[("x-openfaas-internal", "proxy"), ("x-served-by", "x")];
    const WATCHDOG: Headers =
        &[("x-openfaas-internal", "of-watchdog"), ("x-served-by", "x"), ("x-duration-seconds", "1")];
    const MIDDLEWARE: Headers = &[("x-openfaas-internal", "faas-middleware"), ("x-served-by", "x")];
    const BARE: Headers = &[("x-served-by", "x")];
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    for (status, headers, text, kind, delivery, retry) in [
        (500, PROXY, "Can't reach service for: fn.\n", Unavailable, Unknown, Retry::Transient),
        (503, PROXY, "No endpoints available for: fn.\n", NotReady, NotSent, Retry::Transient),
        (504, WATCHDOG, "", ErrorKind::DeadlineExceeded, Executed, Retry::Never),
        (500, WATCHDOG, "", FunctionBroken, Unknown, Retry::Transient),
        (429, MIDDLEWARE, "Concurrent request limit exceeded.", Unavailable, NotSent, Retry::Transient),
        (404, &[], "error finding function fn.openfaas-fn: x", NotReady, NotSent, Retry::Transient),
        (404, &[], "404 page not found\n", NotReady, NotSent, Retry::Transient),
        (401, &[], "invalid credentials", Engine, NotSent, Retry::Never),
        (405, &[], "", Unsupported, NotSent, Retry::Never),
        (405, BARE, "", Unsupported, NotSent, Retry::Never),
        (431, &[], "431 Request Header Fields Too Large", InvalidArgument, NotSent, Retry::Never),
        (301, &[("location", "/function/other")], "", Engine, NotSent, Retry::Never),
        (502, BARE, "", Unavailable, Unknown, Retry::Transient),
        (502, &[], "a proxy's page", Unavailable, Unknown, Retry::Transient),
        (500, &[], "a proxy's page", Engine, Unknown, Retry::Never),
    ] {
        bench.fake.fail(Some(Method::POST), "/function/", Fault::Answer(status, headers, text), 1);
        let error = bench.failed_call(&target).await;
        is(&error, kind, delivery);
        assert_eq!(error.retry(), retry, "{error:?}");
        assert!(text.is_empty() || !error.to_string().contains(text.trim()), "{error}");
    }
    assert_eq!(bench.fake.calls(target.service()), 0);
}

#[tokio::test]
async fn every_status_of_management_is_a_typed_error() {
    let bench = Bench::netes().await;
    let target = bench.target(spec("echo"));
    for (status, kind, transient) in [
        (302, Engine, false),
        (400, Misconfigured, false),
        (401, Unavailable, true),
        (403, Unavailable, true),
        (405, Engine, false),
        (409, Unavailable, true),
        (429, Unavailable, true),
        (500, Engine, true),
        (501, Unsupported, false),
        (502, Unavailable, true),
        (503, Unavailable, true),
        (504, Unavailable, true),
        (418, Engine, false),
    ] {
        for (method, path) in [(Method::GET, "/system/function/"), (Method::POST, "/system/functions")] {
            bench.fake.fail(Some(method), path, Fault::Answer(status, &[], "inside"), 1);
            let error = bench.try_deploy(&target).await.unwrap_err();
            is(&error, kind, NotSent);
            assert_eq!(error.is_transient(), transient, "{error:?}");
            assert_eq!(error.context_value("engine_status"), Some(status.to_string().as_str()));
            // Why a specification is refused is for its developer.
            assert_eq!(error.to_string().contains("inside"), kind == Misconfigured, "{error}");
        }
    }
    assert_eq!(bench.fake.functions(), []);
    // What the gateway's router does not know says nothing of a function.
    bench.fake.fail(None, "/system/", Fault::Answer(404, &[], "404 page not found\n"), 1);
    is(&bench.driver.status(&cx(), &target.reference).await.unwrap_err(), Engine, NotSent);
}

#[tokio::test]
async fn what_is_no_json_or_cut_short_is_an_error() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    for text in ["<html>", "[{]", "{\"name\": 1}", ""] {
        bench.fake.fail(None, "/system/", Fault::Answer(200, &[], text), 1);
        is(&bench.driver.status(&cx(), &target.reference).await.unwrap_err(), Engine, Unknown);
        bench.fake.fail(None, "/system/", Fault::Answer(200, &[], text), 1);
        is(bench.list().await[0].as_ref().unwrap_err(), Engine, Unknown);
    }
    bench.fake.fail(Some(Method::GET), "/system/functions", Fault::Cut, 1);
    is(bench.list().await[0].as_ref().unwrap_err(), Unavailable, Unknown);
    bench.fake.fail(None, "/system/info", Fault::Answer(200, &[], "[]"), 1);
    is(&bench.driver.probe(&cx()).await.unwrap_err(), Unavailable, NotSent);
}

#[tokio::test]
async fn a_list_that_is_larger_than_the_limit_is_refused() {
    let bench = Bench::with(Options::new(Flavour::Netes), |config| config.with_max_management_bytes(1000)).await;
    for number in 0..10 {
        bench.fake.put(&format!("other-{number}"), json!({"service": "x", "image": "y".repeat(200)}));
    }
    is(bench.list().await[0].as_ref().unwrap_err(), Engine, Unknown);
}

#[tokio::test]
async fn a_gateway_without_prometheus_is_hinted_at() {
    let mut options = Options::new(Flavour::Netes);
    options.prometheus = false;
    let bench = Bench::new(options).await;
    assert!(bench.list().await.is_empty());
    bench.behaving("echo").await;
    let error = bench.list().await.remove(0).unwrap_err();
    is(&error, Unavailable, Unknown);
    assert!(error.to_string().contains("Prometheus"), "{error}");
}

// Credentials

fn secrets(password: &str) -> Arc<MemorySecrets> {
    let secrets = MemorySecrets::new();
    secrets.set("function-gateway".parse().unwrap(), "password".parse().unwrap(), Secret::new(password));
    Arc::new(secrets)
}

fn basic(fake: &Fake) -> OpenFaasConfig {
    let auth =
        serde_json::from_value::<OpenFaasAuth>(json!({"basic": {"user": USER, "password": "password"}})).unwrap();
    OpenFaasConfig::new(&fake.url).with_auth(auth)
}

#[tokio::test]
async fn wrong_credentials_are_a_typed_error_and_a_changed_password_is_taken_over() {
    let mut options = Options::new(Flavour::Netes);
    options.auth = true;
    let fake = Fake::start(options).await;
    let secrets = secrets("wrong");
    let driver = OpenFaas::with_secrets(basic(&fake), Arc::clone(&secrets) as _).unwrap();
    let error = driver.probe(&cx()).await.unwrap_err();
    is(&error, Unavailable, NotSent);
    assert!(error.message().contains("credentials"), "{error}");
    secrets.set("function-gateway".parse().unwrap(), "password".parse().unwrap(), Secret::new(format!("{PASSWORD}\n")));
    // Without another probe: the engine's refusal has it read again.
    driver.namespaces(&cx()).await.unwrap();
    driver.probe(&cx()).await.unwrap();
    driver.health(&cx()).await.unwrap();
}

#[tokio::test]
async fn credentials_go_to_management_only_and_are_never_shown() {
    let mut options = Options::new(Flavour::Netes);
    options.auth = true;
    let fake = Fake::start(options).await;
    let driver = OpenFaas::with_secrets(basic(&fake), secrets(PASSWORD)).unwrap();
    let engine = driver.probe(&cx()).await.unwrap();
    let bench = Bench { fake, driver, gateway: GatewayId::generate() };
    let target = bench.behaving("tell").await;
    let mut shown =
        vec![format!("{engine:?} {:?} {:#?}", bench.driver, bench.driver), format!("{:?}", bench.list().await)];
    let answer = bench.call(&target, |_| {}).await.unwrap();
    shown.push(String::from_utf8_lossy(&answer.body.collect(1 << 20).await.unwrap()).into_owned());
    bench.fake.fail(None, "/system/", Fault::Answer(500, &[], "x"), 1);
    shown.push(format!("{:?}", bench.driver.status(&cx(), &target.reference).await));
    bench.fake.fail(None, "/system/", Fault::Close, 2);
    shown.push(format!("{:#?}", bench.driver.status(&cx(), &target.reference).await));
    let encoded = "YWRtaW46Y2FuYXJ5LXBhc3N3b3JkLTFmN2M";
    for text in shown {
        assert!(!text.contains(PASSWORD) && !text.contains(encoded), "{text}");
    }
    for seen in bench.fake.take_seen() {
        let has = seen.headers.contains_key(header::AUTHORIZATION);
        assert_eq!(has, seen.path.starts_with("/system/"), "{seen:?}");
    }
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect() {
    let fake = Fake::start(Options::new(Flavour::Netes)).await;
    let other = Fake::start(Options::new(Flavour::Netes)).await;
    let driver = OpenFaas::with_secrets(basic(&fake), secrets(PASSWORD)).unwrap();
    let away: &'static str = Box::leak(format!("{}/system/info", other.url).into_boxed_str());
    let location: &'static [(&'static str, &'static str)] = Box::leak(Box::new([("location", away)]));
    fake.fail(None, "/system/", Fault::Answer(307, location, ""), 1);
    is(&driver.probe(&cx()).await.unwrap_err(), Engine, NotSent);
    assert!(other.take_seen().is_empty());
}

#[tokio::test]
async fn credentials_without_a_provider_are_refused() {
    let bench = Bench::netes().await;
    let error = OpenFaas::new(basic(&bench.fake)).unwrap_err();
    assert_eq!(error.kind(), InvalidArgument);
    let missing = OpenFaas::with_secrets(basic(&bench.fake), Arc::new(MemorySecrets::new())).unwrap();
    assert_eq!(missing.probe(&cx()).await.unwrap_err().kind(), Misconfigured);
}

// Functions

#[tokio::test]
async fn an_unknown_namespace_is_told_before_and_at_the_deployment() {
    let config = |config: OpenFaasConfig| config.with_namespaces(["staging"]);
    let bench = Bench::with(Options::new(Flavour::Netes), config).await;
    let staged = spec("echo").with_annotation("openfaas.com/namespace", "staging");
    let violations = bench.driver.check(&cx(), &staged).await.unwrap();
    assert_eq!(violations[0].pointer, "/annotations/openfaas.com~1namespace");
    let target = bench.target(staged.clone());
    is(&bench.try_deploy(&target).await.unwrap_err(), Misconfigured, NotSent);
    // One that is not there does not break the list.
    assert!(bench.list().await.is_empty());
    bench.fake.add_namespace("staging");
    assert_eq!(bench.driver.namespaces(&cx()).await.unwrap(), ["openfaas-fn", "staging"]);
    assert!(bench.driver.check(&cx(), &staged).await.unwrap().is_empty());
    let target = bench.deployed(staged).await;
    bench.call(&target, |_| {}).await.unwrap();
    assert_eq!(bench.list().await.remove(0).unwrap().target, target.reference);
    bench.driver.remove(&cx(), &target.reference).await.unwrap();
    assert_eq!(bench.fake.functions(), []);
}

#[tokio::test]
async fn namespaces_and_secrets_are_removed_with_faasd_too() {
    let bench = Bench::with(Options::new(Flavour::Faasd), |config| config.with_namespace("staging")).await;
    bench.fake.add_namespace("staging");
    let with_secret = spec("variable:KEY").with_secret(SecretBinding::env("key".parse().unwrap(), "KEY"));
    let target = bench.target(with_secret);
    bench.try_deploy_with(&target, &[("KEY", b"value")]).await.unwrap();
    assert_eq!(bench.fake.secrets().len(), 1);
    assert_eq!(bench.fake.functions(), [("staging".to_owned(), target.service().to_owned())]);
    bench.driver.remove(&cx(), &target.reference).await.unwrap();
    assert_eq!((bench.fake.functions(), bench.fake.secrets()), (vec![], vec![]));
    // And again, where a missing one is an error of the engine's.
    bench.driver.remove(&cx(), &target.reference).await.unwrap();
}

#[tokio::test]
async fn an_image_that_never_becomes_ready_is_never_called_ready() {
    let bench = Bench::netes().await;
    let target = bench.target(spec("never-ready"));
    assert_eq!(bench.try_deploy(&target).await.unwrap(), DeploymentState::Progressing);
    for _ in 0..3 {
        let status = bench.driver.status(&cx(), &target.reference).await.unwrap();
        assert_eq!(
            (status.state, status.message.as_str()),
            (DeploymentState::Progressing, "0 of 1 replicas are available")
        );
    }
    // With faasd it can't be pulled.
    let bench = Bench::new(Options::new(Flavour::Faasd)).await;
    let target = bench.target(spec("never-ready"));
    let error = bench.try_deploy(&target).await.unwrap_err();
    is(&error, Misconfigured, NotSent);
    assert!(error.message().contains("unable to pull image"), "{error}");
    assert_eq!(bench.fake.functions(), []);
}

#[tokio::test]
async fn a_cold_start_is_waited_for() {
    let bench = Bench::netes().await;
    let target =
        bench.deployed(spec("echo").with_annotation("openfaas.com/label.com.openfaas.scale.zero", "true")).await;
    bench.fake.set_replicas(target.service(), 0, 0);
    let status = bench.driver.status(&cx(), &target.reference).await.unwrap();
    assert_eq!((status.state, status.idle), (DeploymentState::Ready, true));
    assert!(bench.call(&target, |_| {}).await.unwrap().outcome.is_success());
}

#[tokio::test]
async fn what_was_changed_behind_our_back_is_missed_and_made_again() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    for (pointer, value) in [("/image", json!("other/image:v1")), ("/envVars/BEHAVIOUR", json!("fail"))] {
        bench.fake.tamper(target.service(), pointer, value);
        assert_eq!(bench.state(&target).await, DeploymentState::Missing);
        assert!(bench.list().await.is_empty());
        bench.try_deploy(&target).await.unwrap();
        while bench.state(&target).await != DeploymentState::Ready {}
        assert_eq!(bench.list().await.len(), 1);
        assert!(bench.call(&target, |_| {}).await.unwrap().outcome.is_success());
    }
}

#[tokio::test]
async fn somebody_else_s_function_is_neither_listed_nor_touched() {
    let bench = Bench::netes().await;
    let target = bench.target(spec("echo"));
    let other = json!({"service": target.service(), "image": "theirs", "labels": {"team": "x"}});
    bench.fake.put(target.service(), other.clone());
    bench.fake.put("another", json!({"service": "another", "image": "theirs"}));
    assert_eq!(bench.state(&target).await, DeploymentState::Missing);
    assert!(bench.list().await.is_empty());
    let error = bench.try_deploy(&target).await.unwrap_err();
    is(&error, Engine, NotSent);
    assert!(!error.is_transient());
    bench.driver.remove(&cx(), &target.reference).await.unwrap();
    is(&bench.driver.scale(&cx(), &target.reference, ScaleRequest::new(2)).await.unwrap_err(), NotDeployed, NotSent);
    let logs = bench.driver.logs(&cx(), &target.reference, LogQuery::default()).await.map(drop);
    is(&logs.unwrap_err(), NotDeployed, NotSent);
    assert_eq!(bench.fake.document(target.service()), Some(other));
    assert_eq!(bench.fake.functions().len(), 2);
}

#[tokio::test]
async fn an_item_that_can_t_be_read_is_an_error_and_the_rest_follows() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    let labels = json!({"function-gateway/gateway": bench.gateway});
    bench.fake.put("aaa", json!({"service": "aaa", "image": "x", "labels": labels}));
    bench.fake.put("aab", json!({"service": "aab", "image": "x", "labels": labels, "annotations": {"function-gateway/reference": target.reference}}));
    let (read, unreadable): (Vec<_>, Vec<_>) = bench.list().await.into_iter().partition(Result::is_ok);
    assert_eq!(read.into_iter().map(|item| item.unwrap().target).collect::<Vec<_>>(), [target.reference]);
    assert_eq!(unreadable.len(), 2);
    for item in unreadable {
        is(&item.unwrap_err(), Engine, Unknown);
    }
}

#[tokio::test]
async fn secrets_are_created_updated_and_deleted_with_a_generation() {
    for flavour in [Flavour::Netes, Flavour::Faasd] {
        let bench = Bench::new(Options::new(flavour)).await;
        let bound = |spec: FunctionSpec, name: &str| spec.with_secret(SecretBinding::env("key".parse().unwrap(), name));
        let target = bench.target(bound(bound(spec("variable:A"), "A"), "B"));
        let values: [(&str, &[u8]); 2] = [("A", b"canary-a"), ("B", b"\xff\x00")];
        // Refused once its secrets are there, and tried again.
        bench.fake.fail(Some(Method::POST), "/system/functions", Fault::Answer(502, &[], ""), 1);
        is(&bench.try_deploy_with(&target, &values).await.unwrap_err(), Unavailable, NotSent);
        bench.try_deploy_with(&target, &values).await.unwrap();
        assert_eq!(bench.fake.secrets().len(), 2);
        let document = bench.fake.document(target.service()).unwrap().to_string();
        assert!(!document.contains("canary-a"), "{document}");
        while bench.state(&target).await != DeploymentState::Ready {}
        let answer = bench.call(&target, |_| {}).await.unwrap();
        assert_eq!(answer.body.collect(100).await.unwrap(), "canary-a");
        let sent = bench.fake.take_seen();
        assert!(sent.iter().all(|seen| seen.method != Method::GET || !seen.path.contains("canary")));
        bench.driver.remove(&cx(), &target.reference).await.unwrap();
        assert_eq!((bench.fake.functions(), bench.fake.secrets()), (vec![], vec![]));
    }
}

#[tokio::test]
async fn scaling_is_read_back() {
    let bench = Bench::netes().await;
    let target = bench.behaving("echo").await;
    bench.driver.scale(&cx(), &target.reference, ScaleRequest::new(3)).await.unwrap();
    for wanted in [0, 99] {
        let error = bench.driver.scale(&cx(), &target.reference, ScaleRequest::new(wanted)).await.unwrap_err();
        is(&error, Unsupported, NotSent);
        assert_eq!(error.context_value("replicas"), Some(if wanted == 0 { "1" } else { "5" }));
    }
    let faasd = Bench::new(Options::new(Flavour::Faasd)).await;
    let caps = faasd.driver.capabilities(&"http".parse().unwrap());
    assert!(!caps.scale && !caps.scale_bounds && !caps.cpu_limit && caps.engine_may_repeat);
    assert!(bench.driver.capabilities(&"http".parse().unwrap()).scale);
}

// Calls

#[tokio::test]
async fn what_the_engine_may_repeat_is_only_sent_where_that_does_no_harm() {
    let bench = Bench::netes().await;
    let plain = bench.behaving("tell").await;
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
        let error = bench.call(&plain, |request| request.method = method).await.unwrap_err();
        is(&error, Unsupported, NotSent);
    }
    assert_eq!(bench.fake.calls(plain.service()), 0);
    let mut idempotent = spec("tell");
    idempotent.idempotent = true;
    let accepting = spec("tell").with_annotation("openfaas.com/accept-repeats", "true");
    for spec in [idempotent, accepting] {
        let target = bench.deployed(spec).await;
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let answer = bench.call(&target, |request| (request.method, request.body) = (method, Body::empty()));
            assert!(answer.await.unwrap().outcome.is_success());
        }
    }
    let mut probed = spec("tell");
    probed.readiness_path = Some("/ready".to_owned());
    let target = bench.deployed(probed).await;
    let probe = bench.call(&target, |request| (request.method, request.path) = (Method::GET, "/ready".into()));
    probe.await.unwrap();
    let other = bench.call(&target, |request| (request.method, request.path) = (Method::GET, "/other".into()));
    is(&other.await.unwrap_err(), Unsupported, NotSent);
}

#[tokio::test]
async fn a_path_that_would_leave_the_function_is_not_sent() {
    let bench = Bench::netes().await;
    let target = bench.behaving("tell").await;
    bench.fake.take_seen();
    for path in ["/../../system/functions", "/%2e%2e/x", "//x", "/a\u{7f}"] {
        is(
            &bench.call(&target, |request| request.path = path.to_owned().into()).await.unwrap_err(),
            InvalidArgument,
            NotSent,
        );
    }
    is(
        &bench.call(&target, |request| request.query = Some("a#b".to_owned())).await.unwrap_err(),
        InvalidArgument,
        NotSent,
    );
    assert!(bench.fake.take_seen().is_empty());
}

#[tokio::test]
async fn an_answer_is_the_function_s_own_without_the_engine_s_marks() {
    let bench = Bench::netes().await;
    for (status, outcome) in [
        (302, Outcome::Succeeded),
        (404, Outcome::Rejected),
        (503, Outcome::of_status(http::StatusCode::SERVICE_UNAVAILABLE)),
    ] {
        let target = bench.behaving(&format!("status:{status}")).await;
        let answer = bench.call(&target, |_| {}).await.unwrap();
        assert_eq!((answer.status.as_u16(), &answer.outcome), (status, &outcome));
        let mut names: Vec<_> = answer.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "content-type", "date", "location"]);
    }
}

#[tokio::test]
async fn headers_of_one_hop_and_ids_are_as_they_have_to_be() {
    let bench = Bench::netes().await;
    let target = bench.behaving("tell").await;
    let answer = bench
        .call(&target, |request| {
            for (name, value) in [
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("x-custom", "2"),
                ("authorization", "Own token"),
                ("te", "trailers"),
            ] {
                request.headers.append(name, HeaderValue::from_static(value));
            }
        })
        .await
        .unwrap();
    let told: serde_json::Value = answer.json(1 << 20).await.unwrap();
    let headers = &told["headers"];
    assert_eq!((&headers["x-custom"], &headers["authorization"]), (&json!("2"), &json!("Own token")));
    assert_eq!(headers["x-call-id"], told["invocation_id"]);
    assert!(headers["x-timeout"].as_str().unwrap().ends_with("ms"));
    for absent in ["x-hop", "te", "connection"] {
        assert!(headers[absent].is_null(), "{headers}");
    }
}

#[tokio::test]
async fn a_bare_success_for_events_is_the_gateway_s_timeout() {
    let bench = Bench::netes().await;
    let mut streaming = spec("lines:3");
    streaming.streaming = true;
    let target = bench.deployed(streaming).await;
    bench.fake.fail(Some(Method::POST), "/function/", Fault::Answer(200, &[("x-served-by", "x")], ""), 1);
    is(&bench.failed_call(&target).await, Unavailable, Unknown);
    let answer = bench.call(&target, |_| {}).await.unwrap();
    assert_eq!(answer.body.collect(100).await.unwrap(), "0\n1\n2\n");
}

#[tokio::test]
async fn the_engine_s_queue_takes_what_is_there_and_fits() {
    let bench = Bench::netes().await;
    let queued = spec("echo")
        .with_annotation("openfaas.com/async", "true")
        .with_annotation("openfaas.com/callback-url", "http://back/here");
    assert_eq!(bench.driver.check(&cx(), &queued).await.unwrap(), []);
    let target = bench.deployed(queued.clone()).await;
    let answer = bench
        .call(&target, |request| {
            (request.path, request.query) = ("/sub".into(), Some("q=1".to_owned()));
            request.headers.insert("x-callback-url", HeaderValue::from_static("http://attacker/"));
        })
        .await
        .unwrap();
    assert_eq!((answer.status.as_u16(), answer.outcome), (202, Outcome::Succeeded));
    let call = bench.fake.take_queued().remove(0);
    assert_eq!(
        (call.path.as_str(), call.query.as_deref()),
        (format!("{}/sub", target.service()).as_str(), Some("q=1"))
    );
    assert_eq!(
        (&call.body[..], &call.headers["x-callback-url"]),
        (&b"hello"[..], &HeaderValue::from_static("http://back/here"))
    );
    assert!(!call.headers.contains_key(header::AUTHORIZATION));
    let large = bench.call(&target, |request| request.body = vec![0; 256_001].into()).await.unwrap_err();
    is(&large, ErrorKind::PayloadTooLarge, NotSent);
    is(&bench.call(&target, |request| request.method = Method::PUT).await.unwrap_err(), Unsupported, NotSent);
    bench.fake.delete(target.service());
    // The engine would take it.
    is(&bench.failed_call(&target).await, NotDeployed, NotSent);

    let mut options = Options::new(Flavour::Netes);
    options.queue = false;
    let bench = Bench::new(options).await;
    let violations = bench.driver.check(&cx(), &queued).await.unwrap();
    assert!(violations[0].reason.contains("without a queue"), "{violations:?}");
    let target = bench.deployed(queued).await;
    is(&bench.failed_call(&target).await, Unsupported, NotSent);
}

// Logs

async fn lines(bench: &Bench, target: &Target, query: LogQuery, count: usize) -> Vec<(Option<Timestamp>, Bytes)> {
    let cx = cx();
    let read = bench.driver.logs(&cx, &target.reference, query).await.unwrap();
    read.take(count).map(|line| line.unwrap()).map(|line| (line.at, line.text)).collect().await
}

#[tokio::test]
async fn logs_are_read_from_a_time_to_the_end_and_on() {
    for flavour in [Flavour::Netes, Flavour::Faasd] {
        let bench = Bench::new(Options::new(flavour)).await;
        let target = bench.behaving("log:a line").await;
        for _ in 0..4 {
            bench.call(&target, |_| {}).await.unwrap();
        }
        let all = lines(&bench, &target, LogQuery::default(), 100).await;
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|(at, text)| at.is_some() && text == "a line"));
        let mut query = LogQuery::default();
        query.tail = Some(1);
        assert_eq!(lines(&bench, &target, query, 100).await, all[3..]);
        let mut query = LogQuery::default();
        query.since = all[2].0;
        // Whole seconds are the engine's; what is older is left out here.
        assert_eq!(lines(&bench, &target, query.clone(), 100).await, all[2..]);
        query.follow = true;
        bench.fake.change(|options| options.cuts_follow = true);
        let cx = cx();
        let mut following = bench.driver.logs(&cx, &target.reference, query).await.unwrap();
        for expected in &all[2..] {
            assert_eq!(following.next().await.unwrap().unwrap().at, expected.0);
        }
        // The cut is no end, and what was told is not told again.
        bench.fake.change(|options| options.cuts_follow = false);
        bench.call(&target, |_| {}).await.unwrap();
        let next = following.next().await.unwrap().unwrap();
        assert!(next.at > all[3].0, "{next:?}");
    }
}

#[tokio::test]
async fn a_log_that_is_followed_ends_with_its_function() {
    let bench = Bench::netes().await;
    let target = bench.behaving("log:x").await;
    bench.call(&target, |_| {}).await.unwrap();
    bench.fake.change(|options| options.cuts_follow = true);
    let mut query = LogQuery::default();
    query.follow = true;
    let cx = cx();
    let mut following = bench.driver.logs(&cx, &target.reference, query).await.unwrap();
    following.next().await.unwrap().unwrap();
    bench.fake.delete(target.service());
    assert!(following.next().await.is_none());
}

#[tokio::test]
async fn what_goes_wrong_with_a_log_is_told() {
    let bench = Bench::netes().await;
    let target = bench.behaving("log:x").await;
    bench.call(&target, |_| {}).await.unwrap();
    for (status, kind) in [(500, Engine), (501, Unsupported), (502, Unavailable)] {
        bench.fake.fail(None, "/system/logs", Fault::Answer(status, &[], "log request failed\n"), 1);
        let error = bench.driver.logs(&cx(), &target.reference, LogQuery::default()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), kind);
    }
    bench.fake.fail(None, "/system/logs", Fault::Answer(200, &[], "no json\n"), 1);
    let cx = cx();
    let mut read = bench.driver.logs(&cx, &target.reference, LogQuery::default()).await.unwrap();
    assert_eq!(read.next().await.unwrap().unwrap_err().kind(), Engine);
    assert!(read.next().await.is_none());
    bench.fake.fail(None, "/system/logs", Fault::Cut, 1);
    let mut read = bench.driver.logs(&cx, &target.reference, LogQuery::default()).await.unwrap();
    assert_eq!(read.next().await.unwrap().unwrap_err().kind(), Unavailable);
}

#[tokio::test]
async fn a_shutdown_stops_what_does_not_end() {
    let bench = Bench::netes().await;
    let target = bench.behaving("hang").await;
    let call = bench.call(&target, |_| {});
    let shutdown = async {
        while bench.fake.running(target.service()) == 0 {
            tokio::task::yield_now().await;
        }
        bench.driver.shutdown(Instant::now()).await.unwrap();
    };
    let (stopped, ()) = tokio::join!(call, shutdown);
    is(&stopped.unwrap_err(), ErrorKind::Cancelled, Unknown);
}
