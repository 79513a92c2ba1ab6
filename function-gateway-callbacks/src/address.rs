//! Which addresses are called: what can be seen of it in the URL.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use function_gateway_core::Result;
use reqwest::Url;

use crate::config::CallbackConfig;
use crate::network::Networks;

/// What an address has to keep to.
#[derive(Debug)]
pub(crate) struct Rules {
    networks: Arc<Networks>,
    allow_http: bool,
    allow_ports: Option<BTreeSet<u16>>,
}

impl Rules {
    pub(crate) fn new(config: CallbackConfig, networks: Arc<Networks>) -> Self {
        Self { networks, allow_http: config.allow_http, allow_ports: config.allow_ports }
    }

    /// Reads an address; what is wrong with it where it is not one to call. It is never cited: it may hold credentials.
    pub(crate) fn examine(&self, text: &str) -> Result<Url, String> {
        let refuse = |reason: &str| Err(reason.to_owned());
        let Ok(url) = Url::parse(text) else { return refuse("is no absolute URL") };
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return refuse("begins with http://, which this gateway does not allow: use https://"),
            _ => return refuse("does not begin with https://"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("holds credentials; a receiver knows the gateway by the signature");
        }
        // The client reads it once more, by stricter rules.
        if url.as_str().parse::<http::Uri>().is_err() {
            return refuse("can't be written in a request");
        }
        if let (Some(allowed), Some(port)) = (&self.allow_ports, url.port_or_known_default())
            && !allowed.contains(&port)
        {
            return Err(format!("has the port {port}, which this gateway does not allow"));
        }
        let host = url.host_str().unwrap_or_default();
        match literal(host) {
            Some(address) => match self.networks.refusal(address) {
                Some(what) => Err(format!("has a host that this gateway does not call: it is {what}")),
                None => Ok(url),
            },
            None if is_localhost(host) && !self.reaches_localhost() => {
                refuse("has a host that this gateway does not call: it is the gateway's own machine")
            }
            None => Ok(url),
        }
    }

    fn reaches_localhost(&self) -> bool {
        let own = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        own.into_iter().any(|address| self.networks.refusal(address).is_none())
    }
}

/// The address that a host is, as it stands in a URL that was read: there is one form of each by then.
fn literal(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

/// Whether a name stands for the machine itself (RFC 6761).
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(config: &CallbackConfig, url: &str) -> Option<String> {
        let networks = Arc::new(Networks::new(&config.allow_networks).unwrap());
        Rules::new(config.clone(), networks).examine(url).err()
    }

    #[test]
    fn what_is_wrong_with_an_address_is_told() {
        let config = CallbackConfig::new();
        for (url, expected) in [
            ("", "no absolute URL"),
            ("/hooks", "no absolute URL"),
            ("https://", "no absolute URL"),
            ("https://[::1", "no absolute URL"),
            ("https://[fe80::1%25eth0]/", "no absolute URL"),
            ("https://1.2.3.4.5/", "no absolute URL"),
            ("http://example.com/", "http://"),
            ("ftp://example.com/", "https://"),
            ("file:///etc/passwd", "https://"),
            ("gopher://example.com/", "https://"),
            ("https://ada@example.com/", "credentials"),
            ("https://ada:canary@example.com/", "credentials"),
            ("https://:canary@example.com/", "credentials"),
        ] {
            let found = reason(&config, url).unwrap_or_default();
            assert!(found.contains(expected) && !found.contains("canary"), "{url}: {found}");
        }
        let long = format!("https://example.com/{}", "a".repeat(70_000));
        assert_eq!(reason(&config, &long).as_deref(), Some("can't be written in a request"));
        for fine in
            ["https://example.com", "https://example.com:8443/a?b=c#d", "HTTPS://EXAMPLE.COM/", "https://8.8.8.8/"]
        {
            assert_eq!(reason(&config, fine), None, "{fine}");
        }
        assert_eq!(reason(&config.allow_http(), "http://example.com/"), None);
    }

    #[test]
    fn every_way_to_write_an_address_is_seen_through() {
        let config = CallbackConfig::new();
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "127.0.0.1.",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "①②⑦.0.0.1",
            "127。0。0。1",
            "0",
            "0.0.0.0",
            "[::]",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "255.255.255.255",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.localhost",
            "ｌocalhost",
        ] {
            let found = reason(&config, &format!("https://{host}/")).unwrap_or_default();
            assert!(found.contains("does not call"), "{host}: {found}");
        }
        // Backslashes and what stands before an @ don't hide the host.
        for url in
            ["https:\\\\127.0.0.1/", "https:127.0.0.1", "https:///127.0.0.1/", "https://127.0.0.1\\@example.com/"]
        {
            assert!(reason(&config, url).is_some_and(|found| found.contains("does not call")), "{url}");
        }
    }

    #[test]
    fn what_the_host_allows_is_taken() {
        let config = CallbackConfig::new().allow_networks(["127.0.0.0/8"]).allow_ports([443, 8443]);
        for (url, is_allowed) in [
            ("https://127.0.0.1/", true),
            ("https://localhost/", true),
            ("https://[::ffff:127.0.0.1]/", true),
            ("https://[::1]/", false),
            ("https://10.0.0.1/", false),
            ("https://example.com/", true),
            ("https://example.com:8443/", true),
            ("https://example.com:444/", false),
        ] {
            assert_eq!(reason(&config, url).is_none(), is_allowed, "{url}");
        }
    }
}
