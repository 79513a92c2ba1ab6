//! The configuration as the program uses it. What each setting means, and its default, stands in [`settings`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use function_gateway::rest;
use function_gateway::{DriverName, KeepPayloads, RecordMode, TenantId};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure, Result};
use crate::settings::{self, Flags, ServeFlags, Sources};

/// Everything that is set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) threads: Option<NonZeroUsize>,
    pub(crate) tenant: TenantId,
    pub(crate) store: Store,
    pub(crate) authentication: Authentication,
    #[serde(default)]
    pub(crate) cors: Cors,
    pub(crate) limits: Limits,
    pub(crate) workers: Workers,
    pub(crate) queue: Queue,
    /// As the crate that sends them takes them.
    pub(crate) callbacks: toml::Table,
    pub(crate) records: Records,
    #[serde(default)]
    pub(crate) retention: Retention,
    pub(crate) log: Log,
    pub(crate) samples: Samples,
    #[serde(default)]
    pub(crate) secrets: Secrets,
    #[serde(default)]
    pub(crate) drivers: BTreeMap<DriverName, Driver>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Store {
    /// Always there once the configuration is read.
    #[serde(default)]
    pub(crate) url: String,
    pub(crate) max_connections: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Authentication {
    pub(crate) modes: Vec<Mode>,
    pub(crate) jwt: Jwt,
}

/// A way to find out who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Not at all: whoever is on this machine may do everything.
    None,
    ApiKeys,
    Jwt,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jwt {
    pub(crate) issuer: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) audiences: Vec<String>,
    pub(crate) keys_url: Option<String>,
    pub(crate) keys_file: Option<PathBuf>,
    pub(crate) tenant_claim: String,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) scope_claim: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cors {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) origins: Vec<String>,
}

impl Cors {
    /// Which pages are let in, if any are.
    pub(crate) fn allowed(&self) -> function_gateway::Result<Option<rest::Cors>> {
        match self.origins.as_slice() {
            [] => Ok(None),
            [any] if any == "*" => Ok(Some(rest::Cors::any_origin())),
            origins => rest::Cors::origins(origins).map(Some),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    pub(crate) max_streams: NonZeroU32,
    pub(crate) max_header_bytes: usize,
    pub(crate) max_document_bytes: u64,
    pub(crate) max_request_bytes: u64,
    pub(crate) max_response_bytes: u64,
    pub(crate) max_kept_bytes: u32,
    pub(crate) max_queued: u32,
    pub(crate) total_timeout_ms: u64,
    pub(crate) idle_timeout_ms: u64,
    pub(crate) header_timeout_ms: NonZeroU64,
    pub(crate) document_timeout_ms: NonZeroU64,
    pub(crate) upload_idle_timeout_ms: NonZeroU64,
    pub(crate) max_reader_pause_ms: NonZeroU64,
    pub(crate) write_timeout_ms: NonZeroU64,
    pub(crate) manage_wait_ms: u64,
    pub(crate) driver_timeout_ms: NonZeroU64,
    pub(crate) ready_timeout_ms: u64,
    pub(crate) shutdown_grace_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workers {
    pub(crate) enabled: bool,
    pub(crate) concurrency: NonZeroUsize,
    pub(crate) max_per_tenant: Option<NonZeroUsize>,
    pub(crate) poll_interval_ms: NonZeroU64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Queue {
    pub(crate) max_per_function: u64,
    pub(crate) max_per_tenant: u64,
    pub(crate) max_pinned: u64,
    pub(crate) max_payload_bytes: u64,
    pub(crate) max_result_bytes: u64,
    pub(crate) keep_hours: NonZeroU32,
    pub(crate) max_delay_days: u32,
    pub(crate) max_chain: u32,
    pub(crate) lease_margin_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Records {
    pub(crate) mode: RecordMode,
    pub(crate) payloads: KeepPayloads,
    pub(crate) max_payload_bytes: u32,
    pub(crate) max_log_bytes: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    pub(crate) max_age_days: Option<u32>,
    pub(crate) max_per_function: Option<u64>,
    pub(crate) max_statistics_age_days: Option<u32>,
    pub(crate) max_audit_age_days: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Samples {
    pub(crate) register: bool,
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Secrets {
    pub(crate) directory: Option<PathBuf>,
    #[serde(default)]
    pub(crate) environment: BTreeMap<TenantId, String>,
    /// The values stand under `TENANT/NAME`.
    #[serde(default)]
    pub(crate) memory: BTreeMap<String, String>,
}

/// A driver: which kind, and the settings that this kind has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Driver {
    #[serde(default)]
    pub(crate) kind: DriverKind,
    #[serde(flatten)]
    pub(crate) settings: toml::Table,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DriverKind {
    #[default]
    LocalProcess,
    Knative,
    #[serde(rename = "openfaas")]
    OpenFaas,
}

/// The name of the driver that there is where none is configured.
const DEFAULT_DRIVER: &str = "local";

const MIN_LEASE_MARGIN_MS: u64 = 1000;

impl Config {
    /// Reads the configuration of a command that has the flags of all.
    pub(crate) fn read(flags: &Flags) -> Result<Self> {
        let (config, sources): (Self, _) = flags.read()?;
        config.checked(&sources)
    }

    /// Reads the configuration of `serve`. Says too from which file it is.
    pub(crate) fn read_to_serve(flags: &ServeFlags) -> Result<(Self, Option<PathBuf>)> {
        let (config, sources): (Self, _) = flags.read()?;
        Ok((config.checked(&sources)?, sources.file))
    }

    /// Fills in what goes by other settings, and checks what goes together.
    fn checked(mut self, sources: &Sources) -> Result<Self> {
        if self.store.url.is_empty() {
            self.store.url = self.url_in_data();
        }
        if self.drivers.is_empty() {
            let name = DEFAULT_DRIVER.parse().map_err(|error| Failure::usage(format!("{error}")))?;
            self.drivers.insert(name, Driver::default());
        }
        self.cors.allowed().map_err(|error| sources.wrong("cors.origins", error.message()))?;
        if self.workers.max_per_tenant.is_some_and(|most| most > self.workers.concurrency) {
            let reason = format!("is at most workers.concurrency, which is {}", self.workers.concurrency);
            return Err(sources.wrong("workers.max_per_tenant", &reason));
        }
        let least = rest::serve::ServeOptions::MIN_HEADER_BYTES;
        if self.limits.max_header_bytes < least {
            return Err(sources.wrong("limits.max_header_bytes", &format!("is at least {least}")));
        }
        if self.queue.lease_margin_ms < MIN_LEASE_MARGIN_MS {
            let reason = format!("is at least {MIN_LEASE_MARGIN_MS}: the end of a call has to be written in this time");
            return Err(sources.wrong("queue.lease_margin_ms", &reason));
        }
        match self.authentication.modes.as_slice() {
            [] => Err(sources.wrong("authentication.modes", "one is needed; none says that everybody may call")),
            [Mode::None] if !self.listen.ip().is_loopback() => {
                let reason = format!(
                    "{} can be reached from other machines. Without authentication the gateway listens on this machine \
                     alone, such as on 127.0.0.1:{}; with --authentication api-keys it listens anywhere",
                    self.listen,
                    self.listen.port()
                );
                Err(sources.wrong("listen", &reason))
            }
            [Mode::None] if !self.cors.origins.is_empty() => {
                let reason = "without authentication no pages are let in; with --authentication api-keys these are";
                Err(sources.wrong("cors.origins", reason))
            }
            [Mode::None] => Ok(self),
            modes if modes.contains(&Mode::None) => {
                Err(sources.wrong("authentication.modes", "none goes with no other"))
            }
            _ => Ok(self),
        }
    }

    fn url_in_data(&self) -> String {
        format!("sqlite:{}", self.file_in_data().display())
    }

    /// The database in the data folder.
    pub(crate) fn file_in_data(&self) -> PathBuf {
        self.data.join("gateway.db")
    }

    /// Whether the database is the file in the data folder.
    pub(crate) fn is_in_data(&self) -> bool {
        self.store.url == self.url_in_data()
    }

    pub(crate) fn has_authentication(&self) -> bool {
        !self.authentication.modes.contains(&Mode::None)
    }

    /// The configuration as a file, without what is secret in it.
    pub(crate) fn to_toml(&self) -> Result<String> {
        let derived: &[&str] = if self.is_in_data() { &["store.url"] } else { &[] };
        let failed = |error: toml::ser::Error| Failure::new(Exit::GatewayFailed, error.to_string());
        Ok(settings::describe(&toml::Table::try_from(self).map_err(failed)?, derived))
    }
}

pub(crate) const MASK: &str = "***";

/// A URL without the password that may be in it.
pub(crate) fn masked(url: &str) -> String {
    // Where it is not clear what is the password, all after the scheme may be.
    let all = || url.split_once(':').map_or_else(|| MASK.to_owned(), |(scheme, _)| format!("{scheme}:{MASK}"));
    let Ok(mut parsed) = Url::parse(url) else { return all() };
    if parsed.has_host() && parsed.path().contains('@') {
        return all();
    }
    let mask_query = parsed.query().is_some_and(|query| query.contains("password"));
    if mask_query {
        parsed.set_query(Some(MASK));
    }
    if parsed.password().is_some() && parsed.set_password(Some(MASK)).is_ok() || mask_query {
        return parsed.to_string();
    }
    url.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use function_gateway::drivers::knative::KnativeConfig;
    use function_gateway::drivers::local_process::LocalProcessConfig;
    use function_gateway::drivers::openfaas::OpenFaasConfig;

    use super::*;

    #[test]
    fn every_setting_is_one_of_the_configuration() {
        let config: Config = settings::all();
        let driver = config.drivers.values().next().unwrap().clone();
        // Whose settings are the drivers' own. They tell which there are where they are given another.
        let other = toml::Table::from_iter([("other".to_owned(), toml::Value::from(1))]);
        let errors = [
            KnativeConfig::deserialize(other.clone()).unwrap_err().message().to_owned(),
            LocalProcessConfig::deserialize(other.clone()).unwrap_err().message().to_owned(),
            OpenFaasConfig::deserialize(other).unwrap_err().message().to_owned(),
        ];
        let own = errors.iter().flat_map(|error| error.split('`').skip(3).step_by(2));
        let known: BTreeSet<&str> = driver.settings.keys().map(String::as_str).collect();
        assert_eq!(known, own.collect(), "{errors:?}");
    }

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("sqlite:data/gateway.db", "sqlite:data/gateway.db"),
            ("sqlite::memory:", "sqlite::memory:"),
            ("postgres://ada@db/functions", "postgres://ada@db/functions"),
            ("postgres://ada:hunter2@db/functions?sslmode=require", "postgres://ada:***@db/functions?sslmode=require"),
            ("mysql://db/functions?password=hunter2", "mysql://db/functions?***"),
            ("postgres://ada:hunter2@[db/x", "postgres:***"),
            ("postgres://ada:12/hunter2@db/x", "postgres:***"),
            ("hunter2", "***"),
        ] {
            assert_eq!(masked(url), shown, "{url}");
        }
    }
}
