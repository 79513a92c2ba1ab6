//! What a function sets for this driver by annotations.

use std::collections::BTreeMap;

use function_gateway_core::naming::{annotation_pointer, is_dns_label, is_label_key, is_label_value};
use function_gateway_core::{FunctionSpec, Violation};

use crate::config::OpenFaasConfig;

/// What all of the driver's annotations start with.
const PREFIX: &str = "openfaas.com/";

const NAMESPACE: &str = "openfaas.com/namespace";
const CONSTRAINTS: &str = "openfaas.com/constraints";
const READ_ONLY: &str = "openfaas.com/read-only-root-filesystem";
const REQUESTED_MEMORY: &str = "openfaas.com/requests.memory-bytes";
const REQUESTED_CPU: &str = "openfaas.com/requests.cpu-millis";
const ASYNC: &str = "openfaas.com/async";
const CALLBACK_URL: &str = "openfaas.com/callback-url";
pub(crate) const ACCEPT_REPEATS: &str = "openfaas.com/accept-repeats";
const LABEL: &str = "openfaas.com/label.";
const ANNOTATION: &str = "openfaas.com/annotation.";

/// Every name, for who has mistyped one.
const ALL: [&str; 10] = [
    NAMESPACE,
    CONSTRAINTS,
    READ_ONLY,
    REQUESTED_MEMORY,
    REQUESTED_CPU,
    ASYNC,
    CALLBACK_URL,
    ACCEPT_REPEATS,
    LABEL,
    ANNOTATION,
];

/// What this driver itself puts on a function in the engine.
pub(crate) const OWN_PREFIX: &str = "function-gateway/";

/// The settings of one function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) namespace: Option<String>,
    pub(crate) constraints: Vec<String>,
    pub(crate) read_only: bool,
    pub(crate) requested_memory: Option<u64>,
    pub(crate) requested_cpu: Option<u32>,
    pub(crate) is_async: bool,
    pub(crate) callback_url: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Settings {
    /// Reads them, with all that is wrong with them.
    pub(crate) fn read(spec: &FunctionSpec, config: &OpenFaasConfig) -> (Self, Vec<Violation>) {
        let mut settings = Self::default();
        let mut found = Vec::new();
        for (name, value) in &spec.annotations {
            if let Err(reason) = settings.set(name, value, config) {
                found.push(Violation::new(annotation_pointer(name), reason));
            }
        }
        if settings.callback_url.is_some() && !settings.is_async {
            let reason = format!("has an effect only with {ASYNC}: \"true\"");
            found.push(Violation::new(annotation_pointer(CALLBACK_URL), reason));
        }
        (settings, found)
    }

    fn set(&mut self, name: &str, value: &str, config: &OpenFaasConfig) -> Result<(), String> {
        match name {
            NAMESPACE if !is_dns_label(value) => return Err("is no DNS label".to_owned()),
            NAMESPACE if config.namespace.as_deref() != Some(value) && !config.namespaces.contains(value) => {
                return Err(format!("the host does not let functions choose the namespace {value:?}"));
            }
            NAMESPACE => self.namespace = Some(value.to_owned()),
            CONSTRAINTS => {
                self.constraints = value.split(',').map(|constraint| constraint.trim().to_owned()).collect();
                if self.constraints.iter().any(String::is_empty) {
                    return Err("is a list of constraints such as `node=a`, with a comma between two".to_owned());
                }
            }
            READ_ONLY => self.read_only = flag(value)?,
            REQUESTED_MEMORY => self.requested_memory = Some(number(value)?),
            REQUESTED_CPU => self.requested_cpu = Some(number(value)?),
            ASYNC => self.is_async = flag(value)?,
            CALLBACK_URL => {
                let is_url = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https");
                if !reqwest::Url::parse(value).is_ok_and(|url| is_url(&url)) {
                    return Err("is no URL with the scheme http or https".to_owned());
                }
                self.callback_url = Some(value.to_owned());
            }
            // Read at each call, where nothing else of this is needed.
            ACCEPT_REPEATS => drop(flag(value)?),
            _ => {
                if let Some(key) = name.strip_prefix(LABEL) {
                    own_key(key)?;
                    if !is_label_value(value) {
                        return Err("the value of a label has at most 63 letters, digits, '.', '_' and '-'".to_owned());
                    }
                    self.labels.insert(key.to_owned(), value.to_owned());
                } else if let Some(key) = name.strip_prefix(ANNOTATION) {
                    own_key(key)?;
                    self.annotations.insert(key.to_owned(), value.to_owned());
                } else {
                    return Err(format!("the driver openfaas has no such setting; the nearest is {}", nearest(name)));
                }
            }
        }
        Ok(())
    }
}

/// Whether a function says that it takes it that the engine may send `GET`, `HEAD` and `OPTIONS` twice.
pub(crate) fn accepts_repeats(spec: &FunctionSpec) -> bool {
    spec.annotations.get(ACCEPT_REPEATS).is_some_and(|value| value == "true")
}

/// Whether calls of a function are queued by the engine.
pub(crate) fn is_async(spec: &FunctionSpec) -> bool {
    spec.annotations.get(ASYNC).is_some_and(|value| value == "true")
}

/// Where the engine sends the answer of a queued call.
pub(crate) fn callback_url(spec: &FunctionSpec) -> Option<&str> {
    spec.annotations.get(CALLBACK_URL).map(String::as_str)
}

fn own_key(key: &str) -> Result<(), String> {
    if !is_label_key(key) {
        return Err(format!("{key:?} is no key of a label or annotation in Kubernetes"));
    }
    if key.starts_with(OWN_PREFIX) || key.starts_with("label.function-gateway/") || key == "faas_function" {
        return Err(format!("{key:?} is set by the gateway or by the engine itself"));
    }
    Ok(())
}

fn flag(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "is \"true\" or \"false\"".to_owned())
}

fn number<N: std::str::FromStr + PartialEq + From<u8>>(value: &str) -> Result<N, String> {
    value.parse().ok().filter(|number| *number != N::from(0)).ok_or_else(|| "is a whole number from 1".to_owned())
}

/// The name that a mistyped one was most likely meant to be.
fn nearest(name: &str) -> String {
    let own = name.strip_prefix(PREFIX).unwrap_or(name);
    let distance = |known: &&str| strsim::damerau_levenshtein(own, known.strip_prefix(PREFIX).unwrap_or(known));
    let nearest = ALL.into_iter().min_by_key(distance).unwrap_or_default();
    if nearest.ends_with('.') { format!("{nearest}<key>") } else { nearest.to_owned() }
}

#[cfg(test)]
mod tests {
    use function_gateway_core::ImageWorkload;

    use super::*;

    fn read(annotations: &[(&str, &str)]) -> (Settings, Vec<Violation>) {
        let config = OpenFaasConfig::new("http://faas").with_namespace("main").with_namespaces(["staging"]);
        let mut spec = FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new("a"));
        for (name, value) in annotations {
            spec = spec.with_annotation(*name, *value);
        }
        Settings::read(&spec, &config)
    }

    #[test]
    fn every_setting_is_read() {
        let (settings, found) = read(&[
            (NAMESPACE, "staging"),
            (CONSTRAINTS, "node=a, zone=b"),
            (READ_ONLY, "true"),
            (REQUESTED_MEMORY, "1024"),
            (REQUESTED_CPU, "10"),
            (ASYNC, "true"),
            (CALLBACK_URL, "http://back/here"),
            (ACCEPT_REPEATS, "false"),
            ("openfaas.com/label.team", "x"),
            ("openfaas.com/annotation.topic", "t t"),
        ]);
        assert_eq!(found, []);
        let expected = Settings {
            namespace: Some("staging".to_owned()),
            constraints: vec!["node=a".to_owned(), "zone=b".to_owned()],
            read_only: true,
            requested_memory: Some(1024),
            requested_cpu: Some(10),
            is_async: true,
            callback_url: Some("http://back/here".to_owned()),
            labels: BTreeMap::from([("team".to_owned(), "x".to_owned())]),
            annotations: BTreeMap::from([("topic".to_owned(), "t t".to_owned())]),
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (name, value, expected) in [
            ("openfaas.com/namspace", "a", "the nearest is openfaas.com/namespace"),
            ("openfaas.com/lable.team", "a", "the nearest is openfaas.com/label.<key>"),
            ("asynch", "true", "the nearest is openfaas.com/async"),
            (NAMESPACE, "other", "does not let functions choose"),
            (NAMESPACE, "A B", "no DNS label"),
            (CONSTRAINTS, "a,,b", "a list of constraints"),
            (READ_ONLY, "yes", "\"true\" or \"false\""),
            (ACCEPT_REPEATS, "1", "\"true\" or \"false\""),
            (REQUESTED_CPU, "0", "a whole number"),
            (REQUESTED_MEMORY, "64Mi", "a whole number"),
            (CALLBACK_URL, "ftp://a", "scheme http"),
            (CALLBACK_URL, "http://a", "has an effect only"),
            ("openfaas.com/label.function-gateway/tenant", "x", "set by the gateway"),
            ("openfaas.com/label.faas_function", "x", "by the engine itself"),
            ("openfaas.com/label.a b", "x", "no key"),
            ("openfaas.com/label.a", "x y", "at most 63"),
            ("openfaas.com/annotation.-", "x", "no key"),
        ] {
            let (_, found) = read(&[(name, value)]);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert_eq!(found[0].pointer, annotation_pointer(name));
            assert!(found[0].reason.contains(expected), "{found:?}");
        }
    }
}
