//! The log, on standard error: lines for people, or JSON for programs.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use function_gateway::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat};
use crate::exit::{Failure, Result};

/// The target of the events of which each is a request.
const ACCESS: &str = "function_gateway::access";

/// That of the events of which each is a change.
const AUDIT: &str = "function_gateway::audit";

/// Starts the log. Once in a process. What is given is to be set once the welcome has been told.
pub(crate) fn start(log: &Log) -> Result<Arc<AtomicBool>> {
    let welcomed = Arc::new(AtomicBool::new(false));
    let wrong = |reason: String| Failure::usage(format!("`log.level`: {:?}: {reason}", log.level));
    let filter = EnvFilter::try_new(&log.level).map_err(|error| wrong(error.to_string()))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Json => tracing::subscriber::set_global_default(subscriber.json().flatten_event(true).finish()),
        LogFormat::Text => {
            let ansi = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let other = Format::default().compact().with_timer(Millis);
            let subscriber =
                subscriber.with_ansi(ansi).event_format(Readable { other, welcomed: Arc::clone(&welcomed) });
            tracing::subscriber::set_global_default(subscriber.finish())
        }
    };
    started.map_err(|error| wrong(error.to_string()))?;
    Ok(welcomed)
}

/// The time of day, to the millisecond.
struct Millis;

impl FormatTime for Millis {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        // Of a time such as 2026-11-24T05:03:53.422856Z.
        let time = Timestamp::now().to_string();
        write!(writer, "{}Z", time.get(11..23).unwrap_or(&time))
    }
}

/// A request in a line of its own kind, everything else as it is usual.
struct Readable {
    other: Format<Compact, Millis>,
    /// Until then, changes are those of the gateway itself, of which the welcome tells.
    welcomed: Arc<AtomicBool>,
}

impl<S, N> FormatEvent<S, N> for Readable
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut request = Request::default();
        event.record(&mut request);
        match event.metadata().target() {
            ACCESS => {}
            AUDIT if !self.welcomed.load(Ordering::Relaxed) => return Ok(()),
            _ => return self.other.format_event(context, writer, event),
        }
        Millis.format_time(&mut writer)?;
        writeln!(writer, " {}", request.line(writer.has_ansi_escapes()))
    }
}

/// What is logged of a request.
#[derive(Debug, Default)]
struct Request {
    method: String,
    path: String,
    status: u64,
    took_us: u64,
    request_id: String,
    tenant: String,
    principal: String,
}

impl Visit for Request {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "status" => self.status = value,
            "took_us" => self.took_us = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = match field.name() {
            "method" => &mut self.method,
            "path" => &mut self.path,
            "request_id" => &mut self.request_id,
            "tenant" => &mut self.tenant,
            "principal" => &mut self.principal,
            _ => return,
        };
        value.clone_into(text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl Request {
    fn line(&self, ansi: bool) -> String {
        let Self { method, path, status, took_us, request_id, tenant, principal } = self;
        let (colour, plain) = match (ansi, status) {
            (false, _) => ("", ""),
            (true, 500..) => ("\x1b[31m", "\x1b[0m"),
            (true, 400..) => ("\x1b[33m", "\x1b[0m"),
            (true, _) => ("\x1b[32m", "\x1b[0m"),
        };
        let (millis, tenths) = (took_us / 1000, took_us % 1000 / 100);
        let mut line = format!("{colour}{status}{plain} {method:<6} {path}  {millis}.{tenths} ms");
        if !principal.is_empty() {
            // Writing to a text does not fail.
            let _ = write!(line, "  {tenant}/{principal}");
        }
        let _ = write!(line, "  {request_id}");
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_line() {
        let request = Request {
            method: "POST".into(),
            path: "/v1/functions/greet/invocations".into(),
            status: 200,
            took_us: 31_250,
            request_id: "r-1".into(),
            tenant: "local".into(),
            principal: "anonymous".into(),
        };
        let line = "200 POST   /v1/functions/greet/invocations  31.2 ms  local/anonymous  r-1";
        assert_eq!(request.line(false), line);
        let unknown = Request { status: 401, tenant: String::new(), principal: String::new(), ..request };
        assert_eq!(unknown.line(true), "\x1b[33m401\x1b[0m POST   /v1/functions/greet/invocations  31.2 ms  r-1");
    }
}
