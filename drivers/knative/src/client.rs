//! Requests to the API server: connection, credentials, calls that manage, and watches.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use function_gateway_core::{CallContext, Error, ErrorKind, Principal, Result, SecretProvider, SecretRef, TenantId};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError, NamedCluster};
use secrecy::SecretString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::api::{self, Revision, Service, Status};
use crate::config::{KnativeAccess, KnativeConfig, OWN_TENANT};
use crate::error::{of_management, out_of_reach, read_status};

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("function-gateway/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const APPLY: HeaderValue = HeaderValue::from_static("application/apply-patch+yaml");
/// How much of an answer that is no success is read.
const MAX_TEXT: u64 = 64 * 1024;
/// How long a line of a watch may be: an object of etcd has at most 1.5 MiB, and 3 MiB is the most that the API server takes.
const MAX_LINE: usize = 4 * 1024 * 1024;
/// How long credentials are left alone that were just read and are not taken.
const RENEW_AFTER: Duration = Duration::from_secs(2);

const OUT_OF_REACH: &str = "the API server is out of reach";

/// A client for one API server.
pub(crate) struct Client {
    config: Arc<KnativeConfig>,
    secrets: Option<Arc<dyn SecretProvider>>,
    /// Made when it is first needed: that takes a runtime, files and perhaps a plugin.
    made: RwLock<Option<Made>>,
    making: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Made {
    client: kube::Client,
    at: Instant,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("access", &self.config.access).finish_non_exhaustive()
    }
}

/// A request to the API server.
#[derive(Debug, Clone)]
pub(crate) struct Manage {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<(HeaderValue, Bytes)>,
}

impl Manage {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), query: Vec::new(), body: None }
    }

    /// Server-side apply. A field that the API server does not know is refused in place of being dropped.
    pub(crate) fn apply(path: impl Into<String>, document: &impl Serialize, force: bool) -> Result<Self> {
        let request = Self { method: Method::PATCH, ..Self::get(path) }
            .with("fieldManager", Some(api::FIELD_MANAGER))
            .with("fieldValidation", Some("Strict"))
            .with("force", force.then_some("true"));
        request.with_body(APPLY, document)
    }

    /// Deletes one object as it is known, and in the background what belongs to it.
    pub(crate) fn delete(path: impl Into<String>, preconditions: Option<(&str, &str)>) -> Result<Self> {
        let request = Self { method: Method::DELETE, ..Self::get(path) };
        let mut options =
            serde_json::json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        if let (Some((uid, version)), Some(options)) = (preconditions, options.as_object_mut()) {
            let preconditions = serde_json::json!({"uid": uid, "resourceVersion": version});
            options.insert("preconditions".to_owned(), preconditions);
        }
        request.with_body(JSON, &options)
    }

    /// Adds a parameter, if there is one.
    pub(crate) fn with(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.query.extend(value.map(|value| (name, value.into())));
        self
    }

    fn with_body(mut self, form: HeaderValue, document: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(document).map_err(|error| {
            Error::new(ErrorKind::Internal, "a document for the engine can't be written as JSON").with_source(error)
        })?;
        self.body = Some((form, body.into()));
        Ok(self)
    }

    fn request(&self) -> Result<Request<Body>> {
        let invalid = || Error::new(ErrorKind::Internal, "a request to the API server can't be written");
        let mut target = self.path.clone();
        if !self.query.is_empty() {
            let mut url = url::Url::parse("http://localhost").map_err(|_| invalid())?;
            url.query_pairs_mut().extend_pairs(&self.query);
            target = format!("{target}?{}", url.query().unwrap_or_default());
        }
        let body = self.body.as_ref().map_or_else(Bytes::new, |(_, body)| body.clone());
        let mut request =
            Request::builder().method(self.method.clone()).uri(target).body(Body::from(body)).map_err(|_| invalid())?;
        request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
        request.headers_mut().insert(header::ACCEPT, JSON);
        if let Some((form, _)) = &self.body {
            request.headers_mut().insert(header::CONTENT_TYPE, form.clone());
        }
        Ok(request)
    }
}

/// An answer of the API server, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    pub(crate) fn is_done(&self) -> bool {
        self.status.is_success()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn error(&self) -> Error {
        of_management(self.status, &self.headers, &self.text())
    }

    /// What the API server says of an answer that is no success, or of a deletion.
    pub(crate) fn said(&self) -> Status {
        read_status(&self.text())
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(unreadable)
    }

    /// The object that was asked for; `None` where there is none.
    fn object<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        match self.status {
            StatusCode::OK => self.json().map(Some),
            StatusCode::NOT_FOUND if self.said().is_not_found() => Ok(None),
            _ => Err(self.error()),
        }
    }
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Engine, "the API server's answer is not the JSON that it has to be").with_source(error)
}

/// A stream of lines.
pub(crate) struct Lines {
    body: Body,
    held: BytesMut,
}

impl Lines {
    /// The next line; a last one without its end too. `None` at the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let line = self.held.split_to(end + 1).freeze();
                return Ok(Some(line.slice(..end)));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) => return Err(out_of_reach("the API server broke off what it was telling")),
                None if self.held.is_empty() => return Ok(None),
                None => return Ok(Some(self.held.split().freeze())),
            }
            if self.held.len() > MAX_LINE {
                return Err(Error::new(ErrorKind::Engine, "the API server tells a line that is longer than 4 MiB"));
            }
        }
    }
}

impl Client {
    pub(crate) fn new(config: Arc<KnativeConfig>, secrets: Option<Arc<dyn SecretProvider>>) -> Self {
        Self { config, secrets, made: RwLock::default(), making: tokio::sync::Mutex::default() }
    }

    fn made(&self) -> Option<Made> {
        self.made.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client; another one than `refused`, whose credentials were not taken, unless that was made just now.
    async fn connection(&self, refused: Option<&Made>) -> Result<Made> {
        let fits = |made: &Made| refused.is_none_or(|refused| made.at > refused.at || made.at.elapsed() < RENEW_AFTER);
        if let Some(made) = self.made().filter(|made| fits(made)) {
            return Ok(made);
        }
        let _one_at_a_time = self.making.lock().await;
        if let Some(made) = self.made().filter(|made| fits(made)) {
            return Ok(made);
        }
        let config = self.kube_config().await?;
        let client = kube::Client::try_from(config).map_err(|error| {
            if is_of_credentials(&error) {
                return no_credentials();
            }
            let message =
                "the client for the API server can't be set up: are certificates and proxy as they have to be?";
            let refused = Error::new(ErrorKind::Misconfigured, message);
            match error {
                // They show the proxy's address, which may hold a password.
                kube::Error::ProxyProtocolUnsupported { .. } | kube::Error::ProxyProtocolDisabled { .. } => refused,
                error => refused.with_source(error),
            }
        })?;
        let made = Made { client, at: Instant::now() };
        *self.made.write().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
        Ok(made)
    }

    /// Reads credentials again with the next request.
    pub(crate) fn refresh(&self) {
        *self.made.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn kube_config(&self) -> Result<kube::Config> {
        let unread = |what: &'static str, error: String| Error::new(ErrorKind::Misconfigured, what).with_detail(error);
        let in_cluster = |error: kube::config::InClusterError| {
            let what = "the service account of this pod can't be read: is the host a pod of the cluster?";
            Error::new(ErrorKind::Misconfigured, what).with_source(error)
        };
        let mut config = match &self.config.access {
            KnativeAccess::InCluster => kube::Config::incluster_dns().map_err(in_cluster)?,
            KnativeAccess::Kubeconfig { path, context } => {
                let what = "the kubeconfig can't be read, or does not hold the context";
                let file = Kubeconfig::read_from(path).map_err(|error| unread(what, told_of(&error)))?;
                of_kubeconfig(file, context.clone()).await.map_err(|error| unread(what, error))?
            }
            KnativeAccess::Inferred => match Kubeconfig::read() {
                Ok(file) => of_kubeconfig(file, None)
                    .await
                    .map_err(|error| unread("the kubeconfig of the environment can't be read", error))?,
                Err(_) => kube::Config::incluster_env().map_err(in_cluster)?,
            },
            KnativeAccess::ApiServer { url, token, ca_pem } => self.of_address(url, token.as_ref(), ca_pem).await?,
        };
        config.connect_timeout = Some(self.config.connect_timeout);
        // What is tried again, and when, is said by who knows what was asked.
        config.default_retry = false;
        Ok(config)
    }

    async fn of_address(&self, url: &str, token: Option<&SecretRef>, ca_pem: &Option<String>) -> Result<kube::Config> {
        let invalid = |what: &'static str| Error::new(ErrorKind::InvalidArgument, what);
        let url = url.parse().map_err(|_| invalid("access.api_server.url: is no URL"))?;
        let mut config = kube::Config::new(url);
        if let Some(pem) = ca_pem {
            config.root_cert = Some(certificates(pem).ok_or_else(|| invalid("ca_pem: holds no certificate in PEM"))?);
        }
        if let Some(token) = token {
            let text = self.secret(token).await?;
            config.auth_info.token = Some(SecretString::from(text));
        }
        Ok(config)
    }

    async fn secret(&self, secret: &SecretRef) -> Result<String> {
        let missing = || {
            Error::new(ErrorKind::Misconfigured, "a secret that the driver knative needs does not exist")
                .with_context("secret", secret.as_str())
        };
        let provider = self.secrets.as_ref().ok_or_else(missing)?;
        let own = || TenantId::new(OWN_TENANT);
        let tenant = self.config.secret_tenant.clone().map_or_else(own, Ok)?;
        // Watches have no caller: the secret is asked for in the driver's own name.
        let cx = CallContext::new(Principal::new(tenant.clone(), OWN_TENANT.parse()?));
        let provided = provider.get(&cx, &tenant, secret).await?.ok_or_else(missing)?;
        let text = std::str::from_utf8(provided.secret.expose())
            .map_err(|_| Error::new(ErrorKind::Misconfigured, "the token for the API server is no text"))?;
        // A secret that was written to a file often ends with the end of a line.
        Ok(text.trim_end().to_owned())
    }

    /// Sends a request once, and gives the answer as soon as it begins.
    async fn send_once(&self, made: &Made, request: &Manage) -> Result<http::Response<Body>> {
        let timeout = self.config.request_timeout;
        let sent = tokio::time::timeout(timeout, made.client.send(request.request()?)).await;
        let late = |_| out_of_reach("the API server did not answer in time");
        sent.map_err(late)?.map_err(|error| match is_of_credentials(&error) {
            true => no_credentials(),
            false => out_of_reach(OUT_OF_REACH).with_source(error),
        })
    }

    /// Sends a request, with credentials that were read again where the API server does not take the ones that are known.
    async fn open(&self, request: &Manage) -> Result<http::Response<Body>> {
        let made = self.connection(None).await?;
        let response = match self.send_once(&made, request).await {
            // A request that only asks may be sent once more: an idle connection may have been closed as it was taken.
            Err(error) if request.method == Method::GET && error.message() == OUT_OF_REACH => {
                self.send_once(&made, request).await?
            }
            response => response?,
        };
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let renewed = self.connection(Some(&made)).await?;
        if renewed.at == made.at {
            return Ok(response);
        }
        self.send_once(&renewed, request).await
    }

    /// Sends a request, and reads the answer whole.
    pub(crate) async fn send(&self, request: &Manage) -> Result<Answer> {
        let response = self.open(request).await?;
        let reading = self.read(response);
        let late = |_| out_of_reach("the API server did not answer in time");
        tokio::time::timeout(self.config.request_timeout, reading).await.map_err(late)?
    }

    async fn read(&self, response: http::Response<Body>) -> Result<Answer> {
        let (head, mut body) = response.into_parts();
        let limit = if head.status.is_success() { self.config.max_management_bytes } else { MAX_TEXT };
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| out_of_reach("the API server broke off its answer"))?;
            let Ok(data) = frame.into_data() else { continue };
            if u64::try_from(read.len() + data.len()).unwrap_or(u64::MAX) > limit {
                if head.status.is_success() {
                    let message = format!("the API server's answer is larger than {limit} bytes");
                    return Err(Error::new(ErrorKind::Engine, message).with_context("limit_bytes", limit.to_string()));
                }
                break;
            }
            read.extend_from_slice(&data);
        }
        Ok(Answer { status: head.status, headers: head.headers, body: read.freeze() })
    }

    /// Sends a request whose answer is read line by line.
    pub(crate) async fn lines(&self, request: &Manage) -> Result<Lines> {
        let response = self.open(request).await?;
        if !response.status().is_success() {
            return Err(self.read(response).await?.error());
        }
        Ok(Lines { body: response.into_body(), held: BytesMut::new() })
    }

    /// A Service, with whatever has become of it by now.
    pub(crate) async fn service(&self, namespace: &str, name: &str) -> Result<Option<Service>> {
        self.send(&Manage::get(api::service(namespace, name))).await?.object()
    }

    pub(crate) async fn revision(&self, namespace: &str, name: &str) -> Result<Option<Revision>> {
        self.send(&Manage::get(api::revision(namespace, name))).await?.object()
    }

    /// Deletes an object that may be gone already.
    pub(crate) async fn delete(&self, path: String) -> Result<()> {
        let answer = self.send(&Manage::delete(path, None)?).await?;
        if answer.is_done() || (answer.status == StatusCode::NOT_FOUND && answer.said().is_not_found()) {
            return Ok(());
        }
        Err(answer.error())
    }
}

/// Whether credentials could not be had: by a plugin of the kubeconfig that failed, at first or when they were to be renewed. What it
/// printed is in the error, and may be such a credential.
fn is_of_credentials(error: &kube::Error) -> bool {
    let first: Option<&(dyn StdError + 'static)> = Some(error);
    let mut chain = std::iter::successors(first, |error| (*error).source());
    chain.any(|error| error.is::<kube::client::AuthError>())
}

fn no_credentials() -> Error {
    let message = "the credentials for the API server can't be had: does the kubeconfig's plugin run?";
    Error::new(ErrorKind::Misconfigured, message).with_retry(function_gateway_core::Retry::Transient)
}

/// What may be told of a kubeconfig that can't be used. Of one that is no YAML kube shows some lines, which may hold a token.
fn told_of(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(_) => "it is not the YAML of a kubeconfig".to_owned(),
        KubeconfigError::ParseProxyUrl(_) => "its proxy is no URL".to_owned(),
        error => error.to_string(),
    }
}

async fn of_kubeconfig(file: Kubeconfig, context: Option<String>) -> Result<kube::Config, String> {
    let names_proxy = |named: &NamedCluster| named.cluster.as_ref().is_some_and(|cluster| cluster.proxy_url.is_some());
    let has_proxy = file.clusters.iter().any(names_proxy);
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| told_of(&error))?;
    if !has_proxy {
        // One that the environment names is not this library's to take.
        config.proxy_url = None;
    }
    Ok(config)
}

/// The certificates of a text in PEM, in DER.
fn certificates(pem: &str) -> Option<Vec<Vec<u8>>> {
    use base64::Engine as _;

    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = pem.split(BEGIN).skip(1).map(|block| {
        let text: String = block.split_once(END)?.0.split_ascii_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(text).ok()
    });
    blocks.collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_from_pem() {
        let one = "-----BEGIN CERTIFICATE-----\nAQID\nBA==\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates(&format!("# a\n{one}{one}")), Some(vec![vec![1, 2, 3, 4]; 2]));
        for broken in [
            "",
            "AQID",
            "-----BEGIN CERTIFICATE-----\nAQID",
            "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----",
        ] {
            assert_eq!(certificates(broken), None, "{broken}");
        }
    }

    #[test]
    fn parameters_are_encoded() {
        let request = Manage::get("/a").with("labelSelector", Some("x/y=z,a b")).with("limit", None::<String>);
        assert_eq!(request.request().unwrap().uri(), "/a?labelSelector=x%2Fy%3Dz%2Ca+b");
    }
}
