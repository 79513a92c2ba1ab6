//! What is told once the gateway is ready: where it is, and what to try.

use std::env;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::config::{Config, LogFormat, masked};
use crate::output;
use crate::samples::Registered;

/// What there is to tell.
pub(crate) struct Welcome<'a> {
    pub(crate) config: &'a Config,
    /// The file that the configuration is from.
    pub(crate) file: Option<&'a Path>,
    pub(crate) address: SocketAddr,
    pub(crate) samples: &'a Registered,
}

impl Welcome<'_> {
    /// Tells people on standard output, and programs in the log.
    pub(crate) fn show(&self) -> io::Result<()> {
        match self.config.log.format {
            LogFormat::Text => output::line(&self.text()),
            LogFormat::Json => {
                tracing::info!(url = self.url(), store = self.store(), access = self.access(), "the gateway is ready");
                Ok(())
            }
        }
    }

    fn url(&self) -> String {
        let reachable = match self.address.ip() {
            IpAddr::V4(any) if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(any) if any.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            address => address,
        };
        format!("http://{}", SocketAddr::from((reachable, self.address.port())))
    }

    fn store(&self) -> String {
        match self.config.is_in_data() {
            true => self.config.data.canonicalize().unwrap_or_else(|_| self.config.data.clone()).display().to_string(),
            false => masked(&self.config.store.url),
        }
    }

    fn access(&self) -> &'static str {
        match self.config.has_authentication() {
            true => "with authentication",
            false => "without authentication, on this machine alone",
        }
    }

    fn text(&self) -> String {
        let mut text = format!("Function Gateway {} is ready.\n\n", env!("CARGO_PKG_VERSION"));
        let mut about = |name: &str, value: &str| {
            // Writing to a text does not fail.
            let _ = writeln!(text, "  {name:<10} {value}");
        };
        about("Address", &self.url());
        about("API", &format!("{}/openapi.json", self.url()));
        about("Access", self.access());
        about("Kept in", &self.store());
        if let Some(file) = self.file {
            about("Settings", &file.display().to_string());
        }
        let ready: Vec<_> = self.samples.ready.iter().map(|name| name.as_str()).collect();
        if !ready.is_empty() {
            about("Samples", &ready.join(", "));
        }
        for (name, reason) in &self.samples.missing {
            about("Not ready", &format!("{name}: {reason}"));
        }
        text.push_str("\nTry it in another terminal:\n\n");
        for line in self.to_try() {
            let _ = writeln!(text, "  {line}");
        }
        text.push_str("\nCtrl-C lets calls end and stops the gateway; a second one stops it at once.\n");
        text
    }

    /// Lines to be copied into a shell.
    fn to_try(&self) -> Vec<String> {
        let url = self.url();
        let program = quoted(&env::args().next().unwrap_or_else(|| "local-gateway".to_owned()));
        let mut lines = Vec::new();
        let mut curl = "curl".to_owned();
        if self.config.has_authentication() {
            let file = self.file.map(|file| format!("--config {}", quoted(&file.to_string_lossy())));
            // Of the file too, since it may have another folder.
            let data = format!("--data {}", quoted(&self.config.data.to_string_lossy()));
            let flags = match (file, self.config.is_in_data()) {
                (Some(file), true) => format!("{file} {data}"),
                (Some(file), false) => file,
                (None, true) => data,
                (None, false) => "--store \"$STORE_URL\"".to_owned(),
            };
            let tenant = &self.config.tenant;
            lines.push(format!(
                "export FUNCTION_GATEWAY_KEY=$({program} keys create {flags} --tenant {tenant} --principal ada --scope admin)"
            ));
            curl.push_str(" -H \"X-Api-Key: $FUNCTION_GATEWAY_KEY\"");
        }
        for (sample, options, path, what) in [
            ("greet", "-d '{\"name\": \"Ada\"}'", "invocations", ""),
            ("greet", "-d '{\"nam\": \"Ada\"}'", "invocations", "   # refused by its JSON Schema"),
            ("word-count", "-d 'to be or not to be'", "invocations", ""),
            ("countdown", "-N", "http/3", "   # a stream"),
        ] {
            if self.samples.has(sample) {
                lines.push(format!("{curl} {options} {url}/v1/functions/{sample}/{path}{what}"));
            }
        }
        lines.push(format!("{curl} {url}/v1/executions"));
        lines.push(format!("{program} executions list --url {url}   # the same as a table"));
        lines
    }
}

/// A text as a word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    match text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
