//! A client of the REST API.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, iter};

use clap::Args;
use function_gateway::Violation;
use function_gateway::rest::auth::is_loopback;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use serde_json::Value;

use crate::exit::{Exit, Failure, Result};
use crate::output;

/// Says who answers a call: the function or the gateway.
const ANSWERED_BY: HeaderName = HeaderName::from_static("x-function-answered-by");

/// The variable with the API key. There is no flag for it, since other users of a machine see flags.
const KEY_VARIABLE: &str = "FUNCTION_GATEWAY_KEY";

/// Which gateway, and as whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// URL of the gateway
    #[arg(long, global = true, env = "FUNCTION_GATEWAY_URL", default_value = "http://127.0.0.1:8080")]
    url: Url,
    /// File with the API key or token; without it, that of the environment variable FUNCTION_GATEWAY_KEY is used
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl Connection {
    fn key(&self) -> Result<Option<HeaderValue>> {
        let (source, key) = match &self.key_file {
            Some(file) => {
                let read = fs::read_to_string(file);
                let key = read.map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
                (file.display().to_string(), key)
            }
            None => match env::var(KEY_VARIABLE) {
                Ok(key) => (KEY_VARIABLE.to_owned(), key),
                Err(env::VarError::NotPresent) => return Ok(None),
                Err(error) => return Err(Failure::usage(format!("{KEY_VARIABLE}: {error}"))),
            },
        };
        if key.trim().is_empty() {
            return Ok(None);
        }
        let value = HeaderValue::try_from(format!("Bearer {}", key.trim()));
        let mut value = value.map_err(|_| Failure::usage(format!("{source} holds no key: one is a line of text")))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    pub(crate) fn client(&self) -> Result<Client> {
        const CONNECT: Duration = Duration::from_secs(10);
        if !matches!(self.url.scheme(), "http" | "https") {
            return Err(Failure::usage(format!("--url: {} is not like http://127.0.0.1:8080", self.url)));
        }
        let key = self.key()?;
        let mut builder = reqwest::Client::builder()
            .default_headers(key.map(|key| (AUTHORIZATION, key)).into_iter().collect::<HeaderMap>())
            .connect_timeout(CONNECT)
            // An answer of a function is shown, wherever it leads.
            .redirect(redirect::Policy::none());
        if self.url.scheme() == "http" {
            // So that a machine without certificates will do.
            builder = builder.tls_certs_only(iter::empty());
        }
        if self.url.host_str().is_some_and(is_loopback) {
            // A proxy would get the key, and look for the gateway on its own machine.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| Failure::usage(causes(&error)))?;
        Ok(Client { http, url: self.url.clone() })
    }
}

/// Talks to one gateway.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: Url,
}

/// What a list holds.
#[derive(Debug, Deserialize)]
struct Part {
    items: Vec<Value>,
    next: Option<String>,
    #[serde(default)]
    unreadable: Vec<Unreadable>,
}

#[derive(Debug, Deserialize)]
struct Unreadable {
    id: String,
    reason: String,
}

/// The parts of a problem document (RFC 9457) that are shown.
#[derive(Debug, Deserialize)]
struct Problem {
    detail: String,
    code: String,
    class: String,
    #[serde(default)]
    context: serde_json::Map<String, Value>,
    #[serde(default)]
    violations: Vec<Violation>,
    request_id: String,
}

impl Client {
    /// A request for what is at a path below the gateway's URL.
    pub(crate) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        self.http.request(method, url)
    }

    /// Sends a request. What the gateway refuses is a failure.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = self.send_any(request).await?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(problem(response).await),
        }
    }

    /// Sends a call. What the function answers is no failure here, whatever it is.
    pub(crate) async fn call(&self, request: RequestBuilder) -> Result<Response> {
        let response = self.send_any(request).await?;
        match response.headers().get(ANSWERED_BY).is_some_and(|by| by == "function") {
            true => Ok(response),
            false => Err(problem(response).await),
        }
    }

    async fn send_any(&self, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|error| {
            let message = format!("the gateway at {} is out of reach: {}", self.url, causes(&error.without_url()));
            Failure::new(Exit::OutOfReach, message)
        })
    }

    /// Sends a request and reads the document that is answered.
    pub(crate) async fn document(&self, request: RequestBuilder) -> Result<Value> {
        document(self.send(request).await?).await
    }

    /// Reads a list, up to a limit. Says whether there is more.
    pub(crate) async fn list(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<(Vec<Value>, bool)> {
        const MAX_PART: usize = 1000;
        let mut items = Vec::new();
        let mut cursor = None;
        loop {
            let mut request = self.request(Method::GET, path).query(query);
            request = request.query(&[("limit", (limit - items.len()).min(MAX_PART))]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let part: Part = read(self.document(request).await?)?;
            for Unreadable { id, reason } in part.unreadable {
                output::note(&format!("{id} can't be read: {reason}"));
            }
            items.extend(part.items);
            match part.next {
                None => return Ok((items, false)),
                Some(_) if items.len() >= limit => return Ok((items, true)),
                next => cursor = next,
            }
        }
    }
}

/// The document that was answered.
pub(crate) async fn document(response: Response) -> Result<Value> {
    let bytes = response.bytes().await.map_err(|error| broken_off(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| not_understood(&error))
}

/// A document as what it is to be.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(document: Value) -> Result<T> {
    T::deserialize(document).map_err(|error| not_understood(&error))
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::new(Exit::GatewayFailed, format!("the gateway's answer is not understood: {error}"))
}

/// An answer did not come to its end.
pub(crate) fn broken_off(error: &reqwest::Error) -> Failure {
    Failure::new(Exit::GatewayFailed, format!("the answer broke off: {}", causes(error)))
}

/// Why the gateway did not do what it was asked for.
async fn problem(response: Response) -> Failure {
    let status = response.status();
    let is_problem = response.headers().get(CONTENT_TYPE).is_some_and(|media| media == "application/problem+json");
    if !is_problem {
        let exit = if status.is_server_error() { Exit::GatewayFailed } else { Exit::Refused };
        let message = format!("{} answered {status}, as no Function Gateway does", response.url());
        return Failure::new(exit, message);
    }
    match document(response).await.and_then(|document| Ok((read::<Problem>(document.clone())?, document))) {
        Err(failure) => failure,
        Ok((problem, document)) => {
            Failure { exit: exit_of(&problem.class), message: message_of(status, &problem), problem: Some(document) }
        }
    }
}

fn exit_of(class: &str) -> Exit {
    match class {
        "caller" => Exit::Refused,
        "function" | "rejected" | "timeout" | "cancelled" => Exit::FunctionFailed,
        _ => Exit::GatewayFailed,
    }
}

fn message_of(status: StatusCode, problem: &Problem) -> String {
    let Problem { detail, code, class, context, violations, request_id } = problem;
    let mut message = format!("{code}: {detail}");
    for (name, value) in context {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // Writing to a text does not fail.
        let _ = write!(message, " ({name}: {value})");
    }
    for violation in violations {
        let _ = write!(message, "\n  {violation}");
    }
    if status == StatusCode::UNAUTHORIZED {
        let _ = write!(message, "\n  a key is taken from the environment variable {KEY_VARIABLE}, or from --key-file");
    }
    if exit_of(class) == Exit::GatewayFailed {
        let _ = write!(message, "\n  the gateway's log says more under {request_id}");
    }
    message
}

/// An error and its causes, in a line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
