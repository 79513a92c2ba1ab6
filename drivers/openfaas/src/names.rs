//! What a generation is called in the engine, and how it is known again.

use function_gateway_core::naming::engine_name;
use function_gateway_core::{DriverRef, Error, ErrorKind, FunctionId, GatewayId, Generation, Result, Revision};
use sha2::{Digest as _, Sha256};

/// What stands in a reference for the engine's own default namespace: no namespace is called so.
const DEFAULT_NAMESPACE: &str = "-";
/// How much of a function's name is part of its service's, for who reads a list.
const MAX_READABLE: usize = 24;
const HASH_BYTES: usize = 20;

/// A generation in the engine, as its [`DriverRef`] tells it:
/// `v1/<gateway>/<function>/<generation>/<namespace>/<number of secrets>/<service>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    pub(crate) gateway: &'a str,
    pub(crate) function: &'a str,
    pub(crate) generation: &'a str,
    /// `None` for the engine's own default.
    pub(crate) namespace: Option<&'a str>,
    /// How many of the engine's secrets belong to it.
    pub(crate) secrets: usize,
    /// The name of the OpenFaaS function.
    pub(crate) service: &'a str,
}

/// The reference of a revision.
pub(crate) fn reference(
    gateway: &GatewayId,
    revision: &Revision,
    namespace: Option<&str>,
    secrets: usize,
) -> DriverRef {
    let (function, generation) = (revision.function, revision.generation);
    let (namespace, service) = (namespace.unwrap_or(DEFAULT_NAMESPACE), service_name(gateway, revision));
    DriverRef::new(format!("v1/{gateway}/{function}/{generation}/{namespace}/{secrets}/{service}"))
}

impl<'a> Target<'a> {
    /// Reads a reference.
    pub(crate) fn parse(reference: &'a DriverRef) -> Result<Self> {
        Self::parse_text(reference.as_str())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a stored reference is not one of the driver openfaas"))
    }

    pub(crate) fn parse_text(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        let version = parts.next()?;
        let [gateway, function, generation, namespace, secrets, service] = std::array::from_fn(|_| parts.next());
        let target = Self {
            gateway: gateway?,
            function: function?,
            generation: generation?,
            namespace: namespace.filter(|namespace| *namespace != DEFAULT_NAMESPACE),
            secrets: secrets?.parse().ok()?,
            service: service?,
        };
        (version == "v1" && parts.next().is_none() && !target.service.is_empty()).then_some(target)
    }

    /// The typed parts, for a list.
    pub(crate) fn identity(&self) -> Option<(FunctionId, Generation)> {
        Some((self.function.parse().ok()?, Generation::new(self.generation.parse().ok()?)?))
    }

    /// The names of its secrets in the engine.
    pub(crate) fn secret_names(&self) -> impl Iterator<Item = String> {
        (0..self.secrets).map(|index| secret_name(self.service, index))
    }
}

/// The name of one of a generation's secrets: they come and go with it, so that rotating one never touches what serves.
pub(crate) fn secret_name(service: &str, index: usize) -> String {
    format!("{service}-s{index}")
}

/// The name of the OpenFaaS function, of at most 58 signs, as Kubernetes asks of the service that faas-netes makes of it.
fn service_name(gateway: &GatewayId, revision: &Revision) -> String {
    let (function, generation) = (revision.function.to_string(), revision.generation.to_string());
    let (tenant, name) = (revision.key.tenant.as_str(), revision.key.name.as_str());
    engine_name(name, MAX_READABLE, HASH_BYTES, &[gateway.as_str(), tenant, name, &function, &generation])
}

/// SHA-256 in hexadecimal digits, of some parts.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    use std::fmt::Write as _;

    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use function_gateway_core::{FunctionKey, FunctionSpec, ImageWorkload, RevisionReason, Timestamp};
    use proptest::prelude::*;

    use super::*;

    fn revision(tenant: &str, name: &str, id: [u8; 16], generation: u64) -> Revision {
        let key = FunctionKey::new(tenant.parse().unwrap(), name.parse().unwrap());
        let spec = FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new("a"));
        let created = (Timestamp::default(), "ada".parse().unwrap());
        let (id, generation) = (FunctionId::from_bytes(id), Generation::new(generation).unwrap());
        Revision::new(key, id, generation, spec, created, RevisionReason::Created)
    }

    fn identities() -> impl Strategy<Value = (String, String, String, [u8; 16], u64)> {
        let label = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
        let gateway = "[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?";
        (gateway, "[A-Za-z0-9][A-Za-z0-9._-]{0,63}", label, any::<[u8; 16]>(), 1..=u64::MAX)
    }

    proptest! {
        #[test]
        fn a_service_name_is_a_dns_label_that_starts_with_a_letter((gateway, tenant, name, id, generation) in identities()) {
            let service = service_name(&gateway.parse().unwrap(), &revision(&tenant, &name, id, generation));
            prop_assert!(function_gateway_core::naming::is_dns_label(&service), "{service}");
            prop_assert!(service.starts_with(|first: char| first.is_ascii_lowercase()), "{service}");
            prop_assert!(service.len() <= 58);
            prop_assert!(secret_name(&service, usize::MAX).len() <= 253);
        }

        #[test]
        fn identities_that_differ_have_names_that_differ(all in proptest::collection::vec(identities(), 2..20)) {
            let mut seen = BTreeMap::new();
            for identity in all {
                let (gateway, tenant, name, id, generation) = &identity;
                let service = service_name(&gateway.parse().unwrap(), &revision(tenant, name, *id, *generation));
                if let Some(before) = seen.insert(service, identity.clone()) {
                    prop_assert_eq!(before, identity);
                }
            }
        }

        #[test]
        fn a_reference_tells_all_that_is_needed((gateway, tenant, name, id, generation) in identities(), secrets in 0_usize..9, namespace in proptest::option::of("[a-z]{1,9}")) {
            let (gateway, revision) = (gateway.parse().unwrap(), revision(&tenant, &name, id, generation));
            let reference = reference(&gateway, &revision, namespace.as_deref(), secrets);
            let target = Target::parse(&reference).unwrap();
            prop_assert_eq!(target.identity(), Some((revision.function, revision.generation)));
            prop_assert_eq!((target.gateway, target.namespace, target.secrets), (gateway.as_str(), namespace.as_deref(), secrets));
            prop_assert_eq!(target.service, service_name(&gateway, &revision));
            prop_assert_eq!(target.secret_names().count(), secrets);
        }
    }

    #[test]
    fn a_name_keeps_to_what_it_was_in_the_first_version() {
        let revision = revision("acme", "9-lives", [7; 16], 3);
        let service = service_name(&"g1".parse().unwrap(), &revision);
        assert_eq!(service, "f9-lives-cv5eoy6l3euvi5hlhkoupv2to2untaaq");
    }

    #[test]
    fn what_is_no_reference_is_an_error() {
        for text in ["", "v1/g/f/1/-/0", "v2/g/f/1/-/0/s", "v1/g/f/1/-/x/s", "v1/g/f/1/-/0/s/t", "v1/g/f/1/-/0/"] {
            let error = Target::parse(&DriverRef::new(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "{text}");
        }
    }
}
