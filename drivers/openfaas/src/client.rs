//! Requests to the OpenFaaS gateway: connections, credentials, and calls that manage.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use function_gateway_core::forward::{Broken, HttpClient, HttpClientOptions, HttpVersion};
use function_gateway_core::{
    CallContext, Error, ErrorKind, ProvidedSecret, Result, SecretProvider, SecretRef, TenantId,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{OWN_TENANT, OpenFaasAuth, OpenFaasConfig};
use crate::error::{of_management, of_transport};
use crate::mapping::FunctionDocument;
use crate::names::Target;

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("function-gateway/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// How much of an answer without a document is read.
const MAX_TEXT: u64 = 64 * 1024;

/// A client for one OpenFaaS gateway.
pub(crate) struct Client {
    config: Arc<OpenFaasConfig>,
    base: reqwest::Url,
    /// Addresses of functions, by the hash of what they are of.
    known: RwLock<HashMap<u64, Known>>,
    hasher: RandomState,
    secrets: Option<Arc<dyn SecretProvider>>,
    /// Made when they are first needed, since the client certificate is a secret. With the version of that.
    http: RwLock<Option<(Arc<Clients>, String)>>,
    credentials: RwLock<Option<HeaderValue>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

/// The HTTP clients, each with its pool of connections.
pub(crate) struct Clients {
    manage: reqwest::Client,
    pub(crate) calls: HttpClient,
}

/// The address of a function.
struct Known {
    route: String,
    namespace: Option<String>,
    service: String,
    url: Uri,
}

/// How many addresses are kept.
const MAX_KNOWN: usize = 4096;

/// A call that manages.
#[derive(Debug, Clone)]
pub(crate) struct Manage {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<Bytes>,
}

impl Manage {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), query: Vec::new(), body: None }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// Adds a parameter, if there is one.
    pub(crate) fn with(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.query.extend(value.map(|value| (name, value.into())));
        self
    }

    pub(crate) fn with_json(mut self, document: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(document).map_err(|error| {
            Error::new(ErrorKind::Internal, "a document for the engine can't be written as JSON").with_source(error)
        })?;
        self.body = Some(body.into());
        Ok(self)
    }
}

/// An answer to a call that manages, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// Whether it is one of the statuses by which providers say that a write was done.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.status.as_u16(), 200..=202)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn error(&self) -> Error {
        of_management(self.status, &self.headers, &self.text())
    }

    /// Whether the gateway's router answers, and not the provider: then nothing is said of what was asked for.
    fn is_of_router(&self) -> bool {
        self.body.starts_with(b"404 page not found")
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Error::new(ErrorKind::Engine, "the engine's answer is not the JSON that it has to be").with_source(error)
        })
    }
}

impl Client {
    pub(crate) fn new(config: Arc<OpenFaasConfig>, secrets: Option<Arc<dyn SecretProvider>>) -> Result<Self> {
        let base = config.validate()?;
        // What is wrong with the settings is told now, and not when it is first used.
        let http = build(&config, None)?;
        let http = config.client_identity.is_none().then(|| (Arc::new(http), String::new()));
        Ok(Self {
            config,
            base,
            known: RwLock::default(),
            hasher: RandomState::new(),
            secrets,
            http: RwLock::new(http),
            credentials: RwLock::default(),
        })
    }

    /// An address below the gateway's.
    pub(crate) fn url_below(&self, path: &str) -> reqwest::Url {
        let mut url = self.base.clone();
        match self.base.path().trim_end_matches('/') {
            "" => url.set_path(path),
            base => url.set_path(&format!("{base}{path}")),
        }
        url
    }

    /// The address of a function itself, which is written once: reading an address costs as much as the rest of a call here.
    pub(crate) fn known_uri(&self, of: (&str, Option<&str>, &str), path: impl FnOnce() -> String) -> Result<Uri> {
        let key = self.hasher.hash_one(of);
        let is = |known: &&Known| {
            let (route, namespace, service) = of;
            known.route == route && known.namespace.as_deref() == namespace && known.service == service
        };
        let known = self
            .known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .filter(is)
            .map(|known| known.url.clone());
        if let Some(known) = known {
            return Ok(known);
        }
        let url = uri(&self.url_below(&path()))?;
        let (route, namespace, service) = of;
        let made = Known {
            route: route.to_owned(),
            namespace: namespace.map(str::to_owned),
            service: service.to_owned(),
            url: url.clone(),
        };
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Generations come and go: those that are called are known again at once.
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        all.insert(key, made);
        Ok(url)
    }

    /// The HTTP clients.
    pub(crate) async fn http(&self, cx: &CallContext) -> Result<Arc<Clients>> {
        let made =
            self.http.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(clients, _)| Arc::clone(clients));
        match made {
            Some(clients) => Ok(clients),
            None => Box::pin(self.connect(cx)).await,
        }
    }

    async fn connect(&self, cx: &CallContext) -> Result<Arc<Clients>> {
        let identity = match &self.config.client_identity {
            Some(secret) => Some(self.secret(cx, secret).await?),
            None => None,
        };
        let version = identity.as_ref().map(|identity| identity.version.clone()).unwrap_or_default();
        let current = self.http.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((clients, _)) = current.filter(|(_, known)| *known == version) {
            return Ok(clients);
        }
        let clients = Arc::new(build(&self.config, identity.as_ref())?);
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&clients), version));
        Ok(clients)
    }

    /// Takes over a new client certificate and new credentials, where they have changed.
    pub(crate) async fn refresh(&self, cx: &CallContext) -> Result<()> {
        if self.config.client_identity.is_some() {
            self.connect(cx).await?;
        }
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    async fn secret(&self, cx: &CallContext, secret: &SecretRef) -> Result<ProvidedSecret> {
        let missing = || {
            Error::new(ErrorKind::Misconfigured, "a secret that the driver openfaas needs does not exist")
                .with_context("secret", secret.as_str())
        };
        let provider = self.secrets.as_ref().ok_or_else(missing)?;
        let own = || TenantId::new(OWN_TENANT);
        let tenant = self.config.secret_tenant.clone().map_or_else(own, Ok)?;
        provider.get(cx, &tenant, secret).await?.ok_or_else(missing)
    }

    /// The header that shows who the driver is. Kept until the engine does not take it, or a probe.
    async fn credentials(&self, cx: &CallContext) -> Result<Option<HeaderValue>> {
        if self.config.auth == OpenFaasAuth::None {
            return Ok(None);
        }
        let known = self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(known) => Ok(Some(known)),
            None => self.fresh_credentials(cx).await,
        }
    }

    async fn fresh_credentials(&self, cx: &CallContext) -> Result<Option<HeaderValue>> {
        let mut value = match &self.config.auth {
            OpenFaasAuth::None => return Ok(None),
            OpenFaasAuth::Basic { user, password } => {
                let password = self.secret(cx, password).await?.secret;
                let pair = [user.as_bytes(), b":", trimmed(password.expose())].concat();
                HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
            }
            OpenFaasAuth::Bearer { token } => {
                let token = self.secret(cx, token).await?.secret;
                HeaderValue::from_bytes(&[b"Bearer ", trimmed(token.expose())].concat())
            }
        }
        // The source would cite the value.
        .map_err(|_| Error::new(ErrorKind::Misconfigured, "a credential can't be written in a header"))?;
        value.set_sensitive(true);
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = Some(value.clone());
        Ok(Some(value))
    }

    fn url(&self, request: &Manage) -> reqwest::Url {
        let mut url = self.url_below(&request.path);
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        url
    }

    /// Sends a request once, and gives the answer as soon as it begins.
    async fn send_once(
        &self,
        cx: &CallContext,
        request: &Manage,
        credentials: Option<HeaderValue>,
        timeout: Option<Duration>,
    ) -> Result<reqwest::Response> {
        let made = || {
            let mut made = reqwest::Request::new(request.method.clone(), self.url(request));
            made.headers_mut().insert(header::USER_AGENT, USER_AGENT);
            if let Some(credentials) = &credentials {
                made.headers_mut().insert(header::AUTHORIZATION, credentials.clone());
            }
            if let Some(body) = &request.body {
                made.headers_mut().insert(header::CONTENT_TYPE, JSON);
                *made.body_mut() = Some(body.clone().into());
            }
            *made.timeout_mut() = timeout;
            made
        };
        let client = &self.http(cx).await?.manage;
        match client.execute(made()).await {
            // A request that only asks may be sent once more: an idle connection may have been closed as it was taken.
            Err(error) if request.method == Method::GET && !error.is_connect() && !error.is_timeout() => {
                client.execute(made()).await.map_err(of_transport)
            }
            response => response.map_err(of_transport),
        }
    }

    /// Sends a request, with credentials that were read again where the engine does not take the ones that are known.
    pub(crate) async fn open(
        &self,
        cx: &CallContext,
        request: &Manage,
        timeout: Option<Duration>,
    ) -> Result<reqwest::Response> {
        // Only management takes them: what is below the routes of functions gets to a function.
        let credentials = if request.path.starts_with("/system/") { self.credentials(cx).await? } else { None };
        let response = self.send_once(cx, request, credentials.clone(), timeout).await?;
        if response.status() != StatusCode::UNAUTHORIZED || credentials.is_none() {
            return Ok(response);
        }
        let fresh = self.fresh_credentials(cx).await?;
        if fresh == credentials {
            return Ok(response);
        }
        self.send_once(cx, request, fresh, timeout).await
    }

    /// Sends a request, and reads the answer whole.
    pub(crate) async fn send(&self, cx: &CallContext, request: Manage) -> Result<Answer> {
        let left = cx.deadline().map_or(Duration::MAX, |deadline| deadline.remaining());
        let response = self.open(cx, &request, Some(self.config.request_timeout.min(left))).await?;
        let limit = if response.status().is_success() { self.config.max_management_bytes } else { MAX_TEXT };
        self.read(response, limit).await
    }

    /// Whether the gateway and its provider are up. Needs no credentials.
    pub(crate) async fn healthz(&self, cx: &CallContext) -> Result<()> {
        let response = self.send_once(cx, &Manage::get("/healthz"), None, Some(self.config.request_timeout)).await?;
        let answer = self.read(response, MAX_TEXT).await?;
        if answer.status.is_success() { Ok(()) } else { Err(answer.error()) }
    }

    pub(crate) async fn read(&self, mut response: reqwest::Response, limit: u64) -> Result<Answer> {
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(of_transport)? {
            if u64::try_from(body.len() + chunk.len()).unwrap_or(u64::MAX) > limit {
                if status.is_success() {
                    let message = format!("the engine's answer is larger than {limit} bytes");
                    return Err(Error::new(ErrorKind::Engine, message).with_context("limit_bytes", limit.to_string()));
                }
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    /// A function by its name; `None` where the engine does not have it.
    pub(crate) async fn function(&self, cx: &CallContext, target: &Target<'_>) -> Result<Option<FunctionDocument>> {
        let request = Manage::get(format!("/system/function/{}", target.service)).with("namespace", target.namespace);
        let answer = self.send(cx, request).await?;
        match answer.status {
            StatusCode::OK => answer.json().map(Some),
            StatusCode::NOT_FOUND if !answer.is_of_router() => Ok(None),
            _ => Err(answer.error()),
        }
    }

    /// The namespaces that the engine has, each once.
    pub(crate) async fn namespaces(&self, cx: &CallContext) -> Result<Vec<String>> {
        let answer = self.send(cx, Manage::get("/system/namespaces")).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.error());
        }
        let mut namespaces = answer.json::<Option<Vec<String>>>()?.unwrap_or_default();
        namespaces.sort_unstable();
        namespaces.dedup();
        Ok(namespaces)
    }
}

/// A secret that was written to a file often ends with the end of a line.
fn trimmed(secret: &[u8]) -> &[u8] {
    secret.strip_suffix(b"\r\n").or_else(|| secret.strip_suffix(b"\n")).unwrap_or(secret)
}

/// An address as it is sent.
pub(crate) fn uri(url: &reqwest::Url) -> Result<Uri> {
    url.as_str().parse().map_err(|error: http::uri::InvalidUri| Broken::NotWritten.error(error))
}

fn build(config: &OpenFaasConfig, identity: Option<&ProvidedSecret>) -> Result<Clients> {
    let mut calls = HttpClientOptions::default();
    calls.connect_timeout = config.connect_timeout;
    calls.max_idle_connections = config.max_idle_connections;
    calls.idle_connection_timeout = config.idle_connection_timeout;
    calls.http_version = config.http_version;
    calls.ca_pem.clone_from(&config.ca_pem);
    calls.identity_pem = identity.map(|identity| identity.secret.clone());
    // It reads what is to be trusted and shown, and says what is wrong with that.
    let calls = HttpClient::new(&calls)?;
    Ok(Clients { manage: build_manage(config, identity)?, calls })
}

fn build_manage(config: &OpenFaasConfig, identity: Option<&ProvidedSecret>) -> Result<reqwest::Client> {
    let refuse = |what: &str| Error::new(ErrorKind::InvalidArgument, what.to_owned());
    let mut builder = reqwest::Client::builder()
        // Credentials go nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        // Whether to send again is decided by who knows whether the function may run twice.
        .retry(reqwest::retry::never())
        // The environment is not this library's to read.
        .no_proxy()
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host(config.max_idle_connections)
        .pool_idle_timeout(config.idle_connection_timeout)
        .tcp_nodelay(true);
    builder = match config.http_version {
        HttpVersion::Http1 => builder.http1_only(),
        HttpVersion::Http2 => builder.http2_prior_knowledge(),
        _ => builder,
    };
    if let Some(pem) = &config.ca_pem {
        let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).ok();
        let certificates = certificates.filter(|certificates| !certificates.is_empty());
        builder = builder.tls_certs_only(certificates.ok_or_else(|| refuse("ca_pem: holds no certificate in PEM"))?);
    }
    if let Some(identity) = identity {
        // The source would cite what it can't read.
        let identity = reqwest::Identity::from_pem(identity.secret.expose()).map_err(|_| {
            Error::new(ErrorKind::Misconfigured, "the client certificate's secret holds no certificate and key in PEM")
        })?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| refuse("the client for the engine can't be set up").with_source(error))
}
