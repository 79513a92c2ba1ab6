//! What a host chooses about callbacks.

use std::collections::BTreeSet;
use std::time::Duration;

use function_gateway_core::{Error, ErrorKind, Result};
use serde::Deserialize;

/// What a host chooses about callbacks. Everything has a default, the strictest; a key that is not known is refused.
///
/// ```
/// use function_gateway_callbacks::CallbackConfig;
///
/// let config: CallbackConfig = serde_json::from_str(r#"{"allow_networks": ["10.7.0.0/16"], "timeout_ms": 20000}"#)?;
/// let timeout = std::time::Duration::from_secs(20);
/// assert_eq!(config, CallbackConfig::new().allow_networks(["10.7.0.0/16"]).with_timeout(timeout));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CallbackConfig {
    /// Networks that are reached beside the public ones, such as `10.7.0.0/16` or `fd12:3456::/32`, or single addresses. None
    /// unless set.
    pub allow_networks: Vec<String>,
    /// Whether `http:` is taken beside `https:`. Not unless set: others can read what is sent.
    pub allow_http: bool,
    /// The ports that are reached; all unless set.
    pub allow_ports: Option<BTreeSet<u16>>,
    /// Certificates, in PEM, of authorities that are trusted beside those of the system.
    pub ca_pem: Option<String>,
    /// How long an attempt may take in all, in milliseconds in JSON; 15 s unless set.
    #[serde(rename = "timeout_ms", deserialize_with = "millis")]
    pub timeout: Duration,
    /// How long finding the address and opening a connection may take together, in milliseconds in JSON; 5 s unless set.
    #[serde(rename = "connect_timeout_ms", deserialize_with = "millis")]
    pub connect_timeout: Duration,
}

fn millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

impl Default for CallbackConfig {
    fn default() -> Self {
        Self {
            allow_networks: Vec::new(),
            allow_http: false,
            allow_ports: None,
            ca_pem: None,
            timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl CallbackConfig {
    /// The defaults: `https:` only, to public addresses only.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets callbacks reach these networks, or single addresses, too.
    #[must_use]
    pub fn allow_networks<I: IntoIterator<Item = N>, N: Into<String>>(mut self, networks: I) -> Self {
        self.allow_networks.extend(networks.into_iter().map(Into::into));
        self
    }

    /// Takes `http:` too.
    #[must_use]
    pub fn allow_http(mut self) -> Self {
        self.allow_http = true;
        self
    }

    /// Lets callbacks reach these ports alone.
    #[must_use]
    pub fn allow_ports(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.allow_ports.get_or_insert_default().extend(ports);
        self
    }

    /// Trusts these authorities, given in PEM, beside those of the system.
    #[must_use]
    pub fn with_ca_pem(mut self, pem: impl Into<String>) -> Self {
        self.ca_pem = Some(pem.into());
        self
    }

    /// Sets how long an attempt may take in all.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long opening a connection may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Checks what is not checked where it is used.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |reason: &'static str| Err(Error::new(ErrorKind::InvalidArgument, reason));
        if self.timeout.is_zero() {
            return refuse("timeout_ms: must be at least 1");
        }
        if self.connect_timeout.is_zero() {
            return refuse("connect_timeout_ms: must be at least 1");
        }
        if self.allow_ports.as_ref().is_some_and(BTreeSet::is_empty) {
            return refuse("allow_ports: names no port; leave it out to allow all");
        }
        Ok(())
    }
}
