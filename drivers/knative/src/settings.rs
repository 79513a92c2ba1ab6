//! What a function sets for this driver by annotations.

use std::collections::BTreeMap;
use std::time::Duration;

use function_gateway_core::naming::{annotation_pointer, is_label_key, is_label_value};
use function_gateway_core::{FunctionSpec, Violation};

use crate::config::KnativeConfig;

/// What all of the driver's annotations start with.
const PREFIX: &str = "knative.dev/";

const VISIBILITY: &str = "knative.dev/visibility";
const CLASS: &str = "knative.dev/class";
const METRIC: &str = "knative.dev/metric";
const TARGET: &str = "knative.dev/target";
const UTILIZATION: &str = "knative.dev/target-utilization-percentage";
const BURST: &str = "knative.dev/target-burst-capacity";
const INITIAL: &str = "knative.dev/initial-scale";
const WINDOW: &str = "knative.dev/window-seconds";
const DELAY: &str = "knative.dev/scale-down-delay-seconds";
const RETENTION: &str = "knative.dev/scale-to-zero-retention-seconds";
const REQUESTED_MEMORY: &str = "knative.dev/requests.memory-bytes";
const REQUESTED_CPU: &str = "knative.dev/requests.cpu-millis";
const PORT: &str = "knative.dev/port";
const H2C: &str = "knative.dev/h2c";
const SERVICE_ACCOUNT: &str = "knative.dev/service-account";
const PULL_SECRETS: &str = "knative.dev/pull-secrets";
const PULL_POLICY: &str = "knative.dev/pull-policy";
const READINESS: &str = "knative.dev/readiness-probe.";
const LIVENESS: &str = "knative.dev/liveness-probe.";
const STARTUP: &str = "knative.dev/startup-probe.";
pub(crate) const ACCEPT_REPEATS: &str = "knative.dev/accept-repeats";
const LABEL: &str = "knative.dev/label.";
const ANNOTATION: &str = "knative.dev/annotation.";

/// Every name, for who has mistyped one.
const ALL: [&str; 23] = [
    VISIBILITY,
    CLASS,
    METRIC,
    TARGET,
    UTILIZATION,
    BURST,
    INITIAL,
    WINDOW,
    DELAY,
    RETENTION,
    REQUESTED_MEMORY,
    REQUESTED_CPU,
    PORT,
    H2C,
    SERVICE_ACCOUNT,
    PULL_SECRETS,
    PULL_POLICY,
    READINESS,
    LIVENESS,
    STARTUP,
    ACCEPT_REPEATS,
    LABEL,
    ANNOTATION,
];

/// What labels and annotations of Knative, Kubernetes and this driver start with: those have settings of their own, or none.
const RESERVED: [&str; 7] = [
    "function-gateway/",
    "label.function-gateway/",
    "held.function-gateway/",
    "autoscaling.knative.dev/",
    "serving.knative.dev/",
    "networking.knative.dev/",
    "kubernetes.io/",
];

/// A probe that Kubernetes makes of each instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) path: Option<String>,
    pub(crate) initial_delay: Option<u32>,
    pub(crate) period: Option<u32>,
    pub(crate) timeout: Option<u32>,
    pub(crate) failures: Option<u32>,
}

impl Probe {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "path" if !value.starts_with('/') => return Err("is a path, which starts with '/'".to_owned()),
            "path" => self.path = Some(value.to_owned()),
            "initial-delay-seconds" => self.initial_delay = Some(number(value, 1..=3600)?),
            "period-seconds" => self.period = Some(number(value, 1..=3600)?),
            "timeout-seconds" => self.timeout = Some(number(value, 1..=3600)?),
            "failure-threshold" => self.failures = Some(number(value, 1..=1000)?),
            _ => {
                let known = "path, initial-delay-seconds, period-seconds, timeout-seconds and failure-threshold";
                return Err(format!("a probe has no {name:?}; it has {known}"));
            }
        }
        Ok(())
    }

    /// Whether all that is set of it is how to ask, and not what.
    fn lacks_path(&self) -> bool {
        self.path.is_none() && *self != Self::default()
    }
}

/// The settings of one function.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) is_local: bool,
    /// For the autoscaler, by the names that Knative has for them.
    pub(crate) scaling: BTreeMap<&'static str, String>,
    pub(crate) requested_memory: Option<u64>,
    pub(crate) requested_cpu: Option<u32>,
    pub(crate) port: Option<u32>,
    pub(crate) h2c: bool,
    pub(crate) service_account: Option<String>,
    pub(crate) pull_secrets: Vec<String>,
    pub(crate) pull_policy: Option<String>,
    pub(crate) readiness: Probe,
    pub(crate) liveness: Probe,
    pub(crate) startup: Probe,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Settings {
    /// Reads them, with all that is wrong with them.
    pub(crate) fn read(spec: &FunctionSpec, config: &KnativeConfig) -> (Self, Vec<Violation>) {
        let mut settings = Self::default();
        let mut found = Vec::new();
        for (name, value) in &spec.annotations {
            if let Err(reason) = settings.set(name, value, config) {
                found.push(Violation::new(annotation_pointer(name), reason));
            }
        }
        let mut together = |name: &str, wrong: bool, reason: String| {
            if wrong {
                found.push(Violation::new(annotation_pointer(name), reason));
            }
        };
        let has_path = |probe: &Probe| probe.path.is_some() || spec.readiness_path.is_some();
        for (start, wrong) in [
            (READINESS, settings.readiness.lacks_path() && !has_path(&settings.readiness)),
            (LIVENESS, settings.liveness.lacks_path()),
            (STARTUP, settings.startup.lacks_path()),
        ] {
            together(&format!("{start}path"), wrong, "is needed where anything else of the probe is set".to_owned());
        }
        let hpa = settings.scaling.get(AUTOSCALER_CLASS).is_some_and(|class| class == HPA);
        let metric = settings.scaling.get(AUTOSCALER_METRIC).map(String::as_str);
        let reason = format!("is `concurrency` or `rps`; with {CLASS}: \"hpa\" it is `cpu` or `memory`");
        together(METRIC, metric.is_some_and(|metric| matches!(metric, "cpu" | "memory") != hpa), reason);
        (settings, found)
    }

    fn set(&mut self, name: &str, value: &str, config: &KnativeConfig) -> Result<(), String> {
        match name {
            VISIBILITY => match value {
                "cluster-local" => self.is_local = true,
                "public" => self.is_local = false,
                _ => return Err("is \"cluster-local\" or \"public\"".to_owned()),
            },
            CLASS => {
                let class = match value {
                    "kpa" => KPA,
                    "hpa" => HPA,
                    _ => return Err("is \"kpa\" or \"hpa\"".to_owned()),
                };
                self.scaling.insert(AUTOSCALER_CLASS, class.to_owned());
            }
            METRIC if !matches!(value, "concurrency" | "rps" | "cpu" | "memory") => {
                return Err("is \"concurrency\", \"rps\", \"cpu\" or \"memory\"".to_owned());
            }
            METRIC => drop(self.scaling.insert(AUTOSCALER_METRIC, value.to_owned())),
            TARGET => {
                let target: f64 = value.parse().map_err(|_| "is a number".to_owned())?;
                if !(target.is_finite() && target >= 0.01) {
                    return Err("is a number of at least 0.01".to_owned());
                }
                self.scaling.insert("autoscaling.knative.dev/target", value.to_owned());
            }
            UTILIZATION => self.scale("autoscaling.knative.dev/target-utilization-percentage", number(value, 1..=100)?),
            BURST if value == "-1" => {
                self.scaling.insert("autoscaling.knative.dev/target-burst-capacity", value.to_owned());
            }
            BURST => self.scale("autoscaling.knative.dev/target-burst-capacity", number(value, 0..=1_000_000)?),
            INITIAL => self.scale("autoscaling.knative.dev/initial-scale", number(value, 1..=10_000)?),
            WINDOW => self.wait("autoscaling.knative.dev/window", number(value, 6..=3600)?),
            DELAY => self.wait("autoscaling.knative.dev/scale-down-delay", number(value, 0..=3600)?),
            RETENTION => {
                self.wait("autoscaling.knative.dev/scale-to-zero-pod-retention-period", number(value, 0..=3600)?);
            }
            REQUESTED_MEMORY => self.requested_memory = Some(whole(value)?),
            REQUESTED_CPU => self.requested_cpu = Some(number(value, 1..=u32::MAX)?),
            PORT => {
                let port = number(value, 1..=65535)?;
                if RESERVED_PORTS.contains(&port) {
                    return Err(format!("the port {port} is Knative's own"));
                }
                self.port = Some(port);
            }
            H2C => self.h2c = flag(value)?,
            SERVICE_ACCOUNT if !config.service_accounts.contains(value) => {
                return Err(format!("the host does not let functions choose the service account {value:?}"));
            }
            SERVICE_ACCOUNT => self.service_account = Some(value.to_owned()),
            PULL_SECRETS => {
                self.pull_secrets = value.split(',').map(|name| name.trim().to_owned()).collect();
                if let Some(other) = self.pull_secrets.iter().find(|name| !config.pull_secrets.contains(*name)) {
                    return Err(format!("the host does not let functions choose the secret {other:?}"));
                }
            }
            PULL_POLICY if !matches!(value, "Always" | "IfNotPresent" | "Never") => {
                return Err("is \"Always\", \"IfNotPresent\" or \"Never\"".to_owned());
            }
            PULL_POLICY => self.pull_policy = Some(value.to_owned()),
            // Read at each call, where nothing else of this is needed.
            ACCEPT_REPEATS => drop(flag(value)?),
            _ => return self.set_keyed(name, value),
        }
        Ok(())
    }

    /// The settings whose names go on after a point.
    fn set_keyed(&mut self, name: &str, value: &str) -> Result<(), String> {
        let probes = [(READINESS, &mut self.readiness), (LIVENESS, &mut self.liveness), (STARTUP, &mut self.startup)];
        for (start, probe) in probes {
            if let Some(key) = name.strip_prefix(start) {
                return probe.set(key, value);
            }
        }
        if let Some(key) = name.strip_prefix(LABEL) {
            own_key(key)?;
            if !is_label_value(value) {
                return Err("the value of a label has at most 63 letters, digits, '.', '_' and '-'".to_owned());
            }
            self.labels.insert(key.to_owned(), value.to_owned());
            return Ok(());
        }
        if let Some(key) = name.strip_prefix(ANNOTATION) {
            own_key(key)?;
            self.annotations.insert(key.to_owned(), value.to_owned());
            return Ok(());
        }
        Err(format!("the driver knative has no such setting; the nearest is {}", nearest(name)))
    }

    fn scale(&mut self, name: &'static str, value: u32) {
        self.scaling.insert(name, value.to_string());
    }

    fn wait(&mut self, name: &'static str, seconds: u32) {
        self.scaling.insert(name, format!("{seconds}s"));
    }
}

const AUTOSCALER_CLASS: &str = "autoscaling.knative.dev/class";
const AUTOSCALER_METRIC: &str = "autoscaling.knative.dev/metric";
const KPA: &str = "kpa.autoscaling.knative.dev";
const HPA: &str = "hpa.autoscaling.knative.dev";
/// What the queue-proxy listens on beside each function.
const RESERVED_PORTS: [u32; 6] = [8008, 8012, 8013, 8022, 9090, 9091];

/// Whether only the cluster may call a function: read where nothing else of the settings is.
pub(crate) fn is_local(spec: &FunctionSpec) -> bool {
    spec.annotations.get(VISIBILITY).is_some_and(|value| value == "cluster-local")
}

/// Whether a function says that it takes it that the engine may send `GET`, `HEAD`, `OPTIONS` and `TRACE` twice.
pub(crate) fn accepts_repeats(spec: &FunctionSpec) -> bool {
    spec.annotations.get(ACCEPT_REPEATS).is_some_and(|value| value == "true")
}

/// Whole seconds of a time, rounded up.
pub(crate) fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn own_key(key: &str) -> Result<(), String> {
    if !is_label_key(key) {
        return Err(format!("{key:?} is no key of a label or annotation in Kubernetes"));
    }
    if RESERVED.iter().any(|start| key.starts_with(start)) {
        return Err(format!("{key:?} is set by the gateway or by Knative itself"));
    }
    Ok(())
}

fn flag(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "is \"true\" or \"false\"".to_owned())
}

fn number(value: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32, String> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| match *range.end() {
        u32::MAX => format!("is a whole number from {}", range.start()),
        end => format!("is a whole number from {} to {end}", range.start()),
    })
}

fn whole(value: &str) -> Result<u64, String> {
    value.parse().ok().filter(|number| *number != 0).ok_or_else(|| "is a whole number from 1".to_owned())
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
        let config = KnativeConfig::default().with_service_accounts(["runner"]).with_pull_secrets(["one", "two"]);
        let mut spec = FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new("a"));
        for (name, value) in annotations {
            spec = spec.with_annotation(*name, *value);
        }
        Settings::read(&spec, &config)
    }

    #[test]
    fn every_setting_is_read() {
        let (settings, found) = read(&[
            (VISIBILITY, "cluster-local"),
            (CLASS, "hpa"),
            (METRIC, "cpu"),
            (TARGET, "0.5"),
            (UTILIZATION, "70"),
            (BURST, "-1"),
            (INITIAL, "2"),
            (WINDOW, "60"),
            (DELAY, "0"),
            (RETENTION, "30"),
            (REQUESTED_MEMORY, "1024"),
            (REQUESTED_CPU, "10"),
            (PORT, "9000"),
            (H2C, "true"),
            (SERVICE_ACCOUNT, "runner"),
            (PULL_SECRETS, "one, two"),
            (PULL_POLICY, "Always"),
            ("knative.dev/readiness-probe.path", "/ready"),
            ("knative.dev/readiness-probe.period-seconds", "5"),
            ("knative.dev/liveness-probe.path", "/live"),
            ("knative.dev/liveness-probe.failure-threshold", "3"),
            ("knative.dev/startup-probe.path", "/start"),
            ("knative.dev/startup-probe.timeout-seconds", "2"),
            ("knative.dev/startup-probe.initial-delay-seconds", "1"),
            (ACCEPT_REPEATS, "false"),
            ("knative.dev/label.team", "x"),
            ("knative.dev/annotation.topic", "t t"),
        ]);
        assert_eq!(found, []);
        let scaling = [
            ("autoscaling.knative.dev/class", "hpa.autoscaling.knative.dev"),
            ("autoscaling.knative.dev/initial-scale", "2"),
            ("autoscaling.knative.dev/metric", "cpu"),
            ("autoscaling.knative.dev/scale-down-delay", "0s"),
            ("autoscaling.knative.dev/scale-to-zero-pod-retention-period", "30s"),
            ("autoscaling.knative.dev/target", "0.5"),
            ("autoscaling.knative.dev/target-burst-capacity", "-1"),
            ("autoscaling.knative.dev/target-utilization-percentage", "70"),
            ("autoscaling.knative.dev/window", "60s"),
        ];
        let probe = |path: &str| Probe { path: Some(path.to_owned()), ..Probe::default() };
        let expected = Settings {
            is_local: true,
            scaling: scaling.into_iter().map(|(name, value)| (name, value.to_owned())).collect(),
            requested_memory: Some(1024),
            requested_cpu: Some(10),
            port: Some(9000),
            h2c: true,
            service_account: Some("runner".to_owned()),
            pull_secrets: vec!["one".to_owned(), "two".to_owned()],
            pull_policy: Some("Always".to_owned()),
            readiness: Probe { period: Some(5), ..probe("/ready") },
            liveness: Probe { failures: Some(3), ..probe("/live") },
            startup: Probe { timeout: Some(2), initial_delay: Some(1), ..probe("/start") },
            labels: BTreeMap::from([("team".to_owned(), "x".to_owned())]),
            annotations: BTreeMap::from([("topic".to_owned(), "t t".to_owned())]),
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (name, value, expected) in [
            ("knative.dev/visibilty", "public", "the nearest is knative.dev/visibility"),
            ("knative.dev/lable.team", "a", "the nearest is knative.dev/label.<key>"),
            ("autoscaling.knative.dev/window", "6s", "the nearest is knative.dev/"),
            (VISIBILITY, "private", "\"cluster-local\" or \"public\""),
            (CLASS, "kda", "\"kpa\" or \"hpa\""),
            (METRIC, "load", "\"concurrency\", \"rps\""),
            (METRIC, "cpu", "with knative.dev/class: \"hpa\""),
            (TARGET, "0", "at least 0.01"),
            (TARGET, "NaN", "at least 0.01"),
            (TARGET, "many", "is a number"),
            (UTILIZATION, "101", "from 1 to 100"),
            (BURST, "-2", "from 0 to"),
            (INITIAL, "0", "from 1 to"),
            (WINDOW, "1", "from 6 to 3600"),
            (DELAY, "3601", "from 0 to 3600"),
            (RETENTION, "x", "a whole number"),
            (REQUESTED_MEMORY, "64Mi", "a whole number"),
            (REQUESTED_CPU, "0", "a whole number from 1"),
            (PORT, "8012", "Knative's own"),
            (PORT, "65536", "from 1 to 65535"),
            (H2C, "yes", "\"true\" or \"false\""),
            (SERVICE_ACCOUNT, "admin", "does not let functions choose"),
            (PULL_SECRETS, "one,other", "\"other\""),
            (PULL_POLICY, "always", "\"Always\""),
            ("knative.dev/liveness-probe.path", "live", "starts with '/'"),
            ("knative.dev/startup-probe.perod-seconds", "1", "a probe has no"),
            (ACCEPT_REPEATS, "1", "\"true\" or \"false\""),
            ("knative.dev/label.function-gateway/tenant", "x", "set by the gateway"),
            ("knative.dev/annotation.autoscaling.knative.dev/min-scale", "x", "by Knative itself"),
            ("knative.dev/label.a b", "x", "no key"),
            ("knative.dev/label.a", "x y", "at most 63"),
        ] {
            let (_, found) = read(&[(name, value)]);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert_eq!(found[0].pointer, annotation_pointer(name));
            assert!(found[0].reason.contains(expected), "{found:?}");
        }
        for start in [READINESS, LIVENESS, STARTUP] {
            let (_, found) = read(&[(&format!("{start}period-seconds"), "5")]);
            assert_eq!(found[0].pointer, annotation_pointer(&format!("{start}path")));
        }
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
    }
}
