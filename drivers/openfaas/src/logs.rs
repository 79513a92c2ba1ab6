//! The log of a function: lines of JSON, as they come.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use function_gateway_core::{BoxStream, CallContext, Error, ErrorKind, LogLine, LogQuery, Result, Timestamp};
use futures_util::stream;
use http::StatusCode;
use serde::Deserialize;

use crate::client::{Client, Manage};
use crate::error::of_transport;
use crate::mapping::{Held, Provider};
use crate::names::Target;

/// How long a line may be that is put together.
const MAX_LINE: usize = 1024 * 1024;
/// How long to wait before a log is followed on that has ended at once.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the engine may take until it begins to answer.
const BEGIN: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    instance: String,
    timestamp: Option<String>,
    #[serde(default)]
    text: String,
}

/// Reads a function's log. It ends where the engine has no more, or never where it is followed: the engine ends what is followed
/// after a while by itself (its `write_timeout`), which is no end, and it is asked on from there.
pub(crate) async fn read<'a>(
    client: &'a Client,
    cx: &'a CallContext,
    target: Target<'a>,
    query: LogQuery,
    provider: Provider,
) -> Result<BoxStream<'a, Result<LogLine>>> {
    let mut reader = Reader {
        client,
        cx,
        target,
        since: query.since,
        last: VecDeque::new(),
        query,
        provider,
        response: None,
        held: BytesMut::new(),
        fruitful: false,
        ended: false,
    };
    reader.open().await?;
    Ok(Box::pin(stream::unfold(reader, |mut reader| async move {
        let next = reader.next().await?;
        Some((next, reader))
    })))
}

struct Reader<'a> {
    client: &'a Client,
    cx: &'a CallContext,
    target: Target<'a>,
    query: LogQuery,
    provider: Provider,
    /// From when on is asked.
    since: Option<Timestamp>,
    /// Lines of that time, which the engine tells again where it is asked on.
    last: VecDeque<Bytes>,
    response: Option<reqwest::Response>,
    held: BytesMut,
    /// Whether a line has come since it was opened.
    fruitful: bool,
    ended: bool,
}

impl Reader<'_> {
    async fn open(&mut self) -> Result<()> {
        // What faasd gives unless it is asked for more are the last five minutes.
        let since = match (self.since, self.provider) {
            (None, Provider::Faasd) => Some("1970-01-01T00:00:00Z".to_owned()),
            (since, _) => since.map(|since| since.to_string()),
        };
        // The last lines are those before what was read already.
        let tail = self.query.tail.filter(|_| self.last.is_empty()).map(|lines| lines.to_string());
        let request = Manage::get("/system/logs")
            .with("name", Some(self.target.service))
            .with("namespace", self.target.namespace)
            .with("since", since)
            .with("tail", tail)
            .with("follow", self.query.follow.then_some("true"));
        let opened = tokio::time::timeout(BEGIN, self.client.open(self.cx, &request, None)).await;
        let opened = opened
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the engine did not begin to tell the log in time"))?;
        let response = opened?;
        if response.status() != StatusCode::OK {
            let answer = self.client.read(response, 64 * 1024).await?;
            return Err(answer.error());
        }
        (self.response, self.fruitful) = (Some(response), false);
        self.held.clear();
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<LogLine>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(line) = self.take_line() {
                match self.parse(&line) {
                    Ok(Some(line)) => {
                        self.fruitful = true;
                        return Some(Ok(line));
                    }
                    Ok(None) => continue,
                    Err(error) => return Some(Err(error)),
                }
            }
            let chunk = match &mut self.response {
                Some(response) => response.chunk().await,
                None => Ok(None),
            };
            match chunk {
                Ok(Some(chunk)) if self.held.len() + chunk.len() <= MAX_LINE => self.held.extend_from_slice(&chunk),
                Ok(Some(_)) => {
                    return self.end(Error::new(ErrorKind::Engine, "a line of the log is longer than 1 MiB"));
                }
                // The end of what is followed may be a cut as well.
                Ok(None) | Err(_) if self.query.follow => {
                    if let Err(error) = self.follow_on().await {
                        return self.end(error);
                    }
                }
                Ok(None) if self.held.is_empty() => return None,
                // A last line without its end.
                Ok(None) => self.held.extend_from_slice(b"\n"),
                Err(error) => return self.end(of_transport(error)),
            }
        }
    }

    fn end(&mut self, error: Error) -> Option<Result<LogLine>> {
        self.ended = true;
        Some(Err(error))
    }

    /// Asks on from the last line, as long as the function is there.
    async fn follow_on(&mut self) -> Result<()> {
        self.response = None;
        if !self.fruitful {
            tokio::time::sleep(PAUSE).await;
        }
        let held = self.client.function(self.cx, &self.target).await?;
        if held.is_none_or(|document| document.held(&self.target) == Held::Foreign) {
            self.ended = true;
            return Ok(());
        }
        self.open().await
    }

    fn take_line(&mut self) -> Option<Bytes> {
        let end = self.held.iter().position(|byte| *byte == b'\n')?;
        let line = self.held.split_to(end + 1).freeze();
        Some(line.slice(..end))
    }

    /// A line, unless it was told before or is older than what is asked for: some providers go by whole seconds.
    fn parse(&mut self, line: &[u8]) -> Result<Option<LogLine>> {
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let line: Line = serde_json::from_slice(line).map_err(|error| {
            Error::new(ErrorKind::Engine, "the engine tells a log that can't be read").with_source(error)
        })?;
        let at: Option<Timestamp> = line.timestamp.as_deref().and_then(|at| at.parse().ok());
        let text = Bytes::from(line.text);
        if let (Some(at), Some(since)) = (at, self.since)
            && (at < since || (at == since && self.last.contains(&text)))
        {
            return Ok(None);
        }
        if let Some(at) = at
            && self.query.follow
        {
            if self.since != Some(at) {
                self.last.clear();
                self.since = Some(at);
            }
            // Lines of one microsecond; more than these are told twice at worst.
            if self.last.len() >= 64 {
                self.last.pop_front();
            }
            self.last.push_back(text.clone());
        }
        let mut told = LogLine::new(text);
        told.at = at;
        told.instance = Some(line.instance).filter(|instance| !instance.is_empty());
        Ok(Some(told))
    }
}
