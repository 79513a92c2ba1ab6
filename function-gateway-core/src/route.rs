//! From a function's name to the revision that serves, held in memory for a moment.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use crate::host::Host;
use crate::middleware::Pipeline;
use crate::time::monotonic_now;
use crate::{
    CallContext, DriverCapabilities, DriverRef, Error, ErrorKind, FaasDriver, Function, FunctionId, FunctionKey,
    FunctionStore, GatewayConfig, Generation, Phase, Qualifier, Redactor, Result, Revision, RevisionState,
    SecretBinding, SecretDelivery,
};

/// A revision that can be called: where it is deployed, and the chain that leads there.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) revision: Arc<Revision>,
    pub(crate) driver: Arc<dyn FaasDriver>,
    pub(crate) capabilities: DriverCapabilities,
    pub(crate) target: DriverRef,
    pub(crate) pipeline: Pipeline,
    /// Held while the revision is deployed again in this process, so that one of many callers does it.
    pub(crate) redeploying: tokio::sync::Mutex<()>,
}

/// A function as it was a moment ago, and what serves by it.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) function: Arc<Function>,
    read_at: Instant,
    serving: OnceLock<Arc<Serving>>,
}

/// Routes are held at most for the route's time to live; what serves a generation never changes and is held as long
/// as there is room.
pub(crate) struct Routes {
    ttl: Duration,
    routes: Cache<FunctionKey, Arc<Route>>,
    serving: Cache<(FunctionId, Generation), Arc<Serving>>,
    /// The secrets that were handed over with a generation at its deployment, which its calls are to be cleaned of.
    secrets: Cache<(FunctionId, Generation), Arc<Redactor>>,
}

impl Routes {
    pub(crate) fn new(config: &GatewayConfig) -> Self {
        let capacity = config.max_cached_routes;
        let (routes, serving, secrets) = (Cache::new(capacity), Cache::new(capacity), Cache::new(capacity));
        Self { ttl: config.route_ttl, routes, serving, secrets }
    }

    /// The route of a key, read at most the time to live ago. Of many callers one reads.
    pub(crate) async fn find(&self, store: &Arc<dyn FunctionStore>, key: &FunctionKey) -> Result<Arc<Route>> {
        if let Some(route) = self.routes.get(key) {
            if monotonic_now().saturating_duration_since(route.read_at) < self.ttl {
                return Ok(route);
            }
            self.routes.remove_if(key, |stale| Arc::ptr_eq(stale, &route));
        }
        let read = async {
            // Taken before the read: what is older than this may have changed.
            let read_at = monotonic_now();
            let function = store.get(key).await?.ok_or_else(|| not_found(key))?;
            Ok(Arc::new(Route { function, read_at, serving: OnceLock::new() }))
        };
        // Seldom, and so apart from what each call holds.
        Box::pin(self.routes.get_or_insert_async(key, read)).await
    }

    /// Forgets a function's route, so that the next call reads it.
    pub(crate) fn invalidate(&self, key: &FunctionKey) {
        self.routes.remove(key);
    }

    /// Forgets what served a generation that is gone.
    pub(crate) fn forget(&self, function: FunctionId, generation: Generation) {
        self.serving.remove(&(function, generation));
        self.secrets.remove(&(function, generation));
    }

    /// The secrets that this process knows to have been handed over with a generation.
    pub(crate) fn secrets(&self, function: FunctionId, generation: Generation) -> Option<Arc<Redactor>> {
        self.secrets.get(&(function, generation))
    }

    /// Keeps what is handed over with a generation now, beside what was handed over before.
    pub(crate) fn keep_secrets(&self, revision: &Revision, secrets: Redactor) {
        if secrets.is_empty() {
            return;
        }
        if let Some(known) = self.secrets(revision.function, revision.generation) {
            known.adopt(&secrets);
        } else {
            self.secrets.insert((revision.function, revision.generation), Arc::new(secrets));
        }
    }
}

pub(crate) fn not_found(key: &FunctionKey) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no function {:?}", key.name))
}

impl Host {
    /// The revision that a reference means on a route, ready to be called.
    pub(crate) async fn serving_on(&self, route: &Route, qualifier: &Qualifier) -> Result<Arc<Serving>> {
        if *qualifier != Qualifier::Serving {
            return Box::pin(self.serving(&route.function, qualifier)).await;
        }
        if let Some(serving) = route.serving.get() {
            return Ok(Arc::clone(serving));
        }
        let serving = Box::pin(self.serving(&route.function, qualifier)).await?;
        Ok(Arc::clone(route.serving.get_or_init(|| serving)))
    }

    /// A generation that is kept deployed because something in the queue is pinned to it.
    pub(crate) async fn serving_pinned(&self, function: &Function, generation: Generation) -> Result<Arc<Serving>> {
        let retired = |state| matches!(state, RevisionState::Retired);
        if function.status.deployment(generation).is_some_and(|deployment| retired(deployment.state)) {
            let load = self.load_serving(function, generation);
            return self.routes.serving.get_or_insert_async(&(function.id, generation), load).await;
        }
        self.serving(function, &Qualifier::Generation(generation)).await
    }

    /// The revision that a reference means, ready to be called.
    pub(crate) async fn serving(&self, function: &Function, qualifier: &Qualifier) -> Result<Arc<Serving>> {
        if function.status.phase == Phase::Deleting {
            return Err(not_ready(function));
        }
        let generation = match qualifier {
            Qualifier::Serving => function.status.serving_generation().ok_or_else(|| not_ready(function))?,
            Qualifier::Generation(generation) => pinned(function, *generation)?,
            Qualifier::Alias(_) => {
                let message = "aliases are not offered yet; refer to the function by name or by name@generation";
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        };
        let load = self.load_serving(function, generation);
        self.routes.serving.get_or_insert_async(&(function.id, generation), load).await
    }

    /// The values of the secrets that a revision was deployed with; `None` where it was with none. A process that has not
    /// deployed it asks for them once: it then knows the values of that time, which after a rotation without
    /// [`rotate_secrets`](crate::FunctionManager::rotate_secrets) are newer ones than the function has.
    pub(crate) async fn deployed_secrets(
        &self,
        cx: &CallContext,
        revision: &Revision,
        capabilities: &DriverCapabilities,
    ) -> Result<Option<Arc<Redactor>>> {
        let in_env = |binding: &&SecretBinding| matches!(binding.deliver, SecretDelivery::Env(_));
        let mut deployed = revision.spec.secrets.iter().filter(in_env).peekable();
        if !capabilities.secrets_at_deploy || deployed.peek().is_none() {
            return Ok(None);
        }
        let ask = async {
            let known = Redactor::new();
            for binding in deployed {
                known.add(&self.secrets.require(cx, &binding.secret).await?.secret);
            }
            Ok(Arc::new(known))
        };
        let id = (revision.function, revision.generation);
        Box::pin(self.routes.secrets.get_or_insert_async(&id, ask)).await.map(Some)
    }

    /// A result whose error holds no secret that the revision was deployed with.
    pub(crate) async fn without_secrets<T>(
        &self,
        cx: &CallContext,
        revision: &Revision,
        capabilities: &DriverCapabilities,
        result: Result<T>,
    ) -> Result<T> {
        let Err(error) = result else { return result };
        match self.deployed_secrets(cx, revision, capabilities).await? {
            Some(known) => Err(known.error(error)),
            None => Err(error),
        }
    }

    async fn load_serving(&self, function: &Function, generation: Generation) -> Result<Arc<Serving>> {
        let missing = || Error::new(ErrorKind::NotReady, format!("generation {generation} is not there any more"));
        let deployment = function.status.deployment(generation).ok_or_else(missing)?;
        let revision =
            self.functions.revision(&function.key.tenant, function.id, generation).await?.ok_or_else(missing)?;
        let driver = Arc::clone(self.drivers.require(&deployment.driver)?);
        Ok(Arc::new(Serving {
            capabilities: driver.capabilities(&revision.spec.protocol),
            pipeline: self.middleware.pipeline(&revision)?,
            target: deployment.target.clone(),
            revision,
            driver,
            redeploying: tokio::sync::Mutex::new(()),
        }))
    }
}

fn not_ready(function: &Function) -> Error {
    let phase = function.status.phase;
    let message = match phase {
        Phase::Deleting => "the function is being deleted".to_owned(),
        Phase::Failed => "the function could not be deployed".to_owned(),
        _ => format!("the function is not ready yet: it is {phase}"),
    };
    let error = Error::new(ErrorKind::NotReady, message).with_context("function", function.key.name.as_str());
    match phase {
        Phase::Pending | Phase::Deploying => error.with_retry_after(Duration::from_secs(1)),
        _ => error.with_retry(crate::Retry::Never),
    }
}

/// One generation can be called as long as it is ready, whether it serves or not.
fn pinned(function: &Function, generation: Generation) -> Result<Generation> {
    let ready = |state| matches!(state, RevisionState::Ready);
    if function.status.deployment(generation).is_some_and(|deployment| ready(deployment.state)) {
        return Ok(generation);
    }
    if generation > function.generation {
        let message = format!("the newest generation is {}", function.generation);
        return Err(Error::new(ErrorKind::NotFound, message).with_context("function", function.key.name.as_str()));
    }
    let message = format!("generation {generation} is not deployed; roll back to it to have it serve again");
    Err(Error::new(ErrorKind::NotReady, message).with_retry(crate::Retry::Never))
}
