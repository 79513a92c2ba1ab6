//! What a host chooses about the driver.

use std::collections::BTreeSet;
use std::time::Duration;

use function_gateway_core::forward::HttpVersion;
use function_gateway_core::naming::is_dns_label;
use function_gateway_core::{Error, ErrorKind, Result, SecretRef, TenantId};
use serde::Deserialize;

/// How the driver shows the OpenFaaS gateway who it is. It does so for management only: calls of functions need no
/// credentials there, and a header that carried them would reach the function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum OpenFaasAuth {
    /// Not at all.
    #[default]
    None,
    /// By user and password (RFC 7617): what the OpenFaaS gateway asks for unless it is set up otherwise.
    Basic {
        /// The user, `admin` in a plain installation.
        user: String,
        /// The secret that holds the password.
        password: SecretRef,
    },
    /// By a bearer token (RFC 6750), for a gateway or a proxy before it that takes one.
    Bearer {
        /// The secret that holds the token.
        token: SecretRef,
    },
}

/// What a host chooses about the driver. Everything but `url` has a default; a key that is not known is refused.
///
/// ```
/// use function_gateway_openfaas::{OpenFaasAuth, OpenFaasConfig};
///
/// let config: OpenFaasConfig = serde_json::from_str(r#"{
///     "url": "https://faas.example.com",
///     "auth": {"basic": {"user": "admin", "password": "openfaas-password"}}
/// }"#)?;
/// let password = "openfaas-password".parse()?;
/// let auth = OpenFaasAuth::Basic { user: "admin".to_owned(), password };
/// assert_eq!(config, OpenFaasConfig::new("https://faas.example.com").with_auth(auth));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct OpenFaasConfig {
    /// Where the OpenFaaS gateway is: `http` or `https`, host, port, and the path before `/system` and `/function` where a
    /// proxy has put it below one. Without credentials: those come from a secret.
    pub url: String,
    /// How the driver shows who it is.
    pub auth: OpenFaasAuth,
    /// The tenant whose secrets the credentials and the client certificate are; `function-gateway` unless set.
    pub secret_tenant: Option<TenantId>,
    /// The namespace of functions that choose none; the engine's own default unless set. It is part of what the gateway
    /// stores of a deployment: changing it moves functions by their next update.
    pub namespace: Option<String>,
    /// The namespaces that a function may choose by an annotation, beside `namespace`. None unless set.
    pub namespaces: BTreeSet<String>,
    /// Certificates, in PEM, of the authorities that alone are trusted; those of the system unless set.
    pub ca_pem: Option<String>,
    /// The secret that holds a client certificate and its key, in PEM, one after the other. It is read when it is first
    /// needed, and again at each probe.
    pub client_identity: Option<SecretRef>,
    /// Which version of HTTP is spoken.
    pub http_version: HttpVersion,
    /// How long opening a connection may take, in milliseconds in JSON; 5 s unless set.
    #[serde(rename = "connect_timeout_ms", deserialize_with = "millis")]
    pub connect_timeout: Duration,
    /// How long a call that manages may take, in milliseconds in JSON; 60 s unless set. faasd answers a deployment only
    /// when it has pulled the image. A call of a function has its own deadline, and no other.
    #[serde(rename = "request_timeout_ms", deserialize_with = "millis")]
    pub request_timeout: Duration,
    /// How many idle connections are kept; 64 unless set.
    pub max_idle_connections: usize,
    /// How long an idle connection is kept, in milliseconds in JSON; 10 s unless set. It has to be shorter than the
    /// OpenFaaS gateway's `read_timeout`, after which that closes it: a call that is sent at this moment is lost.
    #[serde(rename = "idle_connection_timeout_ms", deserialize_with = "millis")]
    pub idle_connection_timeout: Duration,
    /// How large an answer to a call that manages may be, in bytes; 64 MiB unless set. The list of functions is the
    /// largest, at some 1 to 2 KiB for each.
    pub max_management_bytes: u64,
}

fn millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

/// The tenant of the gateway's own secrets, unless another one is set.
pub(crate) const OWN_TENANT: &str = "function-gateway";

impl Default for OpenFaasConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8080".to_owned(),
            auth: OpenFaasAuth::None,
            secret_tenant: None,
            namespace: None,
            namespaces: BTreeSet::new(),
            ca_pem: None,
            client_identity: None,
            http_version: HttpVersion::Offered,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(60),
            max_idle_connections: 64,
            idle_connection_timeout: Duration::from_secs(10),
            max_management_bytes: 64 * 1024 * 1024,
        }
    }
}

impl OpenFaasConfig {
    /// The defaults, for the OpenFaaS gateway at a URL.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Sets how the driver shows who it is.
    #[must_use]
    pub fn with_auth(mut self, auth: OpenFaasAuth) -> Self {
        self.auth = auth;
        self
    }

    /// Sets the tenant whose secrets the credentials are.
    #[must_use]
    pub fn with_secret_tenant(mut self, tenant: TenantId) -> Self {
        self.secret_tenant = Some(tenant);
        self
    }

    /// Sets the namespace of functions that choose none.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Lets functions choose these namespaces too.
    #[must_use]
    pub fn with_namespaces<I: IntoIterator<Item = N>, N: Into<String>>(mut self, namespaces: I) -> Self {
        self.namespaces = namespaces.into_iter().map(Into::into).collect();
        self
    }

    /// Trusts these authorities alone, given in PEM.
    #[must_use]
    pub fn with_ca_pem(mut self, pem: impl Into<String>) -> Self {
        self.ca_pem = Some(pem.into());
        self
    }

    /// Shows the client certificate that a secret holds.
    #[must_use]
    pub fn with_client_identity(mut self, secret: SecretRef) -> Self {
        self.client_identity = Some(secret);
        self
    }

    /// Sets which version of HTTP is spoken.
    #[must_use]
    pub fn with_http_version(mut self, version: HttpVersion) -> Self {
        self.http_version = version;
        self
    }

    /// Sets how long opening a connection may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a call that manages may take.
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

    /// Sets how large an answer to a call that manages may be.
    #[must_use]
    pub fn with_max_management_bytes(mut self, bytes: u64) -> Self {
        self.max_management_bytes = bytes;
        self
    }

    /// Whether a secret has to be asked for before the engine can be.
    pub(crate) fn needs_secrets(&self) -> bool {
        self.auth != OpenFaasAuth::None || self.client_identity.is_some()
    }

    /// Checks the settings, and gives the URL.
    pub(crate) fn validate(&self) -> Result<reqwest::Url> {
        let refuse = |reason: &str| Err(Error::new(ErrorKind::InvalidArgument, reason.to_owned()));
        // The URL itself is not cited: what is wrong with it may be that it holds a password.
        let Ok(url) = reqwest::Url::parse(&self.url) else { return refuse("url: is no absolute URL") };
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return refuse("url: needs the scheme http or https, and a host");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("url: holds credentials, which belong into a secret: see `auth`");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("url: has a query or a fragment");
        }
        for namespace in self.namespace.iter().chain(&self.namespaces) {
            if !is_dns_label(namespace) {
                return refuse("namespace: is no DNS label (letters, digits and '-', at most 63)");
            }
        }
        let times = [
            ("connect_timeout_ms: must be at least 1", self.connect_timeout),
            ("request_timeout_ms: must be at least 1", self.request_timeout),
        ];
        if let Some((reason, _)) = times.into_iter().find(|(_, time)| time.is_zero()) {
            return refuse(reason);
        }
        if matches!(&self.auth, OpenFaasAuth::Basic { user, .. } if user.contains(':') || user.chars().any(char::is_control))
        {
            return refuse("auth: a user has no ':' and no control character (RFC 7617)");
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_does_not_exist_is_refused() {
        let error = serde_json::from_str::<OpenFaasConfig>(r#"{"url": "http://a", "pasword": "x"}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bearer = OpenFaasAuth::Basic { user: "a:b".to_owned(), password: "p".parse().unwrap() };
        for (config, expected) in [
            (OpenFaasConfig::new("faas:8080/x"), "scheme"),
            (OpenFaasConfig::new("ftp://faas"), "scheme"),
            (OpenFaasConfig::new("not a url"), "no absolute URL"),
            (OpenFaasConfig::new("http://admin:canary@faas"), "credentials"),
            (OpenFaasConfig::new("http://faas/?a=b"), "query"),
            (OpenFaasConfig::new("http://faas").with_namespace("Big"), "namespace"),
            (OpenFaasConfig::new("http://faas").with_namespaces(["a.b"]), "namespace"),
            (OpenFaasConfig::new("http://faas").with_request_timeout(Duration::ZERO), "request_timeout_ms"),
            (OpenFaasConfig::new("http://faas").with_auth(bearer), "auth"),
        ] {
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.message().contains(expected), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        assert_eq!(OpenFaasConfig::new("https://faas/below/").validate().unwrap().path(), "/below/");
        assert!(TenantId::new(OWN_TENANT).is_ok());
    }
}
