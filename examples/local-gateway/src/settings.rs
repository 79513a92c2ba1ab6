//! Where settings come from: flags over environment over file over defaults.
//!
//! A setting has one name. `limits.max_queued` stands as `max_queued` in the table `[limits]` of the file, is the
//! environment variable `FUNCTION_GATEWAY_LIMITS_MAX_QUEUED`, and the flag `--set limits.max_queued=..`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs, iter};

use clap::Args;
use serde::de::DeserializeOwned;
use toml::de::DeTable;
use toml::{Table, Value};

use crate::config::{MASK, masked};
use crate::exit::{Failure, Result};
use crate::samples;

/// How a value is written in an environment variable or a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// A text of which a password in it is not shown.
    Url,
    Number,
    Switch,
    /// Texts with commas between them.
    List,
    /// Numbers with commas between them.
    Numbers,
    /// A text that stands in the file alone.
    Secret,
}

use Kind::{List, Number, Numbers, Secret, Switch, Text, Url};

/// A name, in which `*` stands for one that the user gives; how it is written; its default; what it means.
type Setting = (&'static str, Kind, Option<&'static str>, &'static str);

/// Everything that can be set, but for [`OF_DRIVERS`].
#[rustfmt::skip]
const SETTINGS: &[Setting] = &[
    ("data", Text, Some(".function-gateway"), "Folder of the database"),
    ("listen", Text, Some("127.0.0.1:8080"), "IP address and port; port 0 is any that is free"),
    ("threads", Number, None, "Threads that serve clients; unless set, one for each processor"),
    ("tenant", Text, Some("local"), "Tenant of the samples, and of callers without authentication"),
    ("store.url", Url, None, "Database: sqlite:, postgres:// or mysql://; unless set, gateway.db in `data`"),
    ("store.max_connections", Number, Some("10"), "Connections to the database"),
    ("authentication.modes", List, Some("none"), "none; or api-keys, jwt or both"),
    ("authentication.jwt.issuer", Text, None, "Who makes the tokens: their claim `iss`"),
    ("authentication.jwt.audiences", List, None, "For whom they have to be: their claim `aud`"),
    ("authentication.jwt.keys_url", Url, None, "Where the keys of the issuer are, such as https://..jwks.json"),
    ("authentication.jwt.keys_file", Text, None, "Or a file with them: a key set, or public keys in PEM"),
    ("authentication.jwt.tenant_claim", Text, Some("tenant"), "Claim with the tenant"),
    ("authentication.jwt.tenant", Text, None, "Or the tenant of all tokens"),
    ("authentication.jwt.scope_claim", Text, Some("scope"), "Claim with the scopes"),
    ("cors.origins", List, None, "Origins of pages that may call, or *; not without authentication"),
    ("limits.max_connections", Number, Some("10000"), "Connections of clients"),
    ("limits.max_streams", Number, Some("256"), "Requests under way on a connection of HTTP/2"),
    ("limits.max_header_bytes", Number, Some("65536"), "Size of the head of a request, 8192 at least"),
    ("limits.max_document_bytes", Number, Some("1048576"), "Size of a specification"),
    ("limits.max_request_bytes", Number, Some("16777216"), "Size of a payload, where it is not streamed"),
    ("limits.max_response_bytes", Number, Some("16777216"), "Size of a result, where it is not streamed"),
    ("limits.max_kept_bytes", Number, Some("1048576"), "How much may be kept of a payload, result or log"),
    ("limits.max_queued", Number, Some("10000"), "Calls of a function that may wait for their turn"),
    ("limits.total_timeout_ms", Number, Some("30000"), "Time of a call that does not stream"),
    ("limits.idle_timeout_ms", Number, Some("60000"), "Time between two parts of a streamed answer"),
    ("limits.header_timeout_ms", Number, Some("30000"), "Time for the head of a request, and of a connection without one"),
    ("limits.document_timeout_ms", Number, Some("60000"), "Time for a specification to come whole"),
    ("limits.upload_idle_timeout_ms", Number, Some("30000"), "Time between two parts of an upload"),
    ("limits.max_reader_pause_ms", Number, Some("300000"), "Time that the reader of a streamed answer may stand still"),
    ("limits.write_timeout_ms", Number, Some("300000"), "Time that a client may read nothing of what is there for it"),
    ("limits.manage_wait_ms", Number, Some("30000"), "Time that a change waits for the engine, unless its caller says"),
    ("limits.driver_timeout_ms", Number, Some("30000"), "Time of what a driver does beside calls"),
    ("limits.ready_timeout_ms", Number, Some("300000"), "Time that a function has to get ready"),
    ("limits.shutdown_grace_ms", Number, Some("30000"), "Time that calls have to end when the gateway stops"),
    ("workers.enabled", Switch, Some("true"), "Whether this process executes what was submitted for later"),
    ("workers.concurrency", Number, Some("64"), "How many of these it executes at a time"),
    ("workers.max_per_tenant", Number, None, "How many of one tenant; unless set, three quarters of them"),
    ("workers.poll_interval_ms", Number, Some("1000"), "Time between two looks for what other processes took in"),
    ("queue.max_per_function", Number, Some("100000"), "Submitted executions of a function that have not ended"),
    ("queue.max_per_tenant", Number, Some("1000000"), "Submitted executions of a tenant that have not ended"),
    ("queue.max_pinned", Number, Some("1000"), "Those of a function that are pinned to a generation"),
    ("queue.max_payload_bytes", Number, Some("1048576"), "Size of a payload that is submitted, or sent under a key"),
    ("queue.max_result_bytes", Number, Some("1048576"), "Size of a result of these that is kept"),
    ("queue.keep_hours", Number, Some("24"), "How long payload, result and key are kept after the end"),
    ("queue.max_delay_days", Number, Some("365"), "How far in the future an execution may be due"),
    ("queue.max_chain", Number, Some("16"), "How many executions may follow one upon the other"),
    ("queue.lease_margin_ms", Number, Some("15000"), "How much later than a call may end a dead gateway's is taken"),
    ("callbacks.allow_networks", List, None, "Networks of which callbacks reach private addresses, such as 10.7.0.0/16"),
    ("callbacks.allow_http", Switch, Some("false"), "Whether callbacks are sent without TLS too"),
    ("callbacks.allow_ports", Numbers, None, "The ports that callbacks reach; all unless set"),
    ("callbacks.ca_pem", Text, None, "Certificates, in PEM, of authorities that are trusted beside those of the system"),
    ("callbacks.timeout_ms", Number, Some("15000"), "Time of a callback"),
    ("callbacks.connect_timeout_ms", Number, Some("5000"), "Time to find its address and open a connection"),
    ("records.mode", Text, Some("buffered"), "How surely executions are recorded: off, buffered or durable"),
    ("records.payloads", Text, Some("never"), "Whether payloads are kept: never, on_failure or always"),
    ("records.max_payload_bytes", Number, Some("16384"), "How much is kept of a payload and of a result"),
    ("records.max_log_bytes", Number, Some("65536"), "How much is kept of the log of an execution"),
    ("retention.max_age_days", Number, None, "After how long records are deleted"),
    ("retention.max_per_function", Number, None, "How many records of a function are kept"),
    ("retention.max_statistics_age_days", Number, None, "After how long figures are deleted"),
    ("retention.max_audit_age_days", Number, None, "After how long audit events are deleted"),
    ("log.format", Text, Some("text"), "text or json"),
    ("log.level", Text, Some("info"), "error, warn, info, debug or trace, or of parts: info,sqlx=debug"),
    ("samples.register", Switch, Some("true"), "Whether the sample functions are registered"),
    ("samples.folder", Text, Some(samples::FOLDER), "Folder of the sample functions"),
    ("secrets.directory", Text, None, "Folder with a folder for each tenant, with a file for each secret"),
    ("secrets.environment.*", Text, None, "By tenant: what the variables with its secrets begin with"),
    ("secrets.memory.*", Secret, None, "By \"TENANT/NAME\": the secret itself"),
];

/// By the kind of a driver: what can be set for it.
#[rustfmt::skip]
const OF_DRIVERS: &[(&str, &[Setting])] = &[("local-process", &[
    ("drivers.*.kind", Text, None, "By the driver's name: local-process. One of the name `local`, unless any is set"),
    ("drivers.*.search_path", List, None, "Folders in which programs are looked up"),
    ("drivers.*.max_processes", Number, None, "Processes at a time"),
    ("drivers.*.max_workers", Number, None, "Workers of a function"),
    ("drivers.*.start_timeout_ms", Number, None, "Time that a worker has to get ready"),
    ("drivers.*.idle_timeout_ms", Number, None, "How long a worker is kept without a call"),
    ("drivers.*.stop_grace_ms", Number, None, "How long a worker has to end when it is told to"),
    ("drivers.*.log_bytes", Number, None, "How much of the log of workers is kept in memory"),
    ("drivers.*.socket_folder", Text, None, "Folder for the sockets of workers"),
    ("drivers.*.cgroup", Text, None, "Folder of the cgroup tree that was delegated to the gateway"),
]), ("knative", &[
    ("drivers.*.kind", Text, None, "By the driver's name: knative, for functions that run there"),
    ("drivers.*.access.kubeconfig.path", Text, None, "The kubeconfig; without any access, that of a pod of the cluster"),
    ("drivers.*.access.kubeconfig.context", Text, None, "The context in it: its current one unless set"),
    ("drivers.*.access.api_server.url", Url, None, "Or where the API server is"),
    ("drivers.*.access.api_server.token", Text, None, "Name of the secret with its token"),
    ("drivers.*.access.api_server.ca_pem", Text, None, "Certificates, in PEM, of its authorities"),
    ("drivers.*.secret_tenant", Text, None, "Tenant of the secrets named here: function-gateway unless set"),
    ("drivers.*.namespaces.shared", Text, None, "Namespace of all functions: default unless set"),
    ("drivers.*.namespaces.per_tenant.prefix", Text, None, "Or what the namespace of each tenant begins with"),
    ("drivers.*.routing.ingress.url", Url, None, "The ingress; without it functions are called by their routes' names"),
    ("drivers.*.routing.ingress.local_url", Url, None, "The ingress for names inside the cluster"),
    ("drivers.*.http_version", Text, None, "offered, http1 or http2"),
    ("drivers.*.ca_pem", Text, None, "Certificates, in PEM, of the authorities that alone are trusted in calls"),
    ("drivers.*.service_accounts", List, None, "Service accounts that functions may choose"),
    ("drivers.*.pull_secrets", List, None, "Secrets for pulling images that functions may choose"),
    ("drivers.*.max_call_ms", Number, None, "The longest that the cluster lets a call take"),
    ("drivers.*.progress_deadline_ms", Number, None, "Time that a revision has to get ready whose function sets none"),
    ("drivers.*.connect_timeout_ms", Number, None, "Time to open a connection"),
    ("drivers.*.request_timeout_ms", Number, None, "Time of a request to the API server"),
    ("drivers.*.max_idle_connections", Number, None, "Connections that are kept without a call"),
    ("drivers.*.idle_connection_timeout_ms", Number, None, "How long they are kept"),
    ("drivers.*.page_size", Number, None, "Objects in a page of a list"),
    ("drivers.*.max_management_bytes", Number, None, "Size of an answer of the API server"),
]), ("openfaas", &[
    ("drivers.*.kind", Text, None, "By the driver's name: openfaas, for functions that run there"),
    ("drivers.*.url", Url, None, "Where the OpenFaaS gateway is: http://127.0.0.1:8080 unless set"),
    ("drivers.*.secret_tenant", Text, None, "Tenant of the secrets named here: function-gateway unless set"),
    ("drivers.*.namespace", Text, None, "Namespace of functions that choose none"),
    ("drivers.*.namespaces", List, None, "Namespaces that functions may choose besides"),
    ("drivers.*.ca_pem", Text, None, "Certificates, in PEM, of the authorities that alone are trusted"),
    ("drivers.*.client_identity", Text, None, "Name of the secret with a client certificate and its key, in PEM"),
    ("drivers.*.http_version", Text, None, "offered, http1 or http2"),
    ("drivers.*.connect_timeout_ms", Number, None, "Time to open a connection"),
    ("drivers.*.request_timeout_ms", Number, None, "Time of a request that manages functions"),
    ("drivers.*.max_idle_connections", Number, None, "Connections that are kept without a call"),
    ("drivers.*.idle_connection_timeout_ms", Number, None, "How long they are kept"),
    ("drivers.*.max_management_bytes", Number, None, "Size of an answer to a request that manages functions"),
    ("drivers.*.auth.basic.user", Text, None, "User, for a gateway that asks for a password"),
    ("drivers.*.auth.basic.password", Text, None, "Name of the secret with the password"),
    ("drivers.*.auth.bearer.token", Text, None, "Or name of the secret with a bearer token"),
])];

fn settings() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().chain(OF_DRIVERS.iter().flat_map(|(_, settings)| *settings))
}

/// What the variables of the environment begin with.
const PREFIX: &str = "FUNCTION_GATEWAY_";

/// Variables with the prefix that are no settings: those of clients, and of this project's tests.
const OTHER_VARIABLES: &[&str] = &["CONFIG", "URL", "KEY", "CONFORMANCE_STRICT", "RUNTIMES", "SEED", "SOAK"];
const TEST_VARIABLES: &str = "TEST_";

/// How things are set, for `--help`.
pub(crate) const HELP: &str = "\
Settings:
  --print-config shows all of them, as a file to start from. A flag counts
  more than the environment, that more than the file, and that more than the
  default. One of them, limits.max_queued, is
  as a flag                  --set limits.max_queued=100
  in the environment         FUNCTION_GATEWAY_LIMITS_MAX_QUEUED=100
  in the file                [limits]
                             max_queued = 100";

/// The file that is read where none is named, if it is there.
const DEFAULT_FILE: &str = "function-gateway.toml";

/// Flags of the commands that need the configuration. Beside `--set`, the settings that are changed most have their own.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Flags {
    /// File with settings [default: function-gateway.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "FUNCTION_GATEWAY_CONFIG")]
    config: Option<PathBuf>,
    /// Set anything that --print-config shows, such as limits.max_queued=100
    #[arg(long, value_name = "SETTING=VALUE")]
    set: Vec<String>,
    /// Folder of the database [setting: data]
    #[arg(long, value_name = "FOLDER")]
    data: Option<String>,
    /// URL of the database [setting: store.url]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Print the configuration as it is in effect, with what each setting means, and end
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// Flags that only `serve` has.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServeFlags {
    #[command(flatten)]
    pub(crate) common: Flags,
    /// IP address and port to listen on [setting: listen]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Who may call, such as api-keys [setting: authentication.modes]
    #[arg(long, value_name = "MODES")]
    authentication: Option<String>,
    /// Register no sample functions [setting: samples.register]
    #[arg(long)]
    no_samples: bool,
    /// Form of the log on standard error: text or json [setting: log.format]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug or trace [setting: log.level]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl ServeFlags {
    /// Reads everything that is set.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<(T, Sources)> {
        let Self { common, listen, authentication, no_samples, log_format, log_level } = self;
        let own = [
            ("--listen", "listen", listen.as_deref()),
            ("--authentication", "authentication.modes", authentication.as_deref()),
            ("--no-samples", "samples.register", no_samples.then_some("false")),
            ("--log-format", "log.format", log_format.as_deref()),
            ("--log-level", "log.level", log_level.as_deref()),
        ];
        common.read_with(&own)
    }
}

impl Flags {
    /// Reads everything that is set.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<(T, Sources)> {
        self.read_with(&[])
    }

    fn read_with<T: DeserializeOwned>(&self, own: &[(&str, &str, Option<&str>)]) -> Result<(T, Sources)> {
        let Self { config, set, data, store, print_config: _ } = self;
        let mut layers = Layers::defaults()?;
        let file = config.clone().or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()));
        if let Some(file) = &file {
            layers.file(file)?;
        }
        layers.environment(env::vars_os())?;
        let common = [("--data", "data", data.as_deref()), ("--store", "store.url", store.as_deref())];
        for (flag, key, value) in common.iter().chain(own) {
            if let Some(value) = value {
                layers.text(key, value, format!("the flag {flag}"))?;
            }
        }
        for assignment in set {
            let (key, value) = assignment.split_once('=').ok_or_else(|| {
                Failure::usage(format!("the flag --set: {assignment:?} is not like limits.max_queued=100"))
            })?;
            layers.text(key, value, "the flag --set".to_owned())?;
        }
        layers.finish(file)
    }
}

/// What holds where nothing is set.
#[cfg(test)]
pub(crate) fn defaults<T: DeserializeOwned>() -> T {
    Layers::defaults().unwrap().finish(None).unwrap().0
}

/// What is read where one thing is set.
#[cfg(test)]
pub(crate) fn with<T: DeserializeOwned>(key: &str, value: &str) -> T {
    let mut layers = Layers::defaults().unwrap();
    layers.text(key, value, String::new()).unwrap();
    layers.finish(None).unwrap().0
}

/// The names of what can be set in a table.
#[cfg(test)]
pub(crate) fn of(table: &str) -> impl Iterator<Item = &'static str> {
    let begins = format!("{table}.");
    settings().map(|(key, ..)| *key).filter(move |key| key.starts_with(&begins))
}

/// What is read where everything is set to something.
#[cfg(test)]
pub(crate) fn all<T: DeserializeOwned>() -> T {
    let mut layers = Layers::defaults().unwrap();
    for (key, kind, ..) in settings().filter(|(.., default, _)| default.is_none()) {
        let value = match kind {
            Number => Value::from(1),
            Switch => Value::from(true),
            List => Value::from(vec!["x"]),
            Numbers => Value::from(vec![1]),
            Text if key.ends_with(".kind") => Value::from("local-process"),
            Text | Url | Secret => Value::from("x"),
        };
        let path: Vec<&str> = key.split('.').map(|part| if part == "*" { "x" } else { part }).collect();
        layers.put(&path, value, String::new());
    }
    layers.finish(None).unwrap().0
}

/// Refuses a variable of our prefix that means nothing.
pub(crate) fn check_environment() -> Result<()> {
    Layers::default().environment(env::vars_os())
}

/// Where settings were found, for messages about them.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    by_key: BTreeMap<String, String>,
}

impl Sources {
    /// What is wrong with a setting, and where it stands.
    pub(crate) fn wrong(&self, key: &str, reason: &str) -> Failure {
        let by_key = &self.by_key;
        // An item of a list, or a part of a value, stands where the whole does.
        let whole = (1..=key.len()).rev().filter(|end| key.is_char_boundary(*end)).map(|end| key.split_at(end).0);
        let source = whole.into_iter().find_map(|part| by_key.get(part)).map_or("the defaults", String::as_str);
        Failure::usage(format!("{source}: `{key}`: {reason}"))
    }
}

/// What stands between commas.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// What is set so far.
#[derive(Debug, Default)]
struct Layers {
    table: Table,
    sources: BTreeMap<String, String>,
}

impl Layers {
    fn defaults() -> Result<Self> {
        let mut layers = Self::default();
        for (key, _, default, _) in settings() {
            if let Some(default) = default {
                layers.text(key, default, "the defaults".to_owned())?;
            }
        }
        Ok(layers)
    }

    fn put(&mut self, path: &[&str], value: Value, source: String) {
        self.sources.insert(path.join("."), source);
        let Some((last, tables)) = path.split_last() else { return };
        let mut table = &mut self.table;
        for name in tables {
            let entry = table.entry((*name).to_owned()).or_insert_with(|| Value::Table(Table::new()));
            // Never another: names of tables are never names of settings.
            let Value::Table(inner) = entry else { return };
            table = inner;
        }
        table.insert((*last).to_owned(), value);
    }

    /// Takes a value from a flag or variable.
    fn text(&mut self, key: &str, text: &str, source: String) -> Result<()> {
        let path: Vec<&str> = key.split('.').collect();
        let Some(kind) = kind_of(&path) else { return Err(unknown(&source, key, &nearest(&path))) };
        let wrong = |what: &str| Failure::usage(format!("{source}: `{key}`: {text:?} is not {what}"));
        let value = match kind {
            Text | Url => Value::String(text.to_owned()),
            Number => Value::Integer(text.parse().map_err(|_| wrong("a whole number"))?),
            Switch => Value::Boolean(text.parse().map_err(|_| wrong("true or false"))?),
            List => Value::Array(items(text).map(Value::from).collect()),
            Numbers => {
                let numbers = items(text).map(|item| item.parse::<i64>().map(Value::Integer)).collect::<Result<_, _>>();
                Value::Array(numbers.map_err(|_| wrong("whole numbers with commas between them"))?)
            }
            Secret => return Err(Failure::usage(format!("{source}: `{key}`: a secret stands in the file alone"))),
        };
        self.put(&path, value, source);
        Ok(())
    }

    fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<()> {
        for (variable, value) in variables {
            let Some(name) = variable.to_str().and_then(|variable| variable.strip_prefix(PREFIX)) else { continue };
            if OTHER_VARIABLES.contains(&name) || name.starts_with(TEST_VARIABLES) {
                continue;
            }
            let source = format!("the environment variable {PREFIX}{name}");
            let Some(key) = key_of_variable(name) else {
                let known = settings().map(|(key, ..)| variable_of(key));
                let known = known.chain(OTHER_VARIABLES.iter().map(|name| (*name).to_owned()));
                let nearest = most_like(name, known).map(|name| format!("{PREFIX}{name}"));
                return Err(unknown(&source, &format!("{PREFIX}{name}"), &nearest));
            };
            let Some(value) = value.to_str() else {
                return Err(Failure::usage(format!("{source}: its value is not UTF-8")));
            };
            self.text(&key, value, source)?;
        }
        Ok(())
    }

    fn file(&mut self, file: &Path) -> Result<()> {
        let shown = file.display();
        let text = fs::read_to_string(file).map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
        let in_file = |error: toml::de::Error| Failure::usage(format!("{shown}: {}", error.to_string().trim_end()));
        let table: Table = text.parse().map_err(in_file)?;
        let places = DeTable::parse(&text).map_err(in_file)?;
        let at = |offset: usize| {
            let before = text.get(..offset).unwrap_or_default();
            format!("{shown}, line {}", before.matches('\n').count() + 1)
        };
        self.file_table(&[], table, places.get_ref(), &at)
    }

    fn file_table(
        &mut self,
        parents: &[&str],
        table: Table,
        places: &DeTable<'_>,
        at: &dyn Fn(usize) -> String,
    ) -> Result<()> {
        for (name, value) in table {
            let path: Vec<&str> = parents.iter().copied().chain([name.as_str()]).collect();
            let found = places.get_key_value(name.as_str());
            let source = at(found.map_or(0, |(name, _)| name.span().start));
            match (value, found.map(|(_, value)| value.get_ref())) {
                (Value::Table(inner), Some(toml::de::DeValue::Table(places))) if is_table(&path) => {
                    self.file_table(&path, inner, places, at)?;
                }
                (value, _) if kind_of(&path).is_some() => self.put(&path, value, source),
                _ if is_table(&path) => {
                    let key = path.join(".");
                    let reason = format!("is no setting but a table of settings: [{key}]");
                    return Err(Failure::usage(format!("{source}: `{key}` {reason}")));
                }
                _ => return Err(unknown(&source, &path.join("."), &nearest(&path))),
            }
        }
        Ok(())
    }

    fn finish<T: DeserializeOwned>(self, file: Option<PathBuf>) -> Result<(T, Sources)> {
        let sources = Sources { file, by_key: self.sources };
        let read = serde_path_to_error::deserialize(Value::Table(self.table));
        let config = read.map_err(|error| {
            let key = error.path().to_string();
            let path: Vec<_> = key.split(['.', '[']).collect();
            let setting =
                settings().filter(|(key, ..)| starts_like(key, &path) && key.split('.').count() <= path.len()).last();
            let meaning = setting.map_or_else(String::new, |(.., meaning)| format!(" ({meaning})"));
            sources.wrong(&key, &format!("{}{meaning}", error.inner().message()))
        })?;
        Ok((config, sources))
    }
}

fn unknown(source: &str, name: &str, nearest: &Option<String>) -> Failure {
    let hint = nearest.as_ref().map_or_else(
        || "`--print-config` shows the settings there are".to_owned(),
        |nearest| format!("did you mean `{nearest}`?"),
    );
    Failure::usage(format!("{source}: there is no setting `{name}`; {hint}"))
}

/// Whether a path is the name of a setting, and how that is written.
fn kind_of(path: &[&str]) -> Option<Kind> {
    let matches = |key: &str| key.split('.').count() == path.len() && starts_like(key, path);
    settings().find(|(key, ..)| matches(key)).map(|(_, kind, ..)| *kind)
}

/// Whether there are settings below a path.
fn is_table(path: &[&str]) -> bool {
    settings().any(|(key, ..)| key.split('.').count() > path.len() && starts_like(key, path))
}

fn starts_like(key: &str, path: &[&str]) -> bool {
    key.split('.').zip(path).all(|(part, given)| part == "*" || part == *given)
}

/// The name of a setting, or of a table of settings, that is most like one that there is not.
fn nearest(path: &[&str]) -> Option<String> {
    let given = path.join(".");
    let known = settings().map(|(key, ..)| {
        // What the user named keeps its name.
        let parts: Vec<&str> = key.split('.').collect();
        let named = parts.iter().enumerate().map(|(index, part)| match (*part, path.get(index)) {
            ("*", Some(given)) => *given,
            (part, _) => part,
        });
        named.collect::<Vec<_>>()
    });
    let known: Vec<Vec<&str>> = known.collect();
    let tables = known.iter().filter_map(|parts| parts.get(..path.len().min(parts.len())));
    let names = known.iter().map(Vec::as_slice).chain(tables).map(|parts| parts.join("."));
    // The right name in the wrong table.
    let last = path.last().copied().unwrap_or_default();
    let elsewhere =
        known.iter().zip(settings()).find(|(parts, (key, ..))| parts.last() == Some(&last) && !key.ends_with('*'));
    let elsewhere = elsewhere.map(|(parts, _)| parts.join("."));
    elsewhere.or_else(|| most_like(&given, names))
}

fn most_like(given: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    const ALIKE: f64 = 0.6;
    let rated = known.into_iter().map(|name| (strsim::normalized_damerau_levenshtein(given, &name), name));
    let best = rated.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(rating, _)| *rating >= ALIKE).map(|(_, name)| name)
}

/// The part of a variable after the prefix.
fn variable_of(key: &str) -> String {
    key.replace(['.', '-'], "_").to_uppercase()
}

/// The setting that a variable is for. What the user named is in lower case, with `-`.
fn key_of_variable(name: &str) -> Option<String> {
    settings().find_map(|(key, ..)| {
        let pattern = variable_of(key);
        match pattern.split_once('*') {
            None => (pattern == name).then(|| (*key).to_owned()),
            Some((before, after)) => {
                let named = name.strip_prefix(before)?.strip_suffix(after)?;
                let named = named.to_lowercase().replace('_', "-");
                (!named.is_empty()).then(|| key.replace('*', &named))
            }
        }
    })
}

/// A configuration as a file: every setting, what it is and what it means. Those that are not set stand in comments; so do
/// those that follow from others, and those that are not to be shown.
pub(crate) fn describe(config: &Table, derived: &[&str]) -> String {
    // Texts of tables. Each stands once, however many drivers there are.
    let mut tables: Vec<(String, String)> = Vec::new();
    let of_drivers = OF_DRIVERS.iter().map(|(kind, settings)| (with_drivers_of(config, kind), *settings));
    for (config, settings) in iter::once((config.clone(), SETTINGS)).chain(of_drivers) {
        for (key, kind, _, meaning) in settings {
            for (path, value) in expand(&config, key) {
                let Some((name, parents)) = path.split_last() else { continue };
                let parents = parents.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(".");
                let (name, shown) = (quoted(name), value.map(|value| shown(*kind, value)));
                let (setting, note) = match shown {
                    None => (format!("# {name} ="), ""),
                    Some(shown) if value != Some(&shown) => (format!("# {name} = {shown}"), "The value is not shown. "),
                    Some(shown) if derived.contains(key) => (format!("# {name} = {shown}"), ""),
                    Some(shown) => (format!("{name} = {shown}"), ""),
                };
                let line = format!("{setting:<36} # {note}{meaning}\n");
                match tables.iter_mut().find(|(table, _)| *table == parents) {
                    Some((_, text)) => text.push_str(&line),
                    None => tables.push((parents, line)),
                }
            }
        }
    }
    let of_table =
        |(table, lines): (String, String)| if table.is_empty() { lines } else { format!("\n[{table}]\n{lines}") };
    tables.into_iter().map(of_table).collect()
}

/// A configuration with no other drivers than those of a kind.
fn with_drivers_of(config: &Table, kind: &str) -> Table {
    let mut config = config.clone();
    if let Some(Value::Table(drivers)) = config.get_mut("drivers") {
        drivers.retain(|_, driver| driver.get("kind").and_then(Value::as_str) == Some(kind));
    }
    config
}

/// A value without what is secret in it.
fn shown(kind: Kind, value: &Value) -> Value {
    match (kind, value) {
        (Secret, _) => Value::from(MASK),
        (Url, Value::String(url)) => Value::from(masked(url)),
        _ => value.clone(),
    }
}

/// What a name with `*` stands for: every name that was given.
fn expand<'a>(config: &'a Table, key: &str) -> Vec<(Vec<String>, Option<&'a Value>)> {
    let mut found = vec![(Vec::new(), Some(config), None)];
    for part in key.split('.') {
        found = found
            .into_iter()
            .flat_map(|(path, table, _)| {
                let given = table.into_iter().flat_map(Table::keys).map(String::as_str);
                let names: Vec<&str> = if part == "*" { given.collect() } else { vec![part] };
                let names = if names.is_empty() { vec!["NAME"] } else { names };
                names.into_iter().map(move |name| {
                    let value = table.and_then(|table| table.get(name));
                    let path = path.iter().cloned().chain([name.to_owned()]).collect::<Vec<_>>();
                    (path, value.and_then(Value::as_table), value)
                })
            })
            .collect();
    }
    found.into_iter().map(|(path, _, value)| (path, value)).collect()
}

/// A key as TOML has it.
fn quoted(name: &str) -> String {
    let is_bare = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if is_bare { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_told() {
        for (given, told) in [
            ("listn", Some("listen")),
            ("retentoin", Some("retention")),
            ("retention.max_age", Some("retention.max_age_days")),
            ("max_age_days", Some("retention.max_age_days")),
            ("drivers.big.max_proceses", Some("drivers.big.max_processes")),
            ("driver.big.kind", Some("drivers.big.kind")),
            ("zebra", None),
        ] {
            let path: Vec<_> = given.split('.').collect();
            assert_eq!(nearest(&path).as_deref(), told, "{given}");
        }
    }

    #[test]
    fn a_variable_is_for_one_setting() {
        for (variable, key) in [
            ("LISTEN", Some("listen")),
            ("LIMITS_MAX_QUEUED", Some("limits.max_queued")),
            ("DRIVERS_BIG_ONE_MAX_WORKERS", Some("drivers.big-one.max_workers")),
            ("SECRETS_ENVIRONMENT_ACME", Some("secrets.environment.acme")),
            ("DRIVERS__KIND", None),
            ("LISTN", None),
        ] {
            assert_eq!(key_of_variable(variable).as_deref(), key, "{variable}");
        }
    }

    #[test]
    fn later_layers_count_more() {
        let mut layers = Layers::defaults().unwrap();
        let variable = |name: &str, value: &str| [(name.into(), value.into())];
        layers.environment(variable("FUNCTION_GATEWAY_TENANT", "one")).unwrap();
        layers.environment(variable("OTHER_TENANT", "two")).unwrap();
        assert_eq!(layers.table["tenant"].as_str(), Some("one"));
        layers.text("tenant", "three", "a flag".to_owned()).unwrap();
        assert_eq!(layers.table["tenant"].as_str(), Some("three"));
    }

    #[test]
    fn what_is_described_is_what_was_set() {
        let mut layers = Layers::defaults().unwrap();
        for (key, value) in [
            ("drivers.b.kind", "local-process"),
            ("drivers.b.max_workers", "3"),
            ("drivers.a.kind", "local-process"),
            ("drivers.faas.kind", "openfaas"),
            ("drivers.faas.url", "https://faas.example.com"),
            ("drivers.faas.auth.bearer.token", "openfaas-token"),
            ("store.url", "postgres://ada@db/functions"),
        ] {
            layers.text(key, value, String::new()).unwrap();
        }
        assert_eq!(described(&layers.table, &[]), layers.table);
    }

    #[test]
    fn what_is_secret_or_follows_from_others_is_described_in_comments() {
        let mut layers = Layers::defaults().unwrap();
        let bare = layers.table.clone();
        layers.put(&["secrets", "memory", "acme/key"], Value::from("hunter2"), String::new());
        layers.put(&["drivers", "faas", "kind"], Value::from("openfaas"), String::new());
        layers.put(&["drivers", "faas", "url"], Value::from("https://ada:hunter2@faas"), String::new());
        layers.put(&["store", "url"], Value::from("sqlite:data/gateway.db"), String::new());
        let text = describe(&layers.table, &["store.url"]);
        for line in [
            "# \"acme/key\" = \"***\"                 # The value is not shown. ",
            "# url = \"https://ada:***@faas/\"      # The value is not shown. ",
            "# url = \"sqlite:data/gateway.db\"     # Database",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let mut described = described(&layers.table, &["store.url"]);
        described.remove("drivers");
        assert_eq!(described, bare, "{text}");
    }

    /// What is read from what is described.
    fn described(config: &Table, derived: &[&str]) -> Table {
        let text = describe(config, derived);
        let mut described: Table = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
        prune(&mut described);
        described
    }

    /// Takes away the tables in which nothing is set.
    fn prune(table: &mut Table) {
        table.iter_mut().filter_map(|(_, value)| value.as_table_mut()).for_each(prune);
        table.retain(|_, value| value.as_table().is_none_or(|table| !table.is_empty()));
    }
}
