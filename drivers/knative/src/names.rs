//! What functions and their generations are called in the engine, and how they are known again.

use function_gateway_core::naming::{engine_name, is_dns_label};
use function_gateway_core::{
    DriverRef, Error, ErrorKind, FunctionId, GatewayId, Generation, Result, Revision, TenantId,
};

use crate::config::KnativeNamespaces;

/// How much of a function's name is part of its Service's, for who reads a list.
const MAX_READABLE: usize = 15;
/// With 120 bits a Service has at most 41 signs, and Service, `-g` and a generation at most 63: what a label of DNS can hold.
const HASH_BYTES: usize = 15;
/// How long the prefix of namespaces may be, which leaves room for a hash.
pub(crate) const MAX_PREFIX: usize = 20;

/// A generation in the engine, as its [`DriverRef`] tells it:
/// `v1/<gateway>/<function>/<generation>/<namespace>/<number of secrets>/<Service>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    pub(crate) gateway: &'a str,
    pub(crate) function: &'a str,
    pub(crate) generation: Generation,
    pub(crate) namespace: &'a str,
    /// How many variables its Secret holds; none, and there is no Secret.
    pub(crate) secrets: usize,
    /// The name of the Service, which all generations share.
    pub(crate) service: &'a str,
}

/// The reference of a revision. Who may call a function is a property of the whole Service, so that one that is hidden and one
/// that is not are two.
pub(crate) fn reference(
    gateway: &GatewayId,
    revision: &Revision,
    namespaces: &KnativeNamespaces,
    is_local: bool,
    secrets: usize,
) -> DriverRef {
    let (function, generation) = (revision.function, revision.generation);
    let namespace = namespace(namespaces, &revision.key.tenant);
    let service = service_name(gateway, revision, is_local);
    DriverRef::new(format!("v1/{gateway}/{function}/{generation}/{namespace}/{secrets}/{service}"))
}

fn service_name(gateway: &GatewayId, revision: &Revision, is_local: bool) -> String {
    let (tenant, name, function) = (&revision.key.tenant, revision.key.name.as_str(), revision.function.to_string());
    let visibility = if is_local { "cluster-local" } else { "" };
    let identity = [gateway.as_str(), tenant.as_str(), name, &function, visibility];
    engine_name(name, MAX_READABLE, HASH_BYTES, &identity)
}

/// The namespace of a tenant's functions. Two tenants never share one, unless all do: what is no plain label has two hyphens in it,
/// and what has two hyphens is not taken as it is.
pub(crate) fn namespace(rule: &KnativeNamespaces, tenant: &TenantId) -> String {
    match rule {
        KnativeNamespaces::Shared(name) => name.clone(),
        KnativeNamespaces::PerTenant { prefix } => {
            let plain = format!("{prefix}{tenant}");
            if is_dns_label(tenant.as_str()) && is_dns_label(&plain) && !tenant.as_str().contains("--") {
                return plain;
            }
            let readable: String = tenant
                .as_str()
                .chars()
                .map(|sign| if sign.is_ascii_alphanumeric() { sign.to_ascii_lowercase() } else { '-' })
                .filter(|sign| *sign != '-')
                .take(MAX_READABLE)
                .collect();
            let hashed = engine_name("", 0, HASH_BYTES, &["tenant", tenant.as_str()]);
            format!("{prefix}{readable}--{}", hashed.trim_start_matches("f-"))
        }
    }
}

/// The name of a generation's Revision, and of its Secret.
pub(crate) fn revision_name(service: &str, generation: Generation) -> String {
    format!("{service}-{}", tag(generation))
}

/// The tag by which a generation is called.
pub(crate) fn tag(generation: Generation) -> String {
    format!("g{generation}")
}

/// The generation that a tag is of.
pub(crate) fn of_tag(tag: &str) -> Option<Generation> {
    let number = tag.strip_prefix('g')?.parse().ok()?;
    Generation::new(number).filter(|generation| self::tag(*generation) == tag)
}

impl<'a> Target<'a> {
    /// Reads a reference.
    pub(crate) fn parse(reference: &'a DriverRef) -> Result<Self> {
        Self::parse_text(reference.as_str())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a stored reference is not one of the driver knative"))
    }

    pub(crate) fn parse_text(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        let version = parts.next()?;
        let [gateway, function, generation, namespace, secrets, service] = std::array::from_fn(|_| parts.next());
        let target = Self {
            gateway: gateway?,
            function: function?,
            generation: Generation::new(generation?.parse().ok()?)?,
            namespace: namespace?,
            secrets: secrets?.parse().ok()?,
            service: service?,
        };
        (version == "v1" && parts.next().is_none() && !target.service.is_empty()).then_some(target)
    }

    /// The function, for a list.
    pub(crate) fn function_id(&self) -> Option<FunctionId> {
        self.function.parse().ok()
    }

    pub(crate) fn revision(&self) -> String {
        revision_name(self.service, self.generation)
    }
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

    fn shared() -> KnativeNamespaces {
        KnativeNamespaces::Shared("functions".to_owned())
    }

    prop_compose! {
        fn identity()(
            gateway in "[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?",
            tenant in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
            name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            id in any::<[u8; 16]>(),
            generation in 1..=u64::MAX,
        ) -> (GatewayId, Revision) {
            (gateway.parse().unwrap(), revision(&tenant, &name, id, generation))
        }
    }

    proptest! {
        #[test]
        fn names_are_labels_of_dns((gateway, revision) in identity(), is_local in any::<bool>()) {
            let service = service_name(&gateway, &revision, is_local);
            for name in [service.clone(), revision_name(&service, revision.generation), format!("{}-{service}", tag(revision.generation))] {
                prop_assert!(is_dns_label(&name), "{name}");
                prop_assert!(name.starts_with(|first: char| first.is_ascii_lowercase()), "{name}");
            }
        }

        #[test]
        fn a_reference_tells_all_that_is_needed((gateway, revision) in identity(), secrets in 0_usize..9) {
            let reference = reference(&gateway, &revision, &shared(), false, secrets);
            let target = Target::parse(&reference).unwrap();
            prop_assert_eq!((target.function_id(), target.generation), (Some(revision.function), revision.generation));
            prop_assert_eq!((target.gateway, target.namespace, target.secrets), (gateway.as_str(), "functions", secrets));
            prop_assert_eq!(target.service, service_name(&gateway, &revision, false));
            prop_assert_eq!(of_tag(&tag(target.generation)), Some(revision.generation));
        }

        #[test]
        fn tenants_that_differ_have_namespaces_that_differ(tenants in proptest::collection::btree_set("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", 2..20)) {
            let rule = KnativeNamespaces::PerTenant { prefix: "tenant-".to_owned() };
            let mut seen = BTreeMap::new();
            for tenant in tenants {
                let name = namespace(&rule, &tenant.parse().unwrap());
                prop_assert!(is_dns_label(&name), "{name}");
                prop_assert_eq!(seen.insert(name, tenant), None);
            }
        }
    }

    #[test]
    fn a_name_keeps_to_what_it_was_in_the_first_version() {
        let revision = revision("acme", "9-lives", [7; 16], 3);
        let target = reference(&"g1".parse().unwrap(), &revision, &shared(), false, 1);
        let text = target.as_str();
        assert!(text.starts_with("v1/g1/07070707-0707-0707-0707-070707070707/3/functions/1/f9-lives-"), "{text}");
        assert_eq!(Target::parse(&target).unwrap().service.len(), "f9-lives-".len() + 24);
        let local = reference(&"g1".parse().unwrap(), &revision, &shared(), true, 1);
        assert_ne!(Target::parse(&local).unwrap().service, Target::parse(&target).unwrap().service);
    }

    #[test]
    fn a_tenant_that_is_a_plain_label_is_read_in_its_namespace() {
        let rule = |prefix: &str| KnativeNamespaces::PerTenant { prefix: prefix.to_owned() };
        assert_eq!(namespace(&rule("fn-"), &"acme".parse().unwrap()), "fn-acme");
        for tenant in ["Acme", "a.b", "a--b", &"a".repeat(64)] {
            let name = namespace(&rule("fn-"), &tenant.parse().unwrap());
            assert!(name.starts_with("fn-a") && name.contains("--") && is_dns_label(&name), "{name}");
        }
    }

    #[test]
    fn what_is_no_reference_is_an_error() {
        for text in [
            "",
            "v1/g/f/1/n/0",
            "v2/g/f/1/n/0/s",
            "v1/g/f/0/n/0/s",
            "v1/g/f/1/n/x/s",
            "v1/g/f/1/n/0/s/t",
            "v1/g/f/1/n/0/",
        ] {
            let error = Target::parse(&DriverRef::new(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "{text}");
        }
        for tag in ["", "1", "g", "g0", "g01", "old"] {
            assert_eq!(of_tag(tag), None, "{tag}");
        }
    }
}
