//! What the cluster holds, as it tells by itself: a list by pages once, and one watch for each namespace from there on (one for the whole
//! cluster where each tenant has a namespace). States of functions and addresses of calls come from here, so that neither costs a request.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use function_gateway_core::{Error, ErrorKind, Generation, Result};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::api::{self, Event, Service, Status, Traffic, condition, label};
use crate::client::{Client, Manage};
use crate::config::{KnativeConfig, KnativeNamespaces};
use crate::error::{of_management, out_of_reach};
use crate::invoke::{Addresses, Route};
use crate::list::Pages;
use crate::mapping;
use crate::names::{Target, of_tag, revision_name};

/// How long the API server is asked to keep a watch open.
const WATCH: Duration = Duration::from_secs(290);
/// How long it may say nothing, bookmarks included, until the connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(310);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is known of a Service.
#[derive(Debug)]
pub(crate) struct Held {
    /// Without its template, which is large.
    pub(crate) service: Service,
    /// The name of the newest Revision, by the template.
    pub(crate) newest: String,
    /// The generations that it is to hold.
    wanted: BTreeSet<Generation>,
    /// The generations whose names the route tells, wanted or not.
    told: BTreeSet<Generation>,
    routes: BTreeMap<Generation, Route>,
    /// The generations whose names were seen to lead to them.
    routed: BTreeSet<Generation>,
}

impl Held {
    fn of(mut service: Service, before: Option<&Self>, addresses: &Addresses) -> Self {
        let newest =
            service.spec.template.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        service.spec.template = Value::Null;
        let held = mapping::held(&service);
        let deleting = service.metadata.deletion_timestamp.is_some();
        let wanted = named(&service, &service.spec.traffic).map(|(generation, _)| generation);
        let wanted: BTreeSet<_> = wanted.filter(|generation| held.contains_key(generation) && !deleting).collect();
        let mut routes = BTreeMap::new();
        let mut told = BTreeSet::new();
        for (generation, part) in named(&service, &service.status.traffic) {
            told.insert(generation);
            if wanted.contains(&generation) {
                routes.extend(addresses.route(&service, part).map(|route| (generation, route)));
            }
        }
        let observed = service.status.observed_generation == service.metadata.generation;
        let set_up = condition(&service.status.conditions, "RoutesReady").is_some_and(|routes| routes.is_true());
        // The route is set up for what it tells; or not yet for what is new, and stays as it was for what it told before.
        let settled = (observed && set_up) || !wanted.is_subset(&told);
        let same = before.filter(|before| before.service.metadata.uid == service.metadata.uid);
        let seen = |generation: &Generation| settled || same.is_some_and(|before| before.routed.contains(generation));
        let routed = wanted.intersection(&told).copied().filter(seen).collect();
        Self { service, newest, wanted, told, routes, routed }
    }

    /// Whether what the status says is of what the specification says by now.
    pub(crate) fn is_observed(&self) -> bool {
        self.service.status.observed_generation == self.service.metadata.generation
    }

    /// Whether it is somebody else's.
    pub(crate) fn is_foreign(&self, target: &Target<'_>) -> bool {
        is_foreign(&self.service, target)
    }

    /// Whether it holds a generation: by what was stored with it, and by a name that leads there.
    pub(crate) fn holds(&self, target: &Target<'_>) -> bool {
        !self.is_foreign(target) && self.wanted.contains(&target.generation)
    }

    pub(crate) fn is_routed(&self, generation: Generation) -> bool {
        self.routed.contains(&generation)
    }

    /// By which address a generation is called.
    pub(crate) fn route(&self, generation: Generation) -> Option<&Route> {
        self.routes.get(&generation)
    }

    /// Whether the route still tells a generation, or may.
    pub(crate) fn mentions(&self, target: &Target<'_>) -> bool {
        !self.is_observed()
            || self.service.status.latest_created_revision_name == target.revision()
            || self.told.contains(&target.generation)
    }

    fn version(&self) -> Option<u64> {
        self.service.metadata.resource_version.parse().ok()
    }
}

/// Whether a Service is somebody else's.
pub(crate) fn is_foreign(service: &Service, target: &Target<'_>) -> bool {
    let labels = &service.metadata.labels;
    let is = |name: &str, value: &str| labels.get(name).is_some_and(|label| label == value);
    !(is(label::GATEWAY, target.gateway) && is(label::FUNCTION, target.function))
}

/// The parts of the traffic that are names of generations, and lead where they have to.
fn named<'a>(service: &'a Service, traffic: &'a [Traffic]) -> impl Iterator<Item = (Generation, &'a Traffic)> {
    traffic.iter().filter_map(|part| {
        let generation = of_tag(part.tag.as_deref()?)?;
        let leads = part.revision_name.as_deref() == Some(&revision_name(&service.metadata.name, generation));
        leads.then_some((generation, part))
    })
}

/// How far a watch is.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Whether everything was listed once.
    synced: bool,
    /// Why it does not go on.
    error: Option<Error>,
}

/// The Services of one namespace, or of all.
pub(crate) struct Scope {
    namespace: Option<String>,
    services: RwLock<HashMap<String, Arc<Held>>>,
    /// Those that were deleted here, of which an event may still be on its way.
    gone: Mutex<HashSet<String>>,
    progress: watch::Sender<Progress>,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Scope {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Held>> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.get(name).filter(|held| held.service.metadata.namespace == namespace).map(Arc::clone)
    }

    fn gone(&self) -> MutexGuard<'_, HashSet<String>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a Service is by now, unless something newer is known.
    fn fold(&self, service: Service, addresses: &Addresses) -> Arc<Held> {
        let name = service.metadata.name.clone();
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        let before = services.get(&name);
        let held = Arc::new(Held::of(service, before.map(|before| &**before), addresses));
        if self.gone().contains(&held.service.metadata.uid) {
            return held;
        }
        if let Some(before) = before
            && before.service.metadata.uid == held.service.metadata.uid
            && before.version() > held.version()
        {
            return Arc::clone(before);
        }
        services.insert(name, Arc::clone(&held));
        drop(services);
        self.progress.send_modify(|_| {});
        held
    }

    fn forget(&self, name: &str, uid: &str) {
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        if services.get(name).is_some_and(|held| held.service.metadata.uid == uid) {
            services.remove(name);
        }
        drop(services);
        self.progress.send_modify(|_| {});
    }

    /// Takes over a whole list: what is not in it is not there.
    fn replace(&self, listed: Vec<Service>, addresses: &Addresses) {
        let names: HashSet<_> = listed.iter().map(|service| service.metadata.name.clone()).collect();
        self.services.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
        self.gone().clear();
        for service in listed {
            self.fold(service, addresses);
        }
    }
}

/// All watches of a driver.
pub(crate) struct Watches {
    client: Arc<Client>,
    addresses: Arc<Addresses>,
    config: Arc<KnativeConfig>,
    scopes: RwLock<HashMap<String, Arc<Scope>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// A driver that is dropped without a shutdown leaves nothing behind either.
    _stopped_with_it: DropGuard,
}

impl Watches {
    pub(crate) fn new(client: Arc<Client>, addresses: Arc<Addresses>, config: Arc<KnativeConfig>) -> Self {
        let stop = CancellationToken::new();
        let _stopped_with_it = stop.clone().drop_guard();
        Self { client, addresses, config, scopes: RwLock::default(), tasks: TaskTracker::new(), stop, _stopped_with_it }
    }

    /// The key of the scope that a namespace is in.
    fn key<'a>(&self, namespace: &'a str) -> &'a str {
        match self.config.namespaces {
            KnativeNamespaces::PerTenant { .. } => "",
            KnativeNamespaces::Shared(_) => namespace,
        }
    }

    fn scope(&self, namespace: &str) -> Option<Arc<Scope>> {
        self.scopes.read().unwrap_or_else(PoisonError::into_inner).get(self.key(namespace)).map(Arc::clone)
    }

    /// What is known of a Service by now, without asking anybody.
    pub(crate) fn known(&self, namespace: &str, name: &str) -> Option<Arc<Held>> {
        self.scopes.read().unwrap_or_else(PoisonError::into_inner).get(self.key(namespace))?.get(namespace, name)
    }

    /// The scope of a namespace, watched from here on; `None` once the driver is shut down.
    fn watched(&self, namespace: &str) -> Option<Arc<Scope>> {
        if let Some(scope) = self.scope(namespace) {
            return Some(scope);
        }
        let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
        if self.stop.is_cancelled() {
            return None;
        }
        let key = self.key(namespace);
        if let Some(scope) = scopes.get(key) {
            return Some(Arc::clone(scope));
        }
        let scope = Arc::new(Scope {
            namespace: (!key.is_empty()).then(|| key.to_owned()),
            services: RwLock::default(),
            gone: Mutex::default(),
            progress: watch::channel(Progress::default()).0,
        });
        let watcher = Watcher {
            client: Arc::clone(&self.client),
            addresses: Arc::clone(&self.addresses),
            page_size: self.config.page_size,
            scope: Arc::clone(&scope),
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = watcher.run() => {}
            }
        });
        scopes.insert(key.to_owned(), Arc::clone(&scope));
        Some(scope)
    }

    /// What the cluster holds by a name. Once everything was listed, only what is not known is asked for: a watch may be behind
    /// what another process has just made.
    pub(crate) async fn held(&self, namespace: &str, name: &str) -> Result<Option<Arc<Held>>> {
        if let Some(scope) = self.watched(namespace) {
            let mut progress = scope.progress.subscribe();
            let settled = progress.wait_for(|progress| progress.synced || progress.error.is_some());
            match tokio::time::timeout(self.config.request_timeout, settled).await {
                // Why it can't be watched may be over by now: who asks gets an answer of now.
                Ok(_) => {}
                Err(_) => return Err(out_of_reach("the API server did not list what it holds in time")),
            }
            if let Some(held) = scope.get(namespace, name) {
                return Ok(Some(held));
            }
        }
        self.ask(namespace, name).await
    }

    /// Asks the API server for a Service, and takes over what it says.
    pub(crate) async fn ask(&self, namespace: &str, name: &str) -> Result<Option<Arc<Held>>> {
        match self.client.service(namespace, name).await? {
            Some(service) => Ok(Some(self.fold(service))),
            None => {
                if let Some(known) = self.known(namespace, name) {
                    self.forget(namespace, name, &known.service.metadata.uid);
                }
                Ok(None)
            }
        }
    }

    /// Takes over what the API server has answered to a write or a question.
    pub(crate) fn fold(&self, service: Service) -> Arc<Held> {
        match self.scope(&service.metadata.namespace) {
            Some(scope) => scope.fold(service, &self.addresses),
            None => Arc::new(Held::of(service, None, &self.addresses)),
        }
    }

    /// Takes over that a Service was deleted.
    pub(crate) fn forget(&self, namespace: &str, name: &str, uid: &str) {
        if let Some(scope) = self.scope(namespace) {
            scope.gone().insert(uid.to_owned());
            scope.forget(name, uid);
        }
    }

    /// Waits until something changes in a namespace, but no longer than that.
    pub(crate) async fn changed(&self, namespace: &str, patience: Duration) {
        let waiting = async {
            match self.scope(namespace) {
                Some(scope) => drop(scope.progress.subscribe().changed().await),
                None => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(patience, waiting).await;
    }

    /// Ends all watches.
    pub(crate) async fn shutdown(&self) {
        {
            // Nobody adds one after this.
            let _scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
            self.stop.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct Watcher {
    client: Arc<Client>,
    addresses: Arc<Addresses>,
    page_size: u32,
    scope: Arc<Scope>,
}

/// Why a watch has ended.
enum Ended {
    /// By the API server's own time, or cut: it goes on from where it was.
    Cut,
    /// Where it was is too old to go on from: all is listed again.
    Expired,
    Failed(Error),
}

impl Watcher {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut at = match self.list().await {
                Ok(at) => at,
                Err(error) => {
                    self.rest(&mut pause, error).await;
                    continue;
                }
            };
            pause = FIRST_PAUSE;
            loop {
                let before = at.clone();
                match self.follow(&mut at).await {
                    Ended::Expired => break,
                    Ended::Failed(error) => {
                        self.rest(&mut pause, error).await;
                        if pause == LONGEST_PAUSE {
                            // It may never get better from here.
                            break;
                        }
                    }
                    // One that ends at once without a word would be opened again and again.
                    Ended::Cut if at == before => tokio::time::sleep(FIRST_PAUSE).await,
                    Ended::Cut => pause = FIRST_PAUSE,
                }
            }
        }
    }

    async fn rest(&self, pause: &mut Duration, error: Error) {
        tracing::warn!(namespace = self.scope.namespace, ?error, "the cluster can't be watched; it is tried again");
        let wait = error.retry_after().unwrap_or_default().max(*pause);
        self.scope.progress.send_modify(|progress| progress.error = Some(error));
        tokio::time::sleep(wait).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
    }

    /// Lists everything, and says where a watch has to begin.
    async fn list(&self) -> Result<String> {
        let mut pages =
            Pages::new(&self.client, self.scope.namespace.as_deref(), label::GATEWAY.to_owned(), self.page_size);
        let mut listed = Vec::new();
        while let Some(page) = pages.next().await? {
            // What can't be read is nothing that this driver has made.
            listed.extend(page.into_iter().filter_map(|item| serde_json::from_value(item).ok()));
        }
        self.scope.replace(listed, &self.addresses);
        self.scope.progress.send_modify(|progress| *progress = Progress { synced: true, error: None });
        Ok(pages.resource_version().to_owned())
    }

    /// Takes over what changes from a version on, and says with which one it has ended.
    async fn follow(&self, at: &mut String) -> Ended {
        let request = Manage::get(api::services(self.scope.namespace.as_deref()))
            .with("watch", Some("1"))
            .with("allowWatchBookmarks", Some("true"))
            .with("labelSelector", Some(label::GATEWAY))
            .with("resourceVersion", Some(at.as_str()))
            .with("timeoutSeconds", Some(WATCH.as_secs().to_string()));
        let mut lines = match self.client.lines(&request).await {
            Ok(lines) => lines,
            Err(error) if error.context_value("engine_status") == Some("410") => return Ended::Expired,
            Err(error) => return Ended::Failed(error),
        };
        self.scope.progress.send_if_modified(|progress| progress.error.take().is_some());
        loop {
            let line = match tokio::time::timeout(SILENCE, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None) | Err(_)) | Err(_) => return Ended::Cut,
            };
            let Ok(event) = serde_json::from_slice::<Event>(&line) else {
                let message = "the API server tells a change that can't be read";
                return Ended::Failed(Error::new(ErrorKind::Engine, message));
            };
            if event.kind == "ERROR" {
                let status: Status = serde_json::from_value(event.object.clone()).unwrap_or_default();
                if status.is_expired() {
                    return Ended::Expired;
                }
                let code = http::StatusCode::from_u16(status.code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
                return Ended::Failed(of_management(code, &http::HeaderMap::new(), &event.object.to_string()));
            }
            let Ok(service) = serde_json::from_value::<Service>(event.object) else { continue };
            at.clone_from(&service.metadata.resource_version);
            match event.kind.as_str() {
                "ADDED" | "MODIFIED" => drop(self.scope.fold(service, &self.addresses)),
                "DELETED" => {
                    self.scope.gone().remove(&service.metadata.uid);
                    self.scope.forget(&service.metadata.name, &service.metadata.uid);
                }
                // Bookmarks say how far it is, and no more.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::KnativeRouting;
    use crate::names::tag;

    fn service(observed: i64, routes: &str, wanted: &[&str], told: &[&str]) -> Service {
        let traffic = |tags: &[&str]| {
            tags.iter()
                .map(|tag| json!({"tag": tag, "revisionName": format!("fn-{tag}"), "url": format!("http://{tag}-fn.ns.lab")}))
                .collect::<Vec<_>>()
        };
        serde_json::from_value(json!({
            "metadata": {
                "name": "fn", "namespace": "ns", "uid": "u", "generation": 2, "resourceVersion": "7",
                "annotations": {"held.function-gateway/g1": "one", "held.function-gateway/g2": "two"},
            },
            "spec": {"template": {"metadata": {"name": "fn-g2"}}, "traffic": traffic(wanted)},
            "status": {
                "observedGeneration": observed,
                "conditions": [{"type": "RoutesReady", "status": routes}],
                "traffic": traffic(told),
            },
        }))
        .unwrap()
    }

    fn routed(service: Service, before: Option<&Held>) -> Vec<String> {
        let held = Held::of(service, before, &Addresses::new(&KnativeRouting::Route).unwrap());
        held.routed.iter().map(|generation| tag(*generation)).collect()
    }

    #[test]
    fn a_generation_is_routed_once_its_name_leads_there() {
        let both = ["g1", "g2"];
        assert_eq!(routed(service(2, "True", &both, &both), None), both);
        // The status is of before the second one came, and true of the first.
        assert_eq!(routed(service(1, "True", &both, &["g1"]), None), ["g1"]);
        // Another one holds the route up.
        assert_eq!(routed(service(2, "False", &both, &["g1"]), None), ["g1"]);
        // The ingress is being set up: who was there before still is.
        let addresses = Addresses::new(&KnativeRouting::Route).unwrap();
        let first = Held::of(service(2, "True", &["g1"], &["g1"]), None, &addresses);
        assert_eq!(routed(service(2, "Unknown", &both, &both), Some(&first)), ["g1"]);
        assert_eq!(routed(service(2, "Unknown", &both, &both), None), [""; 0]);
        // What is not wanted any more is not, whatever is told.
        assert_eq!(routed(service(1, "True", &["g2"], &both), Some(&first)), [""; 0]);
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_no_generation() {
        let mut service = service(2, "True", &["g1"], &["g1"]);
        service.status.traffic[0].revision_name = Some("fn-other".to_owned());
        assert_eq!(routed(service, None), [""; 0]);
    }
}
