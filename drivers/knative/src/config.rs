//! What a host chooses about the driver.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use function_gateway_core::forward::HttpVersion;
use function_gateway_core::naming::is_dns_label;
use function_gateway_core::{Error, ErrorKind, Result, SecretRef, TenantId};
use serde::Deserialize;
use url::Url;

use crate::names::MAX_PREFIX;

/// Where the API server of Kubernetes is, and how the driver shows it who it is. Tokens and certificates that rotate are read again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum KnativeAccess {
    /// As a pod of the cluster: by the service account that Kubernetes mounts, at `kubernetes.default.svc`.
    #[default]
    InCluster,
    /// By a kubeconfig, its plugins for credentials included.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The context in it; its current one unless set.
        #[serde(default)]
        context: Option<String>,
    },
    /// As `kubectl` finds it: by `KUBECONFIG`, `~/.kube/config`, or as a pod of the cluster. The one choice by which the
    /// driver reads the environment.
    Inferred,
    /// By an address and a token.
    ApiServer {
        /// The address: `http` or `https`, host and port.
        url: String,
        /// The secret that holds the token.
        #[serde(default)]
        token: Option<SecretRef>,
        /// Certificates, in PEM, of the authorities that are trusted; those of the system unless set.
        #[serde(default)]
        ca_pem: Option<String>,
    },
}

/// In which namespace the functions of a tenant are. The driver makes no namespace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum KnativeNamespaces {
    /// All in one; labels say whose they are.
    Shared(String),
    /// Each tenant's in one of its own: this prefix and the tenant. A tenant that is no DNS label, or too long a one, has the start
    /// of its name and a hash there.
    PerTenant {
        /// What the names of the namespaces start with; may be empty.
        prefix: String,
    },
}

impl Default for KnativeNamespaces {
    fn default() -> Self {
        Self::Shared("default".to_owned())
    }
}

/// By which address functions are called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum KnativeRouting {
    /// By the URL that Knative reports for the route, whose name has to resolve here.
    #[default]
    Route,
    /// By the address of the ingress, with the route's name as `Host`: for hosts outside the DNS of the cluster.
    Ingress {
        /// The ingress that takes calls from outside: `http` or `https`, host and port.
        url: String,
        /// The one for names inside the cluster, which is where cluster-local functions are; `url` unless set.
        #[serde(default)]
        local_url: Option<String>,
    },
    /// By the address that Knative reports for callers inside the cluster.
    ClusterLocal,
}

/// What a host chooses about the driver. Everything has a default; a key that is not known is refused.
///
/// ```
/// use function_gateway_knative::{KnativeAccess, KnativeConfig, KnativeNamespaces};
///
/// let config: KnativeConfig = serde_json::from_str(r#"{
///     "access": {"kubeconfig": {"path": "/etc/gateway/kubeconfig"}},
///     "namespaces": {"shared": "functions"}
/// }"#)?;
/// let access = KnativeAccess::Kubeconfig { path: "/etc/gateway/kubeconfig".into(), context: None };
/// let namespaces = KnativeNamespaces::Shared("functions".to_owned());
/// assert_eq!(config, KnativeConfig::new(access).with_namespaces(namespaces));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KnativeConfig {
    /// Where the API server is, and how the driver shows who it is; as a pod of the cluster unless set.
    pub access: KnativeAccess,
    /// The tenant whose secret the token is; `function-gateway` unless set.
    pub secret_tenant: Option<TenantId>,
    /// In which namespace functions are; all in `default` unless set. It is part of what the gateway stores of a deployment:
    /// changing it moves functions by their next update.
    pub namespaces: KnativeNamespaces,
    /// By which address functions are called; by their routes' URLs unless set.
    pub routing: KnativeRouting,
    /// Which version of HTTP functions are called by.
    pub http_version: HttpVersion,
    /// Certificates, in PEM, of the authorities that alone are trusted in calls of functions; those of the system unless set.
    pub ca_pem: Option<String>,
    /// The service accounts that a function may choose. None unless set.
    pub service_accounts: BTreeSet<String>,
    /// The secrets for pulling images that a function may choose. None unless set.
    pub pull_secrets: BTreeSet<String>,
    /// The longest that the cluster lets a call take, in milliseconds in JSON (`max-revision-timeout-seconds`, which is 600 s
    /// unless the cluster is set up otherwise).
    #[serde(rename = "max_call_ms", deserialize_with = "millis")]
    pub max_call: Duration,
    /// How long Knative tries to get a revision ready whose specification sets no time for it, in milliseconds in JSON; 5 min
    /// unless set, as with the gateway.
    #[serde(rename = "progress_deadline_ms", deserialize_with = "millis")]
    pub progress_deadline: Duration,
    /// How long opening a connection may take, in milliseconds in JSON; 5 s unless set.
    #[serde(rename = "connect_timeout_ms", deserialize_with = "millis")]
    pub connect_timeout: Duration,
    /// How long a request to the API server may take, in milliseconds in JSON; 20 s unless set.
    #[serde(rename = "request_timeout_ms", deserialize_with = "millis")]
    pub request_timeout: Duration,
    /// How many idle connections are kept to each name that functions are called by; 64 unless set.
    pub max_idle_connections: usize,
    /// How long an idle connection is kept, in milliseconds in JSON; 30 s unless set. It has to be shorter than the ingress keeps
    /// one: a call that is sent as that closes it is lost.
    #[serde(rename = "idle_connection_timeout_ms", deserialize_with = "millis")]
    pub idle_connection_timeout: Duration,
    /// How many objects are asked for at a time in a list; 500 unless set.
    pub page_size: u32,
    /// How large an answer of the API server may be, in bytes; 64 MiB unless set.
    pub max_management_bytes: u64,
}

fn millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

/// The tenant of the gateway's own secrets, unless another one is set.
pub(crate) const OWN_TENANT: &str = "function-gateway";

impl Default for KnativeConfig {
    fn default() -> Self {
        Self {
            access: KnativeAccess::default(),
            secret_tenant: None,
            namespaces: KnativeNamespaces::default(),
            routing: KnativeRouting::default(),
            http_version: HttpVersion::default(),
            ca_pem: None,
            service_accounts: BTreeSet::new(),
            pull_secrets: BTreeSet::new(),
            max_call: Duration::from_secs(600),
            progress_deadline: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(20),
            max_idle_connections: 64,
            idle_connection_timeout: Duration::from_secs(30),
            page_size: 500,
            max_management_bytes: 64 * 1024 * 1024,
        }
    }
}

impl KnativeConfig {
    /// The defaults, for a way to the API server.
    #[must_use]
    pub fn new(access: KnativeAccess) -> Self {
        Self { access, ..Self::default() }
    }

    /// Sets the tenant whose secret the token is.
    #[must_use]
    pub fn with_secret_tenant(mut self, tenant: TenantId) -> Self {
        self.secret_tenant = Some(tenant);
        self
    }

    /// Sets in which namespace functions are.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: KnativeNamespaces) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// Sets by which address functions are called.
    #[must_use]
    pub fn with_routing(mut self, routing: KnativeRouting) -> Self {
        self.routing = routing;
        self
    }

    /// Sets which version of HTTP functions are called by.
    #[must_use]
    pub fn with_http_version(mut self, version: HttpVersion) -> Self {
        self.http_version = version;
        self
    }

    /// Trusts these authorities alone in calls of functions, given in PEM.
    #[must_use]
    pub fn with_ca_pem(mut self, pem: impl Into<String>) -> Self {
        self.ca_pem = Some(pem.into());
        self
    }

    /// Lets functions choose these service accounts.
    #[must_use]
    pub fn with_service_accounts<I: IntoIterator<Item = N>, N: Into<String>>(mut self, accounts: I) -> Self {
        self.service_accounts = accounts.into_iter().map(Into::into).collect();
        self
    }

    /// Lets functions choose these secrets for pulling images.
    #[must_use]
    pub fn with_pull_secrets<I: IntoIterator<Item = N>, N: Into<String>>(mut self, secrets: I) -> Self {
        self.pull_secrets = secrets.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the longest that the cluster lets a call take.
    #[must_use]
    pub fn with_max_call(mut self, longest: Duration) -> Self {
        self.max_call = longest;
        self
    }

    /// Sets how long Knative tries to get a revision ready.
    #[must_use]
    pub fn with_progress_deadline(mut self, deadline: Duration) -> Self {
        self.progress_deadline = deadline;
        self
    }

    /// Sets how long opening a connection may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a request to the API server may take.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how many idle connections are kept.
    #[must_use]
    pub fn with_max_idle_connections(mut self, connections: usize) -> Self {
        self.max_idle_connections = connections;
        self
    }

    /// Sets how long an idle connection is kept.
    #[must_use]
    pub fn with_idle_connection_timeout(mut self, timeout: Duration) -> Self {
        self.idle_connection_timeout = timeout;
        self
    }

    /// Sets how many objects are asked for at a time in a list.
    #[must_use]
    pub fn with_page_size(mut self, objects: u32) -> Self {
        self.page_size = objects;
        self
    }

    /// Sets how large an answer of the API server may be.
    #[must_use]
    pub fn with_max_management_bytes(mut self, bytes: u64) -> Self {
        self.max_management_bytes = bytes;
        self
    }

    /// The secret that has to be asked for before the API server can be.
    pub(crate) fn token(&self) -> Option<&SecretRef> {
        match &self.access {
            KnativeAccess::ApiServer { token, .. } => token.as_ref(),
            _ => None,
        }
    }

    /// Checks the settings.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::new(ErrorKind::InvalidArgument, reason));
        let mut urls = Vec::new();
        if let KnativeAccess::ApiServer { url, .. } = &self.access {
            urls.push(("access.api_server.url", url));
        }
        if let KnativeRouting::Ingress { url, local_url } = &self.routing {
            urls.push(("routing.ingress.url", url));
            urls.extend(local_url.as_ref().map(|url| ("routing.ingress.local_url", url)));
        }
        // The URL itself is not cited: what is wrong with it may be that it holds a password.
        for (name, url) in urls {
            if let Err(reason) = origin(url) {
                return refuse(format!("{name}: {reason}"));
            }
        }
        match &self.namespaces {
            KnativeNamespaces::Shared(name) if !is_dns_label(name) => {
                return refuse("namespaces.shared: is no DNS label (letters, digits and '-', at most 63)".to_owned());
            }
            KnativeNamespaces::PerTenant { prefix }
                if prefix.len() > MAX_PREFIX || !is_dns_label(&format!("{prefix}a")) =>
            {
                return refuse(format!(
                    "namespaces.per_tenant.prefix: is the start of a DNS label, of at most {MAX_PREFIX} signs"
                ));
            }
            _ => {}
        }
        for (name, time) in [
            ("connect_timeout_ms", self.connect_timeout),
            ("request_timeout_ms", self.request_timeout),
            ("max_call_ms", self.max_call),
            ("progress_deadline_ms", self.progress_deadline),
        ] {
            let whole_seconds = matches!(name, "max_call_ms" | "progress_deadline_ms");
            let shortest = if whole_seconds { Duration::from_secs(1) } else { Duration::from_millis(1) };
            if time < shortest {
                return refuse(format!("{name}: must be at least {}", shortest.as_millis()));
            }
        }
        if self.page_size == 0 {
            return refuse("page_size: must be at least 1".to_owned());
        }
        Ok(())
    }
}

/// An address without a path, or what is wrong with it.
pub(crate) fn origin(url: &str) -> Result<Url, &'static str> {
    let url = Url::parse(url).map_err(|_| "is no absolute URL")?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("needs the scheme http or https, and a host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds credentials, which belong into a secret");
    }
    if url.query().is_some() || url.fragment().is_some() || !matches!(url.path(), "" | "/") {
        return Err("has more than scheme, host and port");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_does_not_exist_is_refused() {
        for text in [r#"{"acess": "in_cluster"}"#, r#"{"access": {"kubeconfig": {"path": "a", "contxt": "b"}}}"#] {
            let error = serde_json::from_str::<KnativeConfig>(text).unwrap_err();
            assert!(error.to_string().contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let server =
            |url: &str| KnativeConfig::new(KnativeAccess::ApiServer { url: url.to_owned(), token: None, ca_pem: None });
        let ingress = |url: &str, local: &str| {
            let (url, local_url) = (url.to_owned(), Some(local.to_owned()));
            KnativeConfig::default().with_routing(KnativeRouting::Ingress { url, local_url })
        };
        let per_tenant = |prefix: &str| {
            KnativeConfig::default().with_namespaces(KnativeNamespaces::PerTenant { prefix: prefix.to_owned() })
        };
        KnativeConfig::default().validate().unwrap();
        per_tenant("").validate().unwrap();
        per_tenant("fn-").validate().unwrap();
        for (config, expected) in [
            (server("api:6443"), "access.api_server.url: needs the scheme"),
            (server("not a url"), "no absolute URL"),
            (server("https://admin:canary@api"), "credentials"),
            (ingress("ftp://a", "http://b"), "routing.ingress.url"),
            (ingress("http://a", "http://b/path"), "routing.ingress.local_url"),
            (
                KnativeConfig::default().with_namespaces(KnativeNamespaces::Shared("Big".to_owned())),
                "namespaces.shared",
            ),
            (per_tenant("-"), "namespaces.per_tenant.prefix"),
            (per_tenant(&"a".repeat(40)), "namespaces.per_tenant.prefix"),
            (KnativeConfig::default().with_request_timeout(Duration::ZERO), "request_timeout_ms"),
            (KnativeConfig::default().with_max_call(Duration::from_millis(5)), "max_call_ms: must be at least 1000"),
            (KnativeConfig::default().with_page_size(0), "page_size"),
        ] {
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.message().contains(expected), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_a_pod_in_the_cluster() {
        assert_eq!(serde_json::from_str::<KnativeConfig>("{}").unwrap(), KnativeConfig::default());
        let config: KnativeConfig = serde_json::from_str(
            r#"{"access": "inferred", "routing": "cluster_local", "http_version": "http2", "max_call_ms": 900000}"#,
        )
        .unwrap();
        assert_eq!((config.access, config.routing), (KnativeAccess::Inferred, KnativeRouting::ClusterLocal));
        assert_eq!((config.http_version, config.max_call), (HttpVersion::Http2, Duration::from_secs(900)));
    }
}
