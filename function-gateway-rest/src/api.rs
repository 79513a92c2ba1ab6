//! The API as a value: a gateway, who may reach it, and how.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use function_gateway_core::{Error, ErrorKind, Gateway, Result};
use function_gateway_events::EventBroker;

use crate::auth::Authenticator;
use crate::cors::Cors;
use crate::readiness::Readiness;
use crate::routes;

/// How requests are taken. Each setting has a default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RestOptions {
    /// The largest document, such as a specification, in bytes. Default: 1 MiB. Payloads are bounded by the function's limits.
    pub max_document_bytes: u64,
    /// How long an upload may stand still between two parts. Default: 30 s.
    pub upload_idle_timeout: Duration,
    /// How long a document may take to come. Default: 60 s.
    pub document_timeout: Duration,
    /// Which pages of other origins browsers let in (CORS). Default: none.
    pub cors: Option<Cors>,
}

impl Default for RestOptions {
    fn default() -> Self {
        Self {
            max_document_bytes: 1024 * 1024,
            upload_idle_timeout: Duration::from_secs(30),
            document_timeout: Duration::from_secs(60),
            cors: None,
        }
    }
}

impl RestOptions {
    /// Sets the largest document, in bytes.
    #[must_use]
    pub fn with_max_document_bytes(mut self, bytes: u64) -> Self {
        self.max_document_bytes = bytes;
        self
    }

    /// Sets how long an upload may stand still.
    #[must_use]
    pub fn with_upload_idle_timeout(mut self, timeout: Duration) -> Self {
        self.upload_idle_timeout = timeout;
        self
    }

    /// Sets how long a document may take to come.
    #[must_use]
    pub fn with_document_timeout(mut self, timeout: Duration) -> Self {
        self.document_timeout = timeout;
        self
    }

    /// Lets pages of other origins in.
    #[must_use]
    pub fn with_cors(mut self, cors: Cors) -> Self {
        self.cors = Some(cors);
        self
    }
}

/// Gives the metrics as text in the exposition format of Prometheus.
type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What handlers share.
pub(crate) struct Api {
    pub(crate) gateway: Gateway,
    /// Absent where the gateway takes no events.
    pub(crate) broker: Option<EventBroker>,
    pub(crate) authenticators: Vec<Arc<dyn Authenticator>>,
    pub(crate) options: RestOptions,
    pub(crate) metrics: Option<RenderMetrics>,
    pub(crate) readiness: Readiness,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("gateway", &self.gateway.id())
            .field("authenticators", &self.authenticators)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The REST API of a gateway.
///
/// ```
/// # use std::sync::Arc;
/// use function_gateway_core::{Gateway, GatewayId, ScopeAuthorizer, store::memory::MemoryStore};
/// use function_gateway_rest::{ApiKeyAuthenticator, RestApi};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let store = Arc::new(MemoryStore::new(GatewayId::generate()));
/// let gateway = Gateway::builder().store(store).authorizer(Arc::new(ScopeAuthorizer)).build().await?;
/// let api = RestApi::builder(gateway.clone()).authenticator(ApiKeyAuthenticator::new(gateway)).build()?;
/// // Under any path of the host's own router:
/// let app: axum::Router = axum::Router::new().nest("/functions", api.router());
/// # drop(app);
/// # Ok::<_, function_gateway_core::Error>(()) }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct RestApi(Arc<Api>);

impl RestApi {
    /// Starts to put the API of a gateway together.
    #[must_use]
    pub fn builder(gateway: Gateway) -> RestApiBuilder {
        RestApiBuilder {
            gateway,
            broker: None,
            authenticators: Vec::new(),
            options: RestOptions::default(),
            metrics: None,
        }
    }

    /// The router, to be mounted under any path. It binds no port and starts no task.
    ///
    /// Errors within it are problem documents. Layers of the host's go around it.
    pub fn router(&self) -> Router {
        routes::router(&self.0)
    }
}

/// The OpenAPI 3.1 document of the API, as JSON. The same for every gateway.
#[must_use]
pub fn openapi_json() -> &'static str {
    routes::openapi_json()
}

/// Puts a [`RestApi`] together.
pub struct RestApiBuilder {
    gateway: Gateway,
    broker: Option<EventBroker>,
    authenticators: Vec<Arc<dyn Authenticator>>,
    options: RestOptions,
    metrics: Option<RenderMetrics>,
}

impl fmt::Debug for RestApiBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestApiBuilder").field("authenticators", &self.authenticators).finish_non_exhaustive()
    }
}

impl RestApiBuilder {
    /// Takes events, and offers subscriptions to them. Without, these routes answer 501.
    #[must_use]
    pub fn events(mut self, broker: EventBroker) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Adds a way to find out who calls, asked after those that were added before.
    #[must_use]
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticators.push(Arc::new(authenticator));
        self
    }

    /// Changes how requests are taken.
    #[must_use]
    pub fn options(mut self, options: RestOptions) -> Self {
        self.options = options;
        self
    }

    /// Serves `/metrics` with what this gives: text in the exposition format of Prometheus. Callers need the right to
    /// [`Action::ReadMetrics`](function_gateway_core::Action::ReadMetrics), since metrics are about all tenants.
    #[must_use]
    pub fn metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.metrics = Some(Arc::new(render));
        self
    }

    /// Builds the API.
    ///
    /// # Errors
    /// [`ErrorKind::Misconfigured`] where nothing says who calls. An API that is to be open to all says so with
    /// [`Anonymous`](crate::Anonymous), and one for trials with [`ThisMachine`](crate::ThisMachine).
    pub fn build(self) -> Result<RestApi> {
        let Self { gateway, broker, authenticators, options, metrics } = self;
        if authenticators.is_empty() {
            let message = "an API needs an authenticator: ApiKeyAuthenticator, jwt::JwtAuthenticator, HostPrincipal, \
                           ThisMachine, Anonymous or one of your own";
            return Err(Error::new(ErrorKind::Misconfigured, message));
        }
        let readiness = Readiness::default();
        Ok(RestApi(Arc::new(Api { gateway, broker, authenticators, options, metrics, readiness })))
    }
}
