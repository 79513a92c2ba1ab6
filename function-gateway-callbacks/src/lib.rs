//! Callbacks of Function Gateway over HTTP: what a function's destinations are told of the ends of its invocations, signed as
//! [Standard Webhooks](https://www.standardwebhooks.com) has it.
//!
//! [`HttpCallbacks`] is the [`CallbackSender`] that a host gives to its gateway's builder (`GatewayBuilder::callbacks`). By
//! default it speaks `https:` only, and to public addresses only. `docs/callbacks.md` says what a receiver gets, how it checks
//! the signature, and what its answers mean.
//!
//! ```
//! use function_gateway_callbacks::{CallbackConfig, HttpCallbacks};
//! use function_gateway_core::CallbackSender;
//!
//! let callbacks = HttpCallbacks::new(CallbackConfig::new())?;
//! assert_eq!(callbacks.check("https://example.com/hooks"), None);
//! // The same as 169.254.169.254, where clouds hand out credentials.
//! assert!(callbacks.check("https://0xa9fea9fe/latest").is_some_and(|reason| reason.contains("link-local")));
//!
//! let callbacks = HttpCallbacks::new(CallbackConfig::new().allow_networks(["10.7.0.0/16"]))?;
//! assert_eq!(callbacks.check("https://10.7.1.1/hooks"), None);
//! # Ok::<_, function_gateway_core::Error>(())
//! ```

mod address;
mod config;
mod error;
mod network;
mod resolve;
mod sign;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::{CallContext, Callback, CallbackSender, Error, ErrorKind, Result};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::address::Rules;
use crate::error::{of_answer, of_refused, of_transport};
use crate::network::Networks;
use crate::resolve::{Filter, Lookup, SystemLookup};

pub use config::CallbackConfig;

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("function-gateway/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// How much of an answer that is no success is read.
const MAX_DETAIL: usize = 4096;
/// Each receiver is another, so few connections are worth keeping, and not for long.
const MAX_IDLE: usize = 4;
const MAX_IDLE_TIME: Duration = Duration::from_secs(10);

/// Sends callbacks over HTTP.
///
/// # Behaviour
/// - One `POST` of the document, with `webhook-id`, `webhook-timestamp` and, where the callback has a secret,
///   `webhook-signature`. A secret is a key: what follows `whsec_`, in base64, or else the text itself. Several keys with white
///   space between them sign each, while receivers change from one to the next. Bytes that are no ASCII text are one key.
/// - Success is a status of 200 to 299, as soon as it is there. 408, 429, 500 to 599, a timeout and a connection that fails are
///   [`Unavailable`](ErrorKind::Unavailable) and transient, with what `Retry-After` asks for. All else, a redirect included, is
///   [`Misconfigured`](ErrorKind::Misconfigured) for good.
/// - An address that the host does not allow is [`PermissionDenied`](ErrorKind::PermissionDenied), and nothing is sent. A host's
///   name is judged by what it leads to, each time that a connection is made.
/// - A secret that can't be used is [`Misconfigured`](ErrorKind::Misconfigured), and nothing is sent.
/// - Neither the address nor what the receiver says is part of a public message.
/// - No proxy is used, and nothing is read from the environment.
///
/// # Cancel safety
/// Dropping the future of [`send`](CallbackSender::send) closes its connection. The receiver may have got the document.
pub struct HttpCallbacks {
    rules: Rules,
    timeout: Duration,
    client: reqwest::Client,
}

impl fmt::Debug for HttpCallbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpCallbacks")
            .field("rules", &self.rules)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl HttpCallbacks {
    /// Takes the host's choices.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument), which names the setting that is wrong.
    pub fn new(config: CallbackConfig) -> Result<Self> {
        Self::with_lookup(config, Arc::new(SystemLookup))
    }

    fn with_lookup(config: CallbackConfig, lookup: Arc<dyn Lookup>) -> Result<Self> {
        config.validate()?;
        let networks = Arc::new(Networks::new(&config.allow_networks)?);
        let client = client(&config, Filter::new(lookup, Arc::clone(&networks)))?;
        Ok(Self { timeout: config.timeout, client, rules: Rules::new(config, networks) })
    }

    fn request(&self, callback: &Callback) -> Result<reqwest::Request> {
        // Once more, as the host may have become stricter since the function was created. The client looks no name up where the
        // host is an address, so that those are kept out here and nowhere else.
        let url = self.rules.examine(&callback.url).map_err(|reason| of_refused(&reason))?;
        let mut request = reqwest::Request::new(Method::POST, url);
        let (id, timestamp) = (callback.id.to_string(), callback.at.as_micros().div_euclid(1_000_000).to_string());
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::CONTENT_TYPE, JSON);
        if let Some(secret) = &callback.secret {
            headers.insert(SIGNATURE, value(sign::signatures(secret, &id, &timestamp, &callback.body)?)?);
        }
        headers.insert(ID, value(id)?);
        headers.insert(TIMESTAMP, value(timestamp)?);
        *request.body_mut() = Some(callback.body.clone().into());
        Ok(request)
    }
}

#[async_trait]
impl CallbackSender for HttpCallbacks {
    fn check(&self, url: &str) -> Option<String> {
        self.rules.examine(url).err()
    }

    async fn send(&self, cx: &CallContext, callback: Callback) -> Result<()> {
        let mut request = self.request(&callback)?;
        let left = cx.deadline().map_or(Duration::MAX, |deadline| deadline.remaining());
        *request.timeout_mut() = Some(self.timeout.min(left));
        let started = Instant::now();
        let mut response = self.client.execute(request).await.map_err(of_transport)?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let headers: HeaderMap = std::mem::take(response.headers_mut());
        let text = beginning(response).await;
        Err(of_answer(status, &headers, &text, callback.at.plus(started.elapsed())))
    }
}

fn value(text: String) -> Result<HeaderValue> {
    HeaderValue::try_from(text)
        .map_err(|error| Error::new(ErrorKind::Internal, "a header of a callback can't be written").with_source(error))
}

/// What an answer begins with, in one line. That it breaks off changes nothing of what its status says.
async fn beginning(mut response: reqwest::Response) -> String {
    let mut read = Vec::new();
    while read.len() < MAX_DETAIL
        && let Ok(Some(chunk)) = response.chunk().await
    {
        read.extend(chunk.iter().take(MAX_DETAIL - read.len()));
    }
    String::from_utf8_lossy(&read).trim().replace(char::is_control, " ")
}

fn client(config: &CallbackConfig, resolver: Filter) -> Result<reqwest::Client> {
    let refuse = |what: &'static str| Error::new(ErrorKind::InvalidArgument, what);
    let mut builder = reqwest::Client::builder()
        // A redirect would lead to an address that nobody has checked.
        .redirect(reqwest::redirect::Policy::none())
        // The queue tries again, and counts it.
        .retry(reqwest::retry::never())
        // The environment is not this library's to read; and a proxy would look names up itself.
        .no_proxy()
        .dns_resolver(resolver)
        .http1_only()
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host(MAX_IDLE)
        .pool_idle_timeout(MAX_IDLE_TIME);
    if let Some(pem) = &config.ca_pem {
        let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).ok();
        let certificates = certificates.filter(|certificates| !certificates.is_empty());
        builder = builder.tls_certs_merge(certificates.ok_or_else(|| refuse("ca_pem: holds no certificate in PEM"))?);
    }
    builder.build().map_err(|error| refuse("the client for callbacks can't be set up").with_source(error))
}

/// The code in the page about callbacks, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/callbacks.md")]
struct Page;

#[cfg(test)]
mod tests;
