//! `invoke`: executes a function.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use function_gateway::Timestamp;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Method, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use crate::client::{self, Client, Connection};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Format, Progress};

#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// Name of the function, or name and generation: greet@2
    name: String,
    /// Payload: a text, @FILE, or - for standard input; none without it
    #[arg(long, short, value_name = "TEXT|@FILE|-", allow_hyphen_values = true)]
    data: Option<Data>,
    /// Header of the call, such as 'X-Function-Timeout-Ms: 5000'
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// Have it executed later: it is accepted, and its id is shown
    #[arg(long = "async")]
    later: bool,
    /// How long it is to wait at least, such as 500ms, 5s, 10m, 2h or 1d
    #[arg(long, value_name = "TIME", requires = "later", conflicts_with = "at", value_parser = duration)]
    delay: Option<Duration>,
    /// Before when it is not to be executed, such as 2027-01-31T08:00:00Z
    #[arg(long, value_name = "WHEN", requires = "later")]
    at: Option<Timestamp>,
    /// Have the generation that serves now execute it
    #[arg(long, requires = "later")]
    pin: bool,
    /// Tells that two calls are one: the second gets the answer of the first
    #[arg(long, value_name = "KEY", value_parser = key)]
    idempotency_key: Option<HeaderValue>,
    #[command(flatten)]
    connection: Connection,
    /// Form of the output: for people the result as it is, as it comes; for programs a document about the execution
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// What is sent: a payload, or the data of an event.
#[derive(Debug, Clone)]
pub(super) enum Data {
    Text(String),
    File(PathBuf),
    StandardInput,
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        match (text, text.strip_prefix('@')) {
            ("-", _) => Self::StandardInput,
            (_, Some(file)) => Self::File(file.into()),
            _ => Self::Text(text.to_owned()),
        }
    }
}

impl Data {
    /// What is in a file, of which - is standard input.
    pub(super) fn of_file(file: PathBuf) -> Self {
        if file.as_os_str() == "-" { Self::StandardInput } else { Self::File(file) }
    }

    /// What type the payload has where no header says so.
    pub(super) fn content_type(&self) -> &'static str {
        match self {
            Self::Text(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => "application/json",
            Self::Text(_) => "text/plain; charset=utf-8",
            Self::File(file) if file.extension().is_some_and(|extension| extension == "json") => "application/json",
            Self::File(_) | Self::StandardInput => "application/octet-stream",
        }
    }

    /// All of it, in memory.
    pub(super) async fn read(self) -> Result<Vec<u8>> {
        match self {
            Self::Text(text) => Ok(text.into_bytes()),
            Self::StandardInput => {
                let mut bytes = Vec::new();
                tokio::io::stdin().read_to_end(&mut bytes).await?;
                Ok(bytes)
            }
            Self::File(file) => {
                let wrong = |error| Failure::usage(format!("{}: {error}", file.display()));
                tokio::fs::read(&file).await.map_err(wrong)
            }
        }
    }

    async fn into_body(self) -> Result<Body> {
        Ok(match self {
            Self::Text(text) => Body::from(text),
            Self::StandardInput => Body::wrap_stream(ReaderStream::new(tokio::io::stdin())),
            Self::File(file) => {
                let wrong = |error| Failure::usage(format!("{}: {error}", file.display()));
                Body::from(tokio::fs::File::open(&file).await.map_err(wrong)?)
            }
        })
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("it is like 'Accept: text/plain'")?;
    let name = HeaderName::try_from(name.trim()).map_err(|error| error.to_string())?;
    Ok((name, HeaderValue::try_from(value.trim()).map_err(|error| error.to_string())?))
}

fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.strip_prefix(number).unwrap_or_default();
    let millis = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let millis = millis.zip(number.parse::<u64>().ok()).and_then(|(millis, number)| number.checked_mul(millis));
    millis.map(Duration::from_millis).ok_or_else(|| "it is a time such as 500ms, 5s, 10m, 2h or 1d".to_owned())
}

/// A key as a string of structured fields (RFC 9651).
fn key(text: &str) -> Result<HeaderValue, String> {
    let is_fit = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    HeaderValue::try_from(quoted)
        .ok()
        .filter(|_| is_fit)
        .ok_or_else(|| "it has ASCII characters that are visible".to_owned())
}

impl Invoke {
    pub(crate) async fn run(self) -> Result<()> {
        let Self { name, data, header, later, delay, at, pin, idempotency_key, connection, output } = self;
        let client = connection.client()?;
        let mut headers = HeaderMap::new();
        if let Some(data) = &data {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(data.content_type()));
        }
        for (name, _) in &header {
            headers.remove(name);
        }
        headers.extend(header);
        let mut steer = |name: &'static str, value: HeaderValue| headers.insert(HeaderName::from_static(name), value);
        if let Some(key) = idempotency_key {
            steer("idempotency-key", key);
        }
        if let Some(millis) = delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)) {
            steer("x-function-delay-ms", millis.into());
        }
        if let Some(at) = at.and_then(|at| HeaderValue::try_from(at.to_string()).ok()) {
            steer("x-function-not-before", at);
        }
        if pin {
            steer("x-function-pin", HeaderValue::from_static("true"));
        }
        let route = if later { "submit" } else { "invocations" };
        let mut request = client.request(Method::POST, &["v1", "functions", &name, route]).headers(headers);
        if let Some(data) = data {
            request = request.body(data.into_body().await?);
        }
        if later {
            return submit(&client, request, output).await;
        }
        let progress = Progress::start(format!("{name} is running"));
        let answer = client.call(request).await?;
        drop(progress);
        show(answer, &name, output).await
    }
}

/// The part of what was accepted that is shown.
#[derive(Debug, Deserialize)]
struct Accepted {
    id: String,
    repeated: bool,
}

async fn submit(client: &Client, request: RequestBuilder, output: Format) -> Result<()> {
    let document = client.document(request).await?;
    if output == Format::Json {
        return Ok(output::json(&document)?);
    }
    let Accepted { id, repeated } = client::read(document)?;
    if repeated {
        output::note("It was accepted before, under the same key.");
    }
    Ok(output::line(&id)?)
}

/// Shows what a function answered. It is a failure where the function has failed.
pub(super) async fn show(answer: Response, what: &str, output: Format) -> Result<()> {
    let outcome = header_text(&answer, "x-function-outcome");
    let failure = header_text(&answer, "x-function-failure");
    let id = header_text(&answer, "x-function-invocation-id").unwrap_or_default();
    match output {
        Format::Table => copy(answer).await?,
        Format::Json => describe(answer).await?,
    }
    let how = match outcome.as_deref() {
        Some("succeeded") => return Ok(()),
        Some("rejected") => "refused the call",
        _ => "failed",
    };
    let reason = failure.map_or_else(String::new, |failure| format!(": {failure}"));
    Err(Failure::new(Exit::FunctionFailed, format!("{what} {how}{reason} (execution: {id})")))
}

fn header_text(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Writes the result as it comes.
async fn copy(answer: Response) -> Result<()> {
    let mut out = tokio::io::stdout();
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        out.write_all(&chunk.map_err(|error| client::broken_off(&error))?).await?;
        out.flush().await?;
    }
    Ok(())
}

/// Writes a document about the execution, with its result: as JSON, text or base64, whichever it is first.
async fn describe(answer: Response) -> Result<()> {
    let status = answer.status().as_u16();
    let [id, outcome, failure, content_type] =
        ["x-function-invocation-id", "x-function-outcome", "x-function-failure", "content-type"]
            .map(|name| header_text(&answer, name));
    let body = answer.bytes().await.map_err(|error| client::broken_off(&error))?;
    let result = match (serde_json::from_slice::<Value>(&body), std::str::from_utf8(&body)) {
        (Ok(value), _) => json!({"json": value}),
        (Err(_), Ok(text)) => json!({"text": text}),
        (Err(_), Err(_)) => json!({"base64": STANDARD.encode(&body)}),
    };
    let about = json!({
        "id": id,
        "outcome": outcome,
        "failure": failure,
        "status": status,
        "content_type": content_type,
        "result": result,
    });
    Ok(output::json(&about)?)
}
