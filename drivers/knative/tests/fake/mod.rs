//! A stateful fake of the API server, of Knative's controllers and of the ingress, that answers as the recordings in `fixtures` say real ones
//! do: statuses, headers, texts, conditions over time, and what they do not say. Its functions are those that the conformance suite
//! asks for.

#![allow(dead_code, reason = "each test takes what it needs")]
#![allow(clippy::result_large_err, clippy::needless_pass_by_value, reason = "a fake is read, and need not be fast")]

mod api;
mod controller;
mod functions;
mod ingress;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use function_gateway_core::{FunctionSpec, ImageWorkload};
use function_gateway_knative::{KnativeAccess, KnativeConfig, KnativeNamespaces, KnativeRouting};
use function_gateway_testkit::Behaviour;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use server::{At, Fault, Seen};

pub(crate) const NAMESPACE: &str = "fns";
pub(crate) const TOKEN: &str = "canary-token-7d2a";
pub(crate) const SERVICES: &str = "services";
pub(crate) const REVISIONS: &str = "revisions";
pub(crate) const SECRETS: &str = "secrets";
pub(crate) const PODS: &str = "pods";
/// How long a test waits for what has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How it is set up.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The token that is asked for.
    pub(crate) token: Option<String>,
    /// Verbs and resources for which there is no right.
    pub(crate) forbidden: Vec<(&'static str, &'static str)>,
    /// Whether Knative Serving is there.
    pub(crate) installed: bool,
    /// What the webhook says of every Service.
    pub(crate) refusal: Option<&'static str>,
    pub(crate) quota_full: bool,
    /// How long each step of a controller takes.
    pub(crate) step: Duration,
    /// Whether the controllers are at work.
    pub(crate) controlled: bool,
    /// Whether the ingress takes new routes over.
    pub(crate) ingress_up: bool,
    /// Whether the ingress speaks HTTP/2 without TLS, and nothing else.
    pub(crate) h2c: bool,
    pub(crate) bookmarks: bool,
    /// Whether a log that is followed is cut once it has told what there is.
    pub(crate) cuts_follow: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            forbidden: Vec::new(),
            installed: true,
            refusal: None,
            quota_full: false,
            step: Duration::from_millis(1),
            controlled: true,
            ingress_up: true,
            h2c: false,
            bookmarks: true,
            cuts_follow: false,
        }
    }
}

/// Kind, namespace and name of an object.
type Key = (&'static str, String, String);

/// What runs of a Revision.
struct Instance {
    running: usize,
    calls: usize,
    stop: CancellationToken,
    lines: Vec<(String, String)>,
}

impl Instance {
    fn new() -> Self {
        Self { running: 0, calls: 0, stop: CancellationToken::new(), lines: Vec::new() }
    }
}

struct Change {
    version: u64,
    kind: &'static str,
    object: Value,
}

struct State {
    options: Options,
    version: u64,
    objects: BTreeMap<Key, Value>,
    namespaces: BTreeSet<String>,
    /// What has become of Services, for watches.
    changes: Vec<Change>,
    /// Up to here, changes and pages are forgotten.
    forgotten: u64,
    /// Fields that somebody else manages, by the Service's name.
    managed: BTreeMap<(String, String), String>,
    /// The labels and annotations that were applied, by the Service's name.
    applied: BTreeMap<String, BTreeSet<String>>,
    instances: BTreeMap<String, Instance>,
    /// Hosts that the ingress knows: the Revision, and whether it is hidden from outside.
    hosts: BTreeMap<String, (String, String, bool)>,
    faults: Vec<server::Injected>,
    seen: Vec<Seen>,
    watching: usize,
    /// Watches of an earlier epoch end.
    epoch: u64,
    lines: u64,
    changed: watch::Sender<u64>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

/// A cluster, until it is dropped.
pub(crate) struct Fake {
    shared: Shared,
    pub(crate) url: String,
    pub(crate) ingress: String,
    pub(crate) local_ingress: String,
    tasks: tokio::task::JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start(options: Options) -> Self {
        let h2c = options.h2c;
        let shared = Shared(Arc::new(Mutex::new(State {
            options,
            version: 100,
            objects: BTreeMap::new(),
            namespaces: BTreeSet::from([NAMESPACE.to_owned()]),
            changes: Vec::new(),
            forgotten: 0,
            managed: BTreeMap::new(),
            applied: BTreeMap::new(),
            instances: BTreeMap::new(),
            hosts: BTreeMap::new(),
            faults: Vec::new(),
            seen: Vec::new(),
            watching: 0,
            epoch: 0,
            lines: 0,
            changed: watch::channel(0).0,
        })));
        let mut tasks = tokio::task::JoinSet::new();
        let url = server::listen(&mut tasks, shared.clone(), At::Api, false).await;
        let ingress = server::listen(&mut tasks, shared.clone(), At::Ingress, h2c).await;
        let local_ingress = server::listen(&mut tasks, shared.clone(), At::LocalIngress, h2c).await;
        tasks.spawn(controller::run(shared.clone()));
        Self { shared, url, ingress, local_ingress, tasks }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// What a driver needs to work on it.
    pub(crate) fn config(&self) -> KnativeConfig {
        let access: KnativeAccess = serde_json::from_value(json!({"api_server": {"url": self.url}})).unwrap();
        self.config_with(access)
    }

    pub(crate) fn config_with(&self, access: KnativeAccess) -> KnativeConfig {
        let routing: KnativeRouting =
            serde_json::from_value(json!({"ingress": {"url": self.ingress, "local_url": self.local_ingress}})).unwrap();
        KnativeConfig::new(access)
            .with_namespaces(KnativeNamespaces::Shared(NAMESPACE.to_owned()))
            .with_routing(routing)
            .with_request_timeout(Duration::from_secs(5))
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Options)) {
        let mut state = self.state();
        change(&mut state.options);
        state.tell();
    }

    /// Has the next requests of a kind fail.
    pub(crate) fn fail(&self, at: At, method: Option<Method>, part: &str, fault: Fault, times: usize) {
        self.state().faults.push(server::Injected { at, method, part: part.to_owned(), fault, times });
    }

    pub(crate) fn add_namespace(&self, name: &str) {
        self.state().namespaces.insert(name.to_owned());
    }

    /// Names of all objects of a kind.
    pub(crate) fn names(&self, kind: &str) -> Vec<String> {
        self.state().objects.keys().filter(|key| key.0 == kind).map(|key| key.2.clone()).collect()
    }

    pub(crate) fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let state = self.state();
        state.objects.iter().find(|(key, _)| key.0 == kind && key.2 == name).map(|(_, object)| object.clone())
    }

    /// Puts an object in as it is.
    pub(crate) fn put(&self, kind: &'static str, namespace: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut state = self.state();
        state.write((kind, namespace.to_owned(), name), object);
    }

    /// Deletes an object as somebody else would.
    pub(crate) fn delete(&self, kind: &'static str, name: &str) {
        let mut state = self.state();
        let key = state.objects.keys().find(|key| key.0 == kind && key.2 == name).cloned();
        if let Some(key) = key {
            state.delete(&key);
        }
    }

    /// Changes a field of a Service as somebody else would, who manages it from then on.
    pub(crate) fn tamper(&self, service: &str, pointer: &str, value: Value) {
        let mut state = self.state();
        let (key, mut object) = state.service(service).unwrap();
        *object.pointer_mut(pointer).unwrap() = value;
        if pointer.starts_with("/spec") {
            let generation = object["metadata"]["generation"].as_i64().unwrap();
            object["metadata"]["generation"] = json!(generation + 1);
            let field =
                if pointer.starts_with("/spec/traffic") { ".spec.traffic" } else { ".spec.template.spec.containers" };
            state.managed.insert((service.to_owned(), field.to_owned()), "kubectl-edit".to_owned());
        }
        state.write(key, object);
    }

    /// Has a Service wait for a finalizer when it is deleted; `None` takes it off.
    pub(crate) fn hold(&self, service: &str, finalizer: Option<&str>) {
        let mut state = self.state();
        let Some((key, mut object)) = state.service(service) else { return };
        object["metadata"]["finalizers"] = json!(finalizer.into_iter().collect::<Vec<_>>());
        let deleting = object["metadata"]["deletionTimestamp"].is_string();
        state.write(key.clone(), object);
        if deleting && finalizer.is_none() {
            state.delete(&key);
        }
    }

    /// Scales a Revision to zero, as if nobody had called it for long.
    pub(crate) fn scale_to_zero(&self, revision: &str) {
        let mut state = self.state();
        state.scale(revision, 0);
    }

    /// How many calls of a Revision are being executed.
    pub(crate) fn running(&self, revision: &str) -> usize {
        self.state().instances.get(revision).map_or(0, |instance| instance.running)
    }

    /// How many calls have reached a Revision.
    pub(crate) fn calls(&self, revision: &str) -> usize {
        self.state().instances.get(revision).map_or(0, |instance| instance.calls)
    }

    /// Takes the requests that have come.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// How many watches are open.
    pub(crate) fn watching(&self) -> usize {
        self.state().watching
    }

    /// Ends all watches that are open.
    pub(crate) fn cut_watches(&self) {
        let mut state = self.state();
        state.epoch += 1;
        state.tell();
    }

    /// Forgets what has been: watches and pages can't go on from it.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        state.version += 1;
        state.forgotten = state.version;
        state.changes.clear();
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let mut changed = self.state().changed.subscribe();
        let waiting = async {
            while !is_so(self) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it does not come to it");
    }
}

impl State {
    /// Wakes who waits for a change.
    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn service(&self, name: &str) -> Option<(Key, Value)> {
        let found = self.objects.iter().find(|(key, _)| key.0 == SERVICES && key.2 == name);
        found.map(|(key, object)| (key.clone(), object.clone()))
    }

    /// Stores an object as it is by now.
    fn write(&mut self, key: Key, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object["metadata"]["namespace"] = json!(key.1);
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        let kind = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        if key.0 == SERVICES {
            self.changes.push(Change { version: self.version, kind, object: object.clone() });
        }
        self.objects.insert(key, object);
        self.tell();
    }

    /// Deletes an object and what belongs to it.
    fn delete(&mut self, key: &Key) {
        let Some(mut object) = self.objects.remove(key) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let uid = object["metadata"]["uid"].clone();
        match key.0 {
            SERVICES => {
                self.changes.push(Change { version: self.version, kind: "DELETED", object });
                self.hosts.retain(|_, (_, service, _)| *service != key.2);
                self.managed.retain(|(service, _), _| *service != key.2);
                self.applied.remove(&key.2);
            }
            REVISIONS => {
                if let Some(instance) = self.instances.remove(&key.2) {
                    instance.stop.cancel();
                }
            }
            _ => {}
        }
        let owned = |object: &Value| {
            object["metadata"]["ownerReferences"]
                .as_array()
                .is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
        };
        let left: Vec<_> =
            self.objects.iter().filter(|(_, object)| owned(object)).map(|(key, _)| key.clone()).collect();
        for key in left {
            self.delete(&key);
        }
        self.tell();
    }
}

/// A function of the suite: the image of the tests, told by a variable what to do. The same behaviours are those of the image that
/// a real cluster is tested with.
pub(crate) fn behaving(image: &str, behaviour: &Behaviour) -> Option<FunctionSpec> {
    let text = functions::text(behaviour);
    match behaviour {
        Behaviour::Invalid => Some(spec(image, "echo").with_annotation("knative.dev/visibilty", "public")),
        _ => text.map(|text| spec(image, &text)),
    }
}

/// A function of the test's image with a behaviour.
pub(crate) fn spec(image: &str, behaviour: &str) -> FunctionSpec {
    FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new(image)).with_env("BEHAVIOUR", behaviour)
}
