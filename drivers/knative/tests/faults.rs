//! What goes wrong with a cluster, and what the driver says of it: each a typed error with what to do, nothing that hangs, and nothing
//! left behind in the cluster.

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
use fake::{At, Fake, Fault, NAMESPACE, Options, PATIENCE, REVISIONS, SECRETS, SERVICES, TOKEN};
use function_gateway_core::{
    Body, CallContext, Deadline, Delivery, DeployRequest, Deployment, DeploymentState, DeploymentStatus, DriverRef,
    DriverRequest, Error, ErrorKind, FaasDriver, FunctionId, FunctionKey, FunctionSpec, GatewayId, Generation,
    InvocationId, InvokeResponse, ListScope, LogQuery, LogSink, MemorySecrets, Outcome, Principal, Result, Retry,
    Revision, RevisionReason, ScaleRequest, Secret, SecretBinding, SecretVariable, Timestamp,
};
use function_gateway_knative::{HttpVersion, Knative, KnativeAccess, KnativeConfig, KnativeNamespaces};
use futures_util::{StreamExt as _, stream};
use http::{Method, header};
use serde_json::json;

use Delivery::{Executed, NotSent, Unknown};
use ErrorKind::{
    Conflict, DeadlineExceeded, Engine, FunctionBroken, InvalidArgument, Misconfigured, NotDeployed, NotReady,
    Unavailable, Unsupported,
};

fn cx() -> CallContext {
    let principal = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
    CallContext::new(principal).with_invocation_id(InvocationId::generate()).with_deadline(Deadline::after(PATIENCE))
}

/// A driver, the cluster under it, and a gateway's id.
struct Bench {
    fake: Fake,
    driver: Knative,
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

    fn name(&self) -> String {
        format!("{}-g{}", self.service(), self.revision.generation)
    }
}

impl Bench {
    async fn new() -> Self {
        Self::with(Options::default(), |config| config).await
    }

    async fn with(options: Options, change: impl FnOnce(KnativeConfig) -> KnativeConfig) -> Self {
        let fake = Fake::start(options).await;
        let driver = Knative::new(change(fake.config())).unwrap();
        Self { fake, driver, gateway: GatewayId::generate() }
    }

    fn target(&self, spec: FunctionSpec) -> Target {
        let key = FunctionKey::new("acme".parse().unwrap(), "fun".parse().unwrap());
        let created = (Timestamp::now(), "ada".parse().unwrap());
        let (id, reason) = (FunctionId::generate(), RevisionReason::Created);
        self.named(Revision::new(key, id, Generation::FIRST, spec, created, reason))
    }

    fn named(&self, revision: Revision) -> Target {
        let revision = Arc::new(revision);
        Target { reference: self.driver.reference(&self.gateway, &revision), revision }
    }

    fn next(&self, target: &Target, spec: FunctionSpec) -> Target {
        let mut revision = (*target.revision).clone();
        (revision.generation, revision.spec) = (revision.generation.next(), spec);
        self.named(revision)
    }

    async fn try_deploy(&self, target: &Target) -> Result<DeploymentStatus> {
        self.try_deploy_with(target, &[]).await
    }

    async fn try_deploy_with(&self, target: &Target, secrets: &[(&str, &[u8])]) -> Result<DeploymentStatus> {
        let mut request = DeployRequest::new(self.gateway.clone(), Arc::clone(&target.revision));
        for (name, value) in secrets {
            request = request.with_secret(SecretVariable::new(*name, Secret::new(*value)));
        }
        self.driver.deploy(&cx(), &target.reference, request).await
    }

    async fn refused(&self, target: &Target) -> Error {
        self.try_deploy(target).await.unwrap_err()
    }

    async fn deployed(&self, spec: FunctionSpec) -> Target {
        let target = self.target(spec);
        self.ready(&target).await;
        target
    }

    async fn ready(&self, target: &Target) {
        self.try_deploy(target).await.unwrap();
        self.until(target, DeploymentState::Ready).await;
    }

    /// Waits until a target is so, which the driver knows without asking.
    async fn until(&self, target: &Target, state: DeploymentState) -> DeploymentStatus {
        let waiting = async {
            loop {
                let status = self.status(target).await;
                if status.state == state {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it does not come to it")
    }

    async fn behaving(&self, behaviour: &str) -> Target {
        self.deployed(spec(behaviour)).await
    }

    async fn status(&self, target: &Target) -> DeploymentStatus {
        self.driver.status(&cx(), &target.reference).await.unwrap()
    }

    async fn call(&self, target: &Target, change: impl FnOnce(&mut DriverRequest)) -> Result<InvokeResponse> {
        let mut request = DriverRequest::new(Arc::clone(&target.revision), "hello", LogSink::detached(1024));
        change(&mut request);
        self.driver.invoke(&cx(), &target.reference, request).await
    }

    async fn answer(&self, target: &Target) -> Bytes {
        self.call(target, |_| {}).await.unwrap().body.collect(1 << 20).await.unwrap()
    }

    async fn failed_call(&self, target: &Target) -> Error {
        self.call(target, |_| {}).await.unwrap_err()
    }

    async fn list(&self) -> Vec<Result<Deployment>> {
        self.driver.list(&cx(), ListScope::All(self.gateway.clone())).collect().await
    }

    fn fail(&self, method: Method, part: &str, fault: Fault, times: usize) {
        self.fake.fail(At::Api, Some(method), part, fault, times);
    }

    /// Nothing is left of what was deployed.
    fn nothing_is_left(&self) {
        for kind in [SERVICES, REVISIONS, SECRETS] {
            assert_eq!(self.fake.names(kind), [""; 0], "{kind}");
        }
    }
}

fn spec(behaviour: &str) -> FunctionSpec {
    fake::spec("lab.local/fn:1", behaviour)
}

fn secret_spec() -> FunctionSpec {
    spec("variable:KEY").with_secret(SecretBinding::env("key".parse().unwrap(), "KEY"))
}

fn is(error: &Error, kind: ErrorKind, delivery: Delivery) {
    assert_eq!((error.kind(), error.delivery()), (kind, delivery), "{error:?}");
}

fn says(error: &Error, text: &str) {
    assert!(error.message().contains(text), "{error}");
}

// The API server is out of reach

#[tokio::test]
async fn an_api_server_that_is_down_is_unavailable_and_nothing_was_sent() {
    let bench = Bench::new().await;
    let target = bench.target(spec("echo"));
    let access: KnativeAccess = serde_json::from_value(json!({"api_server": {"url": "http://127.0.0.1:1"}})).unwrap();
    let driver = Knative::new(bench.fake.config_with(access)).unwrap();
    let request = DeployRequest::new(bench.gateway.clone(), Arc::clone(&target.revision));
    let call = DriverRequest::new(Arc::clone(&target.revision), "x", LogSink::detached(0));
    for error in [
        driver.probe(&cx()).await.unwrap_err(),
        driver.health(&cx()).await.unwrap_err(),
        driver.deploy(&cx(), &target.reference, request).await.unwrap_err(),
        driver.status(&cx(), &target.reference).await.unwrap_err(),
        driver.remove(&cx(), &target.reference).await.unwrap_err(),
        driver.list(&cx(), ListScope::All(bench.gateway.clone())).next().await.unwrap().unwrap_err(),
        driver.logs(&cx(), &target.reference, LogQuery::default()).await.map(drop).unwrap_err(),
        driver.invoke(&cx(), &target.reference, call).await.unwrap_err(),
    ] {
        is(&error, Unavailable, NotSent);
        assert!(error.is_transient());
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    }
    driver.shutdown(Instant::now()).await.unwrap();
}

#[tokio::test]
async fn calls_go_on_where_the_api_server_is_down() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.fake.fail(At::Api, None, "", Fault::Close, usize::MAX);
    bench.fake.cut_watches();
    assert_eq!(bench.answer(&target).await, "hello");
    is(&bench.refused(&target).await, Unavailable, NotSent);
}

#[tokio::test]
async fn a_request_ends_by_its_own_time() {
    let bench = Bench::with(Options::default(), |config| config.with_request_timeout(Duration::from_millis(200))).await;
    let target = bench.target(spec("echo"));
    for fault in [Fault::Hang, Fault::Stall] {
        bench.fake.fail(At::Api, None, "/readyz", fault, 1);
        let error = bench.driver.health(&cx()).await.unwrap_err();
        is(&error, Unavailable, NotSent);
        says(&error, "in time");
    }
    bench.fake.fail(At::Api, None, "", Fault::Hang, 100);
    is(&bench.driver.status(&cx(), &target.reference).await.unwrap_err(), Unavailable, NotSent);
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_nothing_to_who_only_asks() {
    let bench = Bench::new().await;
    bench.fake.fail(At::Api, None, "/readyz", Fault::Close, 1);
    bench.driver.health(&cx()).await.unwrap();
    bench.fake.fail(At::Api, None, "/readyz", Fault::Close, 2);
    is(&bench.driver.health(&cx()).await.unwrap_err(), Unavailable, NotSent);
}

#[tokio::test]
async fn an_api_server_that_throttles_or_fails_says_when_to_come_again() {
    let bench = Bench::new().await;
    let target = bench.target(spec("echo"));
    let throttled = Fault::status(429, "TooManyRequests", "too many requests").with("retry-after", "7");
    bench.fail(Method::PATCH, "/services/", throttled, 1);
    let error = bench.refused(&target).await;
    is(&error, Unavailable, NotSent);
    assert_eq!((error.retry(), error.retry_after()), (Retry::Transient, Some(Duration::from_secs(7))));
    for (code, text) in [(500, "etcdserver: leader changed"), (503, "apiserver is shutting down"), (504, "Timeout")] {
        bench.fail(Method::PATCH, "/services/", Fault::status(code, "", text), 1);
        let error = bench.refused(&target).await;
        is(&error, Unavailable, NotSent);
        assert!(error.is_transient() && !error.to_string().contains(text), "{error}");
    }
    let webhook = "Internal error occurred: failed calling webhook \"webhook.serving.knative.dev\": connection refused";
    bench.fail(Method::PATCH, "/services/", Fault::status(500, "InternalError", webhook), 1);
    says(&bench.refused(&target).await, "is Knative's control plane up?");
    bench.ready(&target).await;
}

// Credentials and rights

async fn guarded(token: &str) -> (Bench, Arc<MemorySecrets>) {
    let fake = Fake::start(Options { token: Some(TOKEN.to_owned()), ..Options::default() }).await;
    let access = json!({"api_server": {"url": fake.url, "token": "token"}});
    let config = fake.config_with(serde_json::from_value(access).unwrap());
    assert_eq!(Knative::new(config.clone()).unwrap_err().kind(), InvalidArgument);
    let secrets = Arc::new(MemorySecrets::new());
    set_token(&secrets, token);
    let driver = Knative::with_secrets(config, Arc::<MemorySecrets>::clone(&secrets)).unwrap();
    (Bench { fake, driver, gateway: GatewayId::generate() }, secrets)
}

fn set_token(secrets: &MemorySecrets, token: &str) {
    let name = "token".parse().unwrap();
    secrets.set("function-gateway".parse().unwrap(), name, Secret::new(token.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_read_again_and_told_where_it_is_not_renewed() {
    let (bench, secrets) = guarded(&format!("{TOKEN}\n")).await;
    bench.driver.health(&cx()).await.unwrap();
    bench.fake.change(|options| options.token = Some("renewed".to_owned()));
    let error = bench.driver.health(&cx()).await.unwrap_err();
    is(&error, Unavailable, NotSent);
    says(&error, "does not take the gateway's credentials");
    assert!(error.is_transient() && !format!("{error:?}").contains(TOKEN), "{error:?}");
    set_token(&secrets, "renewed");
    // A probe reads them in any case.
    bench.driver.probe(&cx()).await.unwrap();
    bench.driver.health(&cx()).await.unwrap();
}

#[tokio::test]
async fn a_secret_or_a_kubeconfig_that_is_missing_is_named() {
    let (bench, _) = guarded(TOKEN).await;
    let access = json!({"api_server": {"url": bench.fake.url, "token": "other"}});
    let config = bench.fake.config_with(serde_json::from_value(access).unwrap());
    let driver = Knative::with_secrets(config, Arc::new(MemorySecrets::new())).unwrap();
    let error = driver.health(&cx()).await.unwrap_err();
    is(&error, Misconfigured, NotSent);
    assert_eq!(error.context_value("secret"), Some("other"));
    let access = KnativeAccess::Kubeconfig { path: "/nowhere/kubeconfig".into(), context: None };
    let driver = Knative::new(bench.fake.config_with(access)).unwrap();
    let error = driver.health(&cx()).await.unwrap_err();
    is(&error, Misconfigured, NotSent);
    says(&error, "the kubeconfig can't be read");
}

#[tokio::test]
async fn a_kubeconfig_is_read_with_its_context() {
    let fake = Fake::start(Options { token: Some(TOKEN.to_owned()), ..Options::default() }).await;
    let path = std::env::temp_dir().join(format!("function-gateway-kubeconfig-{}", std::process::id()));
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "other",
        "clusters": [{"name": "lab", "cluster": {"server": fake.url}}],
        "users": [{"name": "lab", "user": {"token": TOKEN}}, {"name": "nobody", "user": {}}],
        "contexts": [
            {"name": "lab", "context": {"cluster": "lab", "user": "lab"}},
            {"name": "other", "context": {"cluster": "lab", "user": "nobody"}},
        ],
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let driver = |context: Option<&str>| {
        let access = KnativeAccess::Kubeconfig { path: path.clone(), context: context.map(str::to_owned) };
        Knative::new(fake.config_with(access)).unwrap()
    };
    let (named, current, unknown) = (driver(Some("lab")), driver(None), driver(Some("unknown")));
    named.health(&cx()).await.unwrap();
    is(&current.health(&cx()).await.unwrap_err(), Unavailable, NotSent);
    is(&unknown.health(&cx()).await.unwrap_err(), Misconfigured, NotSent);
    std::fs::remove_file(path).unwrap();
}

/// A plugin is any program that writes a document: this one reads its token from a file, which is renewed like one that expires.
#[tokio::test]
async fn a_plugin_of_the_kubeconfig_gives_the_token_and_is_asked_again() {
    let fake = Fake::start(Options { token: Some(TOKEN.to_owned()), ..Options::default() }).await;
    let at = |name: &str| std::env::temp_dir().join(format!("function-gateway-{name}-{}", std::process::id()));
    let (path, token) = (at("plugin"), at("plugin-token"));
    let script = r#"printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}' "$(cat "$0")""#;
    let expires = script.replace(r#""token""#, r#""expirationTimestamp":"2020-01-01T00:00:00Z","token""#);
    let expiring = format!("[ -e \"$0\" ] || {{ echo canary; exit 3; }}; {expires}");
    let version = "client.authentication.k8s.io/v1";
    let plugin = |args: serde_json::Value| {
        let interactive = "Never";
        json!({"apiVersion": version, "command": "sh", "args": args, "interactiveMode": interactive})
    };
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": fake.url}}],
        "users": [
            {"name": "plugin", "user": {"exec": plugin(json!(["-c", script, token]))}},
            {"name": "broken", "user": {"exec": plugin(json!(["-c", "echo canary >&2; exit 3"]))}},
            {"name": "expiring", "user": {"exec": plugin(json!(["-c", expiring, token]))}},
        ],
        "contexts": [
            {"name": "lab", "context": {"cluster": "lab", "user": "plugin"}},
            {"name": "broken", "context": {"cluster": "lab", "user": "broken"}},
            {"name": "expiring", "context": {"cluster": "lab", "user": "expiring"}},
        ],
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    std::fs::write(&token, TOKEN).unwrap();
    let driver = |context: Option<&str>| {
        let access = KnativeAccess::Kubeconfig { path: path.clone(), context: context.map(str::to_owned) };
        Knative::new(fake.config_with(access)).unwrap()
    };
    let (works, broken) = (driver(None), driver(Some("broken")));
    works.health(&cx()).await.unwrap();
    fake.change(|options| options.token = Some("renewed".to_owned()));
    std::fs::write(&token, "renewed").unwrap();
    works.probe(&cx()).await.unwrap();
    works.health(&cx()).await.unwrap();

    let error = broken.health(&cx()).await.unwrap_err();
    is(&error, Misconfigured, NotSent);
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    // Credentials that have expired are to be renewed by a plugin that works no more.
    let expiring = driver(Some("expiring"));
    expiring.health(&cx()).await.unwrap();
    std::fs::remove_file(&token).unwrap();
    let error = expiring.health(&cx()).await.unwrap_err();
    is(&error, Misconfigured, NotSent);
    assert!(error.is_transient() && !format!("{error:?}").contains("canary"), "{error:?}");
    std::fs::write(&path, "users: [{name: a, user: {token: canary, tok").unwrap();
    let error = driver(None).health(&cx()).await.unwrap_err();
    is(&error, Misconfigured, NotSent);
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let bench = Bench::new().await;
    let target = bench.target(secret_spec());
    for (verb, resource, group) in [("patch", SERVICES, "serving.knative.dev"), ("patch", SECRETS, "")] {
        bench.fake.change(|options| options.forbidden = vec![(verb, resource)]);
        let error = bench.try_deploy_with(&target, &[("KEY", b"v")]).await.unwrap_err();
        is(&error, Unavailable, NotSent);
        assert!(error.is_transient());
        says(
            &error,
            &format!(
                "it can't {verb} resource \"{resource}\" in API group \"{group}\" in the namespace \"{NAMESPACE}\""
            ),
        );
        assert!(!error.to_string().contains("lab-nobody"), "{error}");
    }
    bench.fake.change(|options| options.forbidden = vec![("list", SERVICES)]);
    says(bench.list().await[0].as_ref().unwrap_err(), "it can't list resource");
    // Without a list there is no watch, and a state is asked for.
    assert_eq!(bench.status(&target).await.state, DeploymentState::Missing);
    bench.fake.change(|options| options.forbidden.push(("get", SERVICES)));
    says(&bench.driver.status(&cx(), &target.reference).await.unwrap_err(), "it can't get resource");
    bench.fake.change(|options| options.forbidden.clear());
    bench.try_deploy_with(&target, &[("KEY", b"v")]).await.unwrap();
    bench.until(&target, DeploymentState::Ready).await;
    bench.fake.change(|options| options.forbidden = vec![("get", "pods/log")]);
    let error = bench.driver.logs(&cx(), &target.reference, LogQuery::default()).await.map(drop).unwrap_err();
    says(&error, "it can't get resource \"pods/log\"");
    bench.fake.change(|options| options.forbidden = vec![("delete", SERVICES)]);
    says(&bench.driver.remove(&cx(), &target.reference).await.unwrap_err(), "it can't delete resource");
    bench.fake.change(|options| options.forbidden.clear());
    bench.driver.remove(&cx(), &target.reference).await.unwrap();
    bench.nothing_is_left();
}

// What the cluster refuses

#[tokio::test]
async fn a_cluster_without_knative_says_so() {
    let bench = Bench::with(Options { installed: false, ..Options::default() }, |config| config).await;
    let target = bench.target(spec("echo"));
    for error in [
        bench.driver.probe(&cx()).await.unwrap_err(),
        bench.refused(&target).await,
        bench.driver.status(&cx(), &target.reference).await.unwrap_err(),
        bench.list().await.remove(0).unwrap_err(),
    ] {
        is(&error, Unavailable, NotSent);
        assert!(error.is_transient());
        says(&error, "Knative Serving is not installed");
    }
    bench.fake.change(|options| options.installed = true);
    assert_eq!(bench.driver.probe(&cx()).await.unwrap().name, "knative");
    bench.ready(&target).await;
}

#[tokio::test]
async fn a_refusal_keeps_its_words_and_is_final() {
    let bench = Bench::new().await;
    let target = bench.target(spec("echo"));
    bench.fake.change(|options| options.refusal = Some("validation failed: images of lab.local are not allowed"));
    let error = bench.refused(&target).await;
    is(&error, Misconfigured, NotSent);
    assert_eq!(error.retry(), Retry::Never);
    assert_eq!(
        error.message(),
        "the cluster refuses what it was asked for: validation failed: images of lab.local are not allowed"
    );
    bench.fake.change(|options| (options.refusal, options.quota_full) = (None, true));
    let error = bench.refused(&target).await;
    is(&error, Unavailable, NotSent);
    assert_eq!(error.retry(), Retry::Never);
    says(&error, "a quota of the namespace is used up");
    bench.nothing_is_left();
}

#[tokio::test]
async fn a_namespace_that_is_missing_is_told() {
    let bench = Bench::with(Options::default(), |config| {
        config.with_namespaces(KnativeNamespaces::PerTenant { prefix: "fn-".to_owned() })
    })
    .await;
    let target = bench.target(spec("echo"));
    let error = bench.refused(&target).await;
    is(&error, Unavailable, NotSent);
    says(&error, "the namespace does not exist: create it");
    bench.fake.add_namespace("fn-acme");
    bench.ready(&target).await;
    assert_eq!(bench.answer(&target).await, "hello");
}

#[tokio::test]
async fn a_revision_that_fails_says_why() {
    let bench = Bench::new().await;
    for (reason, message, told) in [
        ("ImagePullBackOff", "Back-off pulling image", "the image can't be pulled: Back-off"),
        ("ContainerMissing", "Unable to fetch image", "the image can't be found: Unable"),
        ("ExitCode3", "boom", "the container ends with the exit code 3: boom"),
        ("Unschedulable", "0/1 nodes are available", "no node has room for it: 0/1"),
        ("ProgressDeadlineExceeded", "", "it does not listen"),
        ("CreateContainerConfigError", "secret \"a\" not found", "the container can't be made"),
    ] {
        let target = bench.target(spec(&format!("broken:{reason}:{message}")));
        bench.try_deploy(&target).await.unwrap();
        let failed = bench.until(&target, DeploymentState::Failed).await;
        assert!(failed.message.starts_with(told), "{failed:?}");
        bench.driver.remove(&cx(), &target.reference).await.unwrap();
    }
    bench.nothing_is_left();
}

#[tokio::test]
async fn what_is_on_its_way_is_never_ready() {
    let bench = Bench::new().await;
    bench.fake.change(|options| options.controlled = false);
    let target = bench.target(spec("echo"));
    // Nobody has looked at it yet.
    let status = bench.try_deploy(&target).await.unwrap();
    assert_eq!(
        (status.state, status.message.as_str()),
        (DeploymentState::Progressing, "Knative has not looked at it yet")
    );
    is(&bench.failed_call(&target).await, NotReady, NotSent);
    bench.fake.change(|options| (options.controlled, options.ingress_up) = (true, false));
    let uninitialized = |fake: &Fake| {
        let service = fake.object(SERVICES, target.service()).unwrap();
        service["status"]["conditions"][2]["reason"] == "Uninitialized"
    };
    bench.fake.until(uninitialized).await;
    let waiting = "the revision is ready, and its route is not: Waiting for load balancer to be ready";
    while bench.status(&target).await.message != waiting {
        tokio::task::yield_now().await;
    }
    bench.fake.change(|options| options.ingress_up = true);
    bench.until(&target, DeploymentState::Ready).await;
}

// Writes that meet others

#[tokio::test]
async fn a_write_that_others_came_before_is_begun_anew_a_few_times() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    let stale = || Fault::status(409, "Conflict", "the object has been modified");
    let second = bench.next(&target, spec("echo"));
    bench.fail(Method::PATCH, "/services/", stale(), 3);
    bench.ready(&second).await;
    bench.fail(Method::DELETE, "/services/", stale(), 100);
    bench.fail(Method::PATCH, "/services/", stale(), 100);
    let third = bench.next(&second, spec("echo"));
    let error = bench.refused(&third).await;
    is(&error, Conflict, NotSent);
    assert!(error.is_transient());
    says(&error, "does another controller fight");
    is(&bench.driver.remove(&cx(), &target.reference).await.unwrap_err(), Conflict, NotSent);
    // What was there serves as before.
    assert_eq!(bench.answer(&second).await, "hello");
}

#[tokio::test]
async fn generations_that_are_deployed_at_a_time_all_get_there() {
    let bench = Bench::new().await;
    let first = bench.behaving("echo").await;
    let others: Vec<_> = std::iter::successors(Some(first.clone()), |last| Some(bench.next(last, spec("echo"))))
        .skip(1)
        .take(3)
        .collect();
    let deployed = futures_util::future::join_all(others.iter().map(|target| bench.try_deploy(target))).await;
    for status in deployed {
        status.unwrap();
    }
    for target in others.iter().chain([&first]) {
        // Whose revision was not made before the next one came is missing, and deployed again, as the gateway does.
        while bench.status(target).await.state != DeploymentState::Ready {
            if bench.status(target).await.state == DeploymentState::Missing {
                bench.try_deploy(target).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.answer(target).await, "hello");
    }
    let cx = cx();
    let removed = others.iter().map(|target| bench.driver.remove(&cx, &target.reference));
    let removed = futures_util::future::join_all(removed).await;
    for removed in removed {
        removed.unwrap();
    }
    assert_eq!(bench.answer(&first).await, "hello");
    assert_eq!(bench.fake.names(REVISIONS), [first.name()]);
    bench.driver.remove(&cx, &first.reference).await.unwrap();
    bench.nothing_is_left();
}

#[tokio::test]
async fn the_newest_generation_can_go_and_the_one_before_it_serves_on() {
    let bench = Bench::new().await;
    let first = bench.behaving("echo").await;
    let second = bench.next(&first, spec("broken:ExitCode1:boom"));
    bench.try_deploy(&second).await.unwrap();
    bench.until(&second, DeploymentState::Failed).await;
    assert_eq!(bench.status(&first).await.state, DeploymentState::Ready);
    bench.driver.remove(&cx(), &second.reference).await.unwrap();
    // Knative would make it again, were it still the newest.
    assert_eq!(bench.fake.names(REVISIONS), [first.name()]);
    assert_eq!(bench.answer(&first).await, "hello");
    let third = bench.next(&second, spec("echo"));
    bench.ready(&third).await;
}

#[tokio::test]
async fn what_others_manage_stays_theirs_and_what_a_generation_is_made_of_is_set_right() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.fake.tamper(target.service(), "/metadata/labels", {
        let mut labels = bench.fake.object(SERVICES, target.service()).unwrap()["metadata"]["labels"].clone();
        labels["team"] = json!("theirs");
        labels
    });
    bench.fake.tamper(target.service(), "/spec/traffic", json!([{"latestRevision": true, "percent": 100}]));
    bench.until(&target, DeploymentState::Missing).await;
    bench.ready(&target).await;
    let service = bench.fake.object(SERVICES, target.service()).unwrap();
    assert_eq!(
        (&service["metadata"]["labels"]["team"], &service["spec"]["traffic"][1]["tag"]),
        (&json!("theirs"), &json!("g1"))
    );
    assert_eq!(bench.answer(&target).await, "hello");
}

#[tokio::test]
async fn somebody_else_s_service_is_not_touched() {
    let bench = Bench::new().await;
    let target = bench.target(spec("echo"));
    bench.fake.put(SERVICES, NAMESPACE, json!({"metadata": {"name": target.service()}, "status": {"frozen": true}}));
    let error = bench.refused(&target).await;
    is(&error, Engine, NotSent);
    says(&error, "does not bear this gateway's labels");
    assert_eq!(bench.status(&target).await.state, DeploymentState::Missing);
    is(&bench.failed_call(&target).await, NotDeployed, NotSent);
    bench.driver.remove(&cx(), &target.reference).await.unwrap();
    assert_eq!(bench.fake.names(SERVICES), [target.service()]);
    // One that bears the labels, and can't be read, is an error in its place.
    let labels = json!({"function-gateway/gateway": bench.gateway.as_str()});
    bench.fake.put(
        SERVICES,
        NAMESPACE,
        json!({"metadata": {"name": "odd", "labels": labels}, "status": {"frozen": true}}),
    );
    let other = bench.behaving("echo").await;
    let listed = bench.list().await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().any(|item| item.as_ref().is_ok_and(|deployment| deployment.target == other.reference)));
    assert!(listed.iter().any(|item| item.as_ref().is_err_and(|error| error.kind() == Engine)));
}

#[tokio::test]
async fn what_is_deleted_behind_our_back_is_missing_and_can_be_deployed_again() {
    let bench = Bench::new().await;
    let first = bench.behaving("echo").await;
    let second = bench.next(&first, spec("echo"));
    bench.ready(&second).await;
    // Of the newest one Knative makes another by itself; the other one is missing.
    bench.fake.delete(REVISIONS, &first.name());
    bench.fake.delete(SERVICES, "nobody");
    is(&bench.failed_call(&first).await, NotReady, NotSent);
    bench.fake.delete(SERVICES, first.service());
    for target in [&first, &second] {
        is(&bench.failed_call(target).await, NotDeployed, NotSent);
        bench.until(target, DeploymentState::Missing).await;
    }
    assert!(bench.list().await.is_empty());
    bench.ready(&second).await;
    assert_eq!(bench.answer(&second).await, "hello");
}

#[tokio::test]
async fn a_deletion_that_hangs_on_a_finalizer_is_told_and_tried_again() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.fake.hold(target.service(), Some("example.com/keep"));
    for _ in 0..2 {
        let error = bench.driver.remove(&cx(), &target.reference).await.unwrap_err();
        is(&error, Unavailable, NotSent);
        assert!(error.is_transient());
        says(&error, "waits for example.com/keep");
    }
    assert_eq!(bench.status(&target).await.state, DeploymentState::Missing);
    says(&bench.refused(&target).await, "waits for example.com/keep");
    bench.fake.hold(target.service(), None);
    bench.driver.remove(&cx(), &target.reference).await.unwrap();
    bench.nothing_is_left();
    bench.ready(&target).await;
}

#[tokio::test]
async fn secrets_come_and_go_with_their_generation() {
    let bench = Bench::new().await;
    let first = bench.target(secret_spec());
    let deploy = async |target: &Target, value: &[u8]| {
        bench.try_deploy_with(target, &[("KEY", value)]).await.unwrap();
        bench.until(target, DeploymentState::Ready).await;
    };
    deploy(&first, b"one").await;
    assert_eq!(bench.answer(&first).await, "one");
    let second = bench.next(&first, secret_spec());
    deploy(&second, b"two\xff").await;
    assert_eq!((bench.answer(&first).await, bench.answer(&second).await), ("one".into(), (&b"two\xff"[..]).into()));
    assert_eq!(bench.fake.names(SECRETS), [first.name(), second.name()]);
    bench.driver.remove(&cx(), &first.reference).await.unwrap();
    assert_eq!(bench.fake.names(SECRETS), [second.name()]);
    // Who deletes the Service behind our back leaves none behind.
    bench.fake.delete(SERVICES, second.service());
    assert_eq!(bench.fake.names(SECRETS), [""; 0]);
    // One whose deployment failed in the middle is found by who removes it.
    let third = bench.next(&second, secret_spec());
    bench.fail(Method::PATCH, "/services/", Fault::Close, 1);
    bench.try_deploy_with(&third, &[("KEY", b"three")]).await.unwrap_err();
    assert_eq!(bench.fake.names(SECRETS), [third.name()]);
    bench.driver.remove(&cx(), &third.reference).await.unwrap();
    bench.nothing_is_left();
}

#[tokio::test]
async fn a_removal_that_knative_does_not_take_over_is_tried_again() {
    let bench = Bench::new().await;
    let first = bench.behaving("echo").await;
    let second = bench.next(&first, spec("echo"));
    bench.ready(&second).await;
    bench.fake.change(|options| options.controlled = false);
    tokio::time::pause();
    let error = bench.driver.remove(&cx(), &second.reference).await.unwrap_err();
    tokio::time::resume();
    is(&error, Unavailable, NotSent);
    says(&error, "is its controller up?");
    bench.fake.change(|options| options.controlled = true);
    bench.driver.remove(&cx(), &second.reference).await.unwrap();
    assert_eq!(bench.fake.names(REVISIONS), [first.name()]);
}

// Watches

#[tokio::test]
async fn a_watch_goes_on_after_a_cut_and_after_it_has_expired() {
    let bench = Bench::new().await;
    let first = bench.behaving("echo").await;
    assert_eq!(bench.fake.watching(), 1);
    for forget in [false, true] {
        bench.fake.take_seen();
        if forget {
            bench.fake.forget();
        }
        bench.fake.cut_watches();
        bench.fake.until(|fake| fake.watching() == 0).await;
        // What happens meanwhile is not missed.
        let target = bench.target(spec("echo"));
        bench.try_deploy(&target).await.unwrap();
        bench.fake.until(|fake| fake.watching() == 1).await;
        bench.until(&target, DeploymentState::Ready).await;
        let lists = bench.fake.take_seen().into_iter().filter(|seen| seen.query.contains("limit=")).count();
        assert_eq!(lists, usize::from(forget));
    }
    assert_eq!(bench.answer(&first).await, "hello");
}

#[tokio::test]
async fn waiting_costs_no_request() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.fake.take_seen();
    for _ in 0..100 {
        assert_eq!(bench.status(&target).await.state, DeploymentState::Ready);
        bench.answer(&target).await;
    }
    let asked = bench.fake.take_seen().into_iter().filter(|seen| seen.at == At::Api).count();
    assert!(asked <= 1, "{asked} requests");
}

#[tokio::test]
async fn a_watch_that_tells_errors_is_begun_anew() {
    let bench = Bench::new().await;
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","reason":"Expired","code":410}}"#;
    let failed = r#"{"type":"ERROR","object":{"kind":"Status","reason":"InternalError","message":"x","code":500}}"#;
    for fault in [
        Fault::answer(200, gone),
        Fault::answer(200, failed),
        Fault::answer(200, "no json\n"),
        Fault::status(410, "Expired", "too old"),
        Fault::status(429, "TooManyRequests", "later"),
        Fault::Close,
    ] {
        bench.fail(Method::GET, "watch=1", fault, 1);
    }
    let target = bench.behaving("echo").await;
    bench.fake.until(|fake| fake.watching() == 1).await;
    assert_eq!(bench.status(&target).await.state, DeploymentState::Ready);
}

#[tokio::test]
async fn a_list_that_has_expired_is_begun_anew_once() {
    let bench = Bench::with(Options::default(), |config| config.with_page_size(2)).await;
    for _ in 0..5 {
        bench.behaving("echo").await;
    }
    assert_eq!(bench.list().await.into_iter().filter(Result::is_ok).count(), 5);
    let expired = || Fault::status(410, "Expired", "The provided continue parameter is too old");
    bench.fail(Method::GET, "continue=", expired(), 1);
    assert_eq!(bench.list().await.into_iter().filter(Result::is_ok).count(), 5);
    bench.fail(Method::GET, "continue=", expired(), 2);
    is(bench.list().await[0].as_ref().unwrap_err(), Unavailable, NotSent);
}

#[tokio::test]
async fn a_shutdown_ends_watches_and_so_does_a_drop() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.driver.shutdown(Instant::now() + PATIENCE).await.unwrap();
    bench.fake.until(|fake| fake.watching() == 0).await;
    // What is shared stays, and is told without a watch.
    assert_eq!(bench.status(&target).await.state, DeploymentState::Ready);
    assert_eq!(bench.fake.watching(), 0);
    assert_eq!(bench.refused(&target).await.kind(), ErrorKind::ShuttingDown);
    let other = Knative::new(bench.fake.config()).unwrap();
    other.status(&cx(), &target.reference).await.unwrap();
    bench.fake.until(|fake| fake.watching() == 1).await;
    drop(other);
    bench.fake.until(|fake| fake.watching() == 0).await;
}

// Calls

#[tokio::test]
async fn an_ingress_that_is_down_is_unavailable_and_nothing_was_sent() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    let routing = serde_json::from_value(json!({"ingress": {"url": "http://127.0.0.1:1"}})).unwrap();
    let driver = Knative::new(bench.fake.config().with_routing(routing)).unwrap();
    let call = DriverRequest::new(Arc::clone(&target.revision), "x", LogSink::detached(0));
    let error = driver.invoke(&cx(), &target.reference, call).await.unwrap_err();
    is(&error, Unavailable, NotSent);
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_in_a_call_may_have_delivered_it() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.fake.fail(At::Ingress, None, "", Fault::Close, 1);
    is(&bench.failed_call(&target).await, Unavailable, Unknown);
    bench.fake.fail(At::Ingress, None, "", Fault::CloseAfter, 1);
    let before = bench.fake.calls(&target.name());
    is(&bench.failed_call(&target).await, Unavailable, Unknown);
    // It was executed, and not sent again by the driver.
    assert_eq!(bench.fake.calls(&target.name()), before + 1);
    bench.fake.fail(At::Ingress, None, "", Fault::Cut, 1);
    is(&bench.failed_call(&target).await, FunctionBroken, Executed);
}

#[tokio::test]
async fn what_the_ingress_and_knative_answer_is_told_from_what_the_function_does() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    let plain = |status: u16, text: &str| {
        Fault::answer(status, text).with("server", "envoy").with("x-envoy-upstream-service-time", "4")
    };
    let ingress = |status: u16, text: &str| Fault::answer(status, text).with("server", "envoy");
    for (fault, kind, delivery) in [
        (ingress(404, ""), NotReady, NotSent),
        (
            plain(404, "Error getting active endpoint: revision.serving.knative.dev \"x\" not found\n"),
            NotReady,
            NotSent,
        ),
        (plain(502, "dial tcp 127.0.0.1:8080: connect: connection refused\n"), Unavailable, NotSent),
        (plain(502, "EOF\n"), FunctionBroken, Unknown),
        (plain(503, "pending request queue full\n"), Unavailable, NotSent),
        (plain(504, "activator request timeout"), DeadlineExceeded, Unknown),
        (plain(504, "request timeout"), DeadlineExceeded, Unknown),
        (ingress(503, "no healthy upstream"), Unavailable, Unknown),
        (ingress(301, ""), Engine, NotSent),
        (ingress(429, ""), Unavailable, NotSent),
    ] {
        bench.fake.fail(At::Ingress, None, "", fault, 1);
        is(&bench.failed_call(&target).await, kind, delivery);
    }
    // The same statuses, and the form of Go's `http.Error`, are the function's where the words are.
    for (status, text) in [(404, "no such thing"), (502, "upstream said EOF"), (503, "too busy"), (504, "too late")] {
        for streaming in [false, true] {
            let mut spec = spec(&format!("text:{status}:{text}"));
            spec.streaming = streaming;
            let target = bench.deployed(spec).await;
            let answer = bench.call(&target, |_| {}).await.unwrap();
            assert_eq!(answer.status.as_u16(), status);
            assert!(!answer.headers.contains_key("x-envoy-upstream-service-time"));
            assert_eq!(answer.body.collect(100).await.unwrap(), text);
        }
    }
}

#[tokio::test]
async fn answers_pass_as_they_are_and_hops_do_not() {
    let bench = Bench::new().await;
    for (status, outcome) in [(301, "succeeded"), (404, "rejected"), (503, "failed")] {
        let target = bench.behaving(&format!("status:{status}")).await;
        let answer = bench.call(&target, |_| {}).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), &answer.headers[header::LOCATION]),
            (status, &"/elsewhere".parse().unwrap())
        );
        assert!(!answer.headers.contains_key("x-hop") && !answer.headers.contains_key(header::SERVER));
        let told = match &answer.outcome {
            Outcome::Failed(_) => "failed",
            Outcome::Rejected => "rejected",
            _ => "succeeded",
        };
        assert_eq!(told, outcome, "{:?}", answer.outcome);
    }
}

#[tokio::test]
async fn a_function_that_is_full_refuses_and_nothing_was_executed() {
    let bench = Bench::new().await;
    let mut hanging = spec("hang");
    hanging.scale = Some(serde_json::from_value(json!({"instance_concurrency": 1})).unwrap());
    let target = bench.deployed(hanging).await;
    let call = bench.call(&target, |_| {});
    let others = async {
        let name = target.name();
        while bench.fake.running(&name) == 0 {
            tokio::task::yield_now().await;
        }
        let error = bench.failed_call(&target).await;
        is(&error, Unavailable, NotSent);
        assert!(error.retry_after().is_some());
        bench.driver.remove(&cx(), &target.reference).await.unwrap();
    };
    let (stopped, ()) = tokio::join!(call, others);
    is(&stopped.unwrap_err(), FunctionBroken, Unknown);
}

#[tokio::test]
async fn a_function_at_zero_is_ready_and_wakes() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.fake.scale_to_zero(&target.name());
    let driver = Knative::new(bench.fake.config()).unwrap();
    let status = driver.status(&cx(), &target.reference).await.unwrap();
    assert_eq!((status.state, status.idle), (DeploymentState::Ready, true));
    let lines: Vec<_> = driver.logs(&cx(), &target.reference, LogQuery::default()).await.unwrap().collect().await;
    assert!(lines.is_empty());
    assert_eq!(bench.answer(&target).await, "hello");
    let status = Knative::new(bench.fake.config()).unwrap().status(&cx(), &target.reference).await.unwrap();
    assert!(!status.idle);
}

#[tokio::test]
async fn what_may_be_executed_twice_needs_consent() {
    let bench = Bench::new().await;
    let mut probed = spec("echo");
    probed.readiness_path = Some("/ready".to_owned());
    let target = bench.deployed(probed).await;
    let get = |path: &'static str| {
        move |request: &mut DriverRequest| (request.method, request.path) = (Method::GET, path.into())
    };
    let error = bench.call(&target, get("/a")).await.unwrap_err();
    is(&error, Unsupported, NotSent);
    says(&error, "knative.dev/accept-repeats");
    bench.call(&target, get("/ready")).await.unwrap();
    let accepting = bench.deployed(spec("echo").with_annotation("knative.dev/accept-repeats", "true")).await;
    bench.call(&accepting, get("/a")).await.unwrap();
    for method in [Method::TRACE, Method::HEAD, Method::from_bytes(b"PURGE").unwrap()] {
        bench.call(&accepting, |request| request.method = method).await.unwrap();
    }
    is(&bench.call(&accepting, |request| request.method = Method::CONNECT).await.unwrap_err(), Unsupported, NotSent);
    is(&bench.call(&accepting, |request| request.path = "/../x".into()).await.unwrap_err(), InvalidArgument, NotSent);
}

#[tokio::test]
async fn what_is_hidden_is_called_by_the_ingress_inside() {
    let bench = Bench::new().await;
    let target = bench.deployed(spec("echo").with_annotation("knative.dev/visibility", "cluster-local")).await;
    bench.fake.take_seen();
    assert_eq!(bench.answer(&target).await, "hello");
    assert!(bench.fake.take_seen().iter().any(|seen| seen.at == At::LocalIngress));
}

#[tokio::test]
async fn functions_are_called_by_http_2_without_tls_too() {
    let options = Options { h2c: true, ..Options::default() };
    let bench = Bench::with(options, |config| config.with_http_version(HttpVersion::Http2)).await;
    let target = bench.behaving("echo").await;
    assert_eq!(bench.answer(&target).await, "hello");
}

#[tokio::test]
async fn a_call_ends_before_knative_would_break_it_off_unseen() {
    let bench = Bench::with(Options::default(), |config| config.with_max_call(Duration::from_secs(1))).await;
    let mut streaming = spec("stall");
    streaming.streaming = true;
    let target = bench.deployed(streaming).await;
    let answer = bench.call(&target, |_| {}).await.unwrap();
    let error = answer.body.collect(100).await.unwrap_err();
    is(&error, DeadlineExceeded, Executed);
    assert_eq!(error.context_value("timeout"), Some("engine"));
}

#[tokio::test]
async fn the_error_of_a_payload_is_its_own() {
    let bench = Bench::new().await;
    let mut streaming = spec("hang");
    streaming.streaming = true;
    let target = bench.deployed(streaming).await;
    let slow = || Error::new(ErrorKind::RequestTimeout, "the payload did not come in time");
    let parts = stream::iter([Ok(Bytes::from_static(b"a")), Err(slow())]);
    let error = bench.call(&target, |request| request.body = Body::from_stream(parts)).await.unwrap_err();
    is(&error, ErrorKind::RequestTimeout, Unknown);
}

#[tokio::test]
async fn a_body_that_stalls_ends_by_the_time_of_its_call() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    bench.fake.fail(At::Ingress, None, "", Fault::Stall, 1);
    // That is its caller's: dropping it lets the connection go.
    let stalled = tokio::time::timeout(Duration::from_millis(200), bench.call(&target, |_| {})).await;
    assert!(stalled.is_err(), "{stalled:?}");
    assert_eq!(bench.answer(&target).await, "hello");
    bench.driver.shutdown(Instant::now() + PATIENCE).await.unwrap();
}

#[tokio::test]
async fn scaling_is_not_offered() {
    let bench = Bench::new().await;
    let target = bench.behaving("echo").await;
    let error = bench.driver.scale(&cx(), &target.reference, ScaleRequest::new(2)).await.unwrap_err();
    is(&error, Unsupported, NotSent);
}

// Logs

#[tokio::test]
async fn logs_are_read_from_a_time_to_the_end_and_on() {
    let bench = Bench::new().await;
    let target = bench.behaving("log:a line").await;
    for _ in 0..4 {
        bench.answer(&target).await;
    }
    let lines = async |query: LogQuery| {
        let cx = cx();
        let read = bench.driver.logs(&cx, &target.reference, query).await.unwrap();
        read.map(|line| line.unwrap()).collect::<Vec<_>>().await
    };
    let all = lines(LogQuery::default()).await;
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|line| line.at.is_some() && line.text == "a line"));
    assert_eq!(all[0].instance.as_deref(), Some(format!("{}-deployment-abc", target.name()).as_str()));
    let mut query = LogQuery::default();
    query.tail = Some(1);
    assert_eq!(lines(query).await, all[3..]);
    let mut query = LogQuery::default();
    query.since = all[2].at;
    // Whole seconds are the API server's; what is older is left out here.
    assert_eq!(lines(query.clone()).await, all[2..]);
    query.follow = true;
    let cx = cx();
    let mut following = bench.driver.logs(&cx, &target.reference, query).await.unwrap();
    for expected in &all[2..] {
        assert_eq!(following.next().await.unwrap().unwrap().at, expected.at);
    }
    bench.answer(&target).await;
    let next = following.next().await.unwrap().unwrap();
    assert!(next.at > all[3].at, "{next:?}");
}

#[tokio::test]
async fn a_log_that_is_followed_goes_on_after_a_cut_and_ends_with_its_function() {
    let bench = Bench::new().await;
    let target = bench.behaving("log:x").await;
    bench.answer(&target).await;
    bench.fake.change(|options| options.cuts_follow = true);
    let mut query = LogQuery::default();
    query.follow = true;
    let cx = cx();
    let mut following = bench.driver.logs(&cx, &target.reference, query).await.unwrap();
    let first = following.next().await.unwrap().unwrap();
    bench.answer(&target).await;
    tokio::time::pause();
    let second = following.next().await.unwrap().unwrap();
    assert!(second.at > first.at, "{second:?}");
    bench.fake.delete(SERVICES, target.service());
    assert!(following.next().await.is_none());
}

#[tokio::test]
async fn what_goes_wrong_with_a_log_is_told() {
    let bench = Bench::new().await;
    let target = bench.behaving("log:x").await;
    bench.answer(&target).await;
    bench.fail(Method::GET, "/log?", Fault::status(500, "", "Get \"https://lab-node:10250\": no route"), 1);
    let error = bench.driver.logs(&cx(), &target.reference, LogQuery::default()).await.map(drop).unwrap_err();
    is(&error, Unavailable, NotSent);
    assert!(!error.to_string().contains("lab-node"), "{error}");
    bench.fail(Method::GET, "/log?", Fault::Cut, 1);
    let cx = cx();
    let mut read = bench.driver.logs(&cx, &target.reference, LogQuery::default()).await.unwrap();
    assert_eq!(read.next().await.unwrap().unwrap_err().kind(), Unavailable);
    let missing = bench.target(spec("echo"));
    is(
        &bench.driver.logs(&cx, &missing.reference, LogQuery::default()).await.map(drop).unwrap_err(),
        NotDeployed,
        NotSent,
    );
}

#[tokio::test]
async fn a_shutdown_stops_what_does_not_end() {
    let bench = Bench::new().await;
    let target = bench.behaving("hang").await;
    let call = bench.call(&target, |_| {});
    let shutdown = async {
        while bench.fake.running(&target.name()) == 0 {
            tokio::task::yield_now().await;
        }
        bench.driver.shutdown(Instant::now()).await.unwrap();
    };
    let (stopped, ()) = tokio::join!(call, shutdown);
    is(&stopped.unwrap_err(), ErrorKind::Cancelled, Unknown);
}
