//! From the name of a host to the addresses that may be connected to.
//!
//! The name is looked up here, once for each connection, and the connection is made to what is found here: so a name that leads
//! elsewhere the second time leads no further than the first.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::{fmt, io};

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::network::Networks;

/// Finds the addresses of a name.
#[async_trait]
pub(crate) trait Lookup: fmt::Debug + Send + Sync + 'static {
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// As the system does.
#[derive(Debug)]
pub(crate) struct SystemLookup;

#[async_trait]
impl Lookup for SystemLookup {
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// Leaves out the addresses that are refused.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    lookup: Arc<dyn Lookup>,
    networks: Arc<Networks>,
}

impl Filter {
    pub(crate) fn new(lookup: Arc<dyn Lookup>, networks: Arc<Networks>) -> Self {
        Self { lookup, networks }
    }
}

impl Resolve for Filter {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { lookup, networks } = self.clone();
        Box::pin(async move {
            let mut allowed = Vec::new();
            let mut refused = None;
            for address in lookup.lookup(name.as_str()).await? {
                match networks.refusal(address) {
                    None => allowed.push(SocketAddr::new(address, 0)),
                    Some(what) => refused = Some(Refused { address, what }),
                }
            }
            match refused {
                Some(refused) if allowed.is_empty() => Err(refused.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// A name leads to refused addresses only. For the operators: the developer need not learn what is inside.
#[derive(Debug)]
pub(crate) struct Refused {
    address: IpAddr,
    what: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host leads to {}, which is {}", self.address, self.what)
    }
}

impl std::error::Error for Refused {}
