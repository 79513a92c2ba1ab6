//! `invoke`: executes a function.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Method, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::client::{self, Connection};
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
    #[command(flatten)]
    connection: Connection,
    /// Form of the output: for people the result as it is, as it comes; for programs a document about the execution
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Clone)]
enum Data {
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
    /// What type the payload has where no header says so.
    fn content_type(&self) -> &'static str {
        match self {
            Self::Text(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => "application/json",
            Self::Text(_) => "text/plain; charset=utf-8",
            Self::File(file) if file.extension().is_some_and(|extension| extension == "json") => "application/json",
            Self::File(_) | Self::StandardInput => "application/octet-stream",
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

impl Invoke {
    pub(crate) async fn run(self) -> Result<()> {
        let Self { name, data, header, connection, output } = self;
        let client = connection.client()?;
        let mut headers = HeaderMap::new();
        if let Some(data) = &data {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(data.content_type()));
        }
        for (name, _) in &header {
            headers.remove(name);
        }
        headers.extend(header);
        let mut request = client.request(Method::POST, &["v1", "functions", &name, "invocations"]).headers(headers);
        if let Some(data) = data {
            request = request.body(data.into_body().await?);
        }
        let progress = Progress::start(format!("{name} is running"));
        let answer = client.call(request).await?;
        drop(progress);
        let outcome = header_text(&answer, "x-function-outcome");
        let failure = header_text(&answer, "x-function-failure");
        let id = header_text(&answer, "x-function-invocation-id").unwrap_or_default();
        match output {
            Format::Table => copy(answer).await?,
            Format::Json => describe(answer).await?,
        }
        let what = match outcome.as_deref() {
            Some("succeeded") => return Ok(()),
            Some("rejected") => "refused the call",
            _ => "failed",
        };
        let reason = failure.map_or_else(String::new, |failure| format!(": {failure}"));
        Err(Failure::new(Exit::FunctionFailed, format!("{name} {what}{reason} (execution: {id})")))
    }
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
