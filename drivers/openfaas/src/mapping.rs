//! A specification as the document that the engine takes, and what the engine says of a function.

use std::collections::{BTreeMap, BTreeSet};

use function_gateway_core::naming::{annotation_pointer, env_pointer, is_label_name, is_label_value};
use function_gateway_core::{
    DeployRequest, DeploymentStatus, DriverRef, FunctionSpec, ImageWorkload, SecretDelivery, Violation, Workload,
};
use serde::{Deserialize, Serialize};

use crate::config::OpenFaasConfig;
use crate::names::{Target, digest, secret_name};
use crate::settings::Settings;

const SCALE_MIN: &str = "com.openfaas.scale.min";
const SCALE_MAX: &str = "com.openfaas.scale.max";
const SCALE_ZERO: &str = "com.openfaas.scale.zero";
const MAX_INFLIGHT: &str = "max_inflight";
/// The settings of the watchdogs that bound a call, as `of-watchdog` and the classic one read them.
const WATCHDOG_TIMES: [&str; 3] = ["exec_timeout", "read_timeout", "write_timeout"];
/// Where the engine puts the files of secrets.
const SECRET_FOLDER: &str = "/var/openfaas/secrets";
/// How long a value may be that is kept on a function in the engine: containerd, below faasd, takes 4,096 bytes with its key.
const MAX_ANNOTATION: usize = 3 * 1024;

/// Labels by which a function is known as ours, and read by people.
pub(crate) mod label {
    pub(crate) const GATEWAY: &str = "function-gateway/gateway";
    pub(crate) const FUNCTION: &str = "function-gateway/function";
    pub(crate) const GENERATION: &str = "function-gateway/generation";
    pub(crate) const TENANT: &str = "function-gateway/tenant";
    pub(crate) const NAME: &str = "function-gateway/name";
    /// Annotation: the whole of the reference.
    pub(crate) const REFERENCE: &str = "function-gateway/reference";
    /// Annotation: what was deployed, so that a change behind our back is seen.
    pub(crate) const DEPLOYED: &str = "function-gateway/deployed";
    /// Before the key of a label of the specification.
    pub(crate) const OF_SPEC: &str = "label.function-gateway/";
}

/// What of the engine depends on the provider behind its gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Provider {
    /// Not asked yet: nothing is promised that not every one of them does.
    #[default]
    Unknown,
    /// faasd: one replica on one machine, limits of memory only.
    Faasd,
    /// faas-netes, and others that do what Kubernetes can.
    Cluster,
}

impl Provider {
    /// By what `/system/info` says of the orchestration.
    pub(crate) fn of_orchestration(orchestration: &str) -> Self {
        if orchestration == "containerd" { Self::Faasd } else { Self::Cluster }
    }

    pub(crate) fn is_cluster(self) -> bool {
        self == Self::Cluster
    }
}

/// What is deployed (`FunctionDeployment` of the API).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FunctionDeployment {
    pub(crate) service: String,
    pub(crate) image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) env_process: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) env_vars: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) constraints: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<Resources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<Resources>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) read_only_root_filesystem: bool,
}

/// Memory and CPU, in the quantities of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
}

impl Resources {
    fn of(memory: Option<u64>, cpu: Option<u32>) -> Option<Self> {
        let resources =
            Self { memory: memory.map(|bytes| bytes.to_string()), cpu: cpu.map(|millis| format!("{millis}m")) };
        (resources.memory.is_some() || resources.cpu.is_some()).then_some(resources)
    }
}

/// Everything of a specification that this driver or its engine can't do, beyond what the capabilities say.
pub(crate) fn check(spec: &FunctionSpec, config: &OpenFaasConfig, provider: Provider) -> Vec<Violation> {
    let (settings, mut found) = Settings::read(spec, config);
    let mut add = |pointer: &str, reason: &str| found.push(Violation::new(pointer, reason));
    if let Workload::Image(run) = &spec.run {
        check_image(run, &mut add);
    }
    let annotation = |name: &str| annotation_pointer(&format!("openfaas.com/{name}"));
    if !provider.is_cluster() {
        for (name, used) in [
            ("constraints", !settings.constraints.is_empty()),
            ("read-only-root-filesystem", settings.read_only),
            ("requests.memory-bytes", settings.requested_memory.is_some()),
            ("requests.cpu-millis", settings.requested_cpu.is_some()),
        ] {
            if used {
                add(&annotation(name), "only engines on Kubernetes honour it, and this one is not known to be on it");
            }
        }
    }
    if settings.is_async {
        if spec.streaming {
            add("/streaming", "calls that the engine queues have no answer that could stream");
        }
        if spec.output_schema.is_some() {
            add("/output_schema", "calls that the engine queues have no answer that could be checked");
        }
        if spec.format != function_gateway_core::PayloadFormat::Raw {
            add("/format", "calls that the engine queues have no answer that could be an envelope");
        }
        if spec.limits.max_request_bytes.is_some_and(|bytes| bytes > crate::invoke::MAX_QUEUED_BYTES) {
            add("/limits/max_request_bytes", "the engine queues payloads of at most 256,000 bytes");
        }
    }
    for (variable, pointer) in derived_variables(spec) {
        if spec.env.contains_key(&variable) {
            let reason = format!("the driver sets it for {pointer}");
            add(&env_pointer(&variable), &reason);
        }
    }
    for (index, binding) in spec.secrets.iter().enumerate() {
        if let SecretDelivery::Env(variable) = &binding.deliver
            && variable.contains(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_')
        {
            add(&format!("/secrets/{index}/deliver/env"), "a name of letters, digits and '_' is needed here");
        }
    }
    if let Some(scale) = &spec.scale {
        for (key, used) in [(SCALE_MIN, scale.min.is_some()), (SCALE_MAX, scale.max.is_some())] {
            if used && settings.labels.contains_key(key) {
                add(&annotation(&format!("label.{key}")), "`scale` of the specification sets this label");
            }
        }
        if scale.min == Some(0) {
            add("/scale/min", "is at least 1 here; that the engine may scale to zero is set by its own labels");
        }
    }
    found
}

fn check_image(run: &ImageWorkload, add: &mut impl FnMut(&str, &str)) {
    if run.image.trim().is_empty() || run.image.contains(char::is_whitespace) {
        add("/run/image/image", "is the reference of an image, without spaces");
    }
    if run.command.is_empty() && !run.args.is_empty() {
        add("/run/image/args", "the engine can't replace the arguments alone: give the `command` too");
    }
    // The watchdogs split the text at its spaces, and know no quotes.
    let unfit = |word: &String| word.is_empty() || word.contains(char::is_whitespace);
    if run.command.iter().chain(&run.args).any(unfit) {
        add("/run/image/command", "the engine takes the process as one text of words, so no word can hold a space");
    }
}

/// Variables that the driver sets for other parts of a specification, and for which.
fn derived_variables(spec: &FunctionSpec) -> Vec<(String, String)> {
    let mut derived = Vec::new();
    if spec.scale.as_ref().is_some_and(|scale| scale.instance_concurrency.is_some()) {
        derived.push((MAX_INFLIGHT.to_owned(), "/scale/instance_concurrency".to_owned()));
    }
    for (index, binding) in spec.secrets.iter().enumerate() {
        if let SecretDelivery::Env(variable) = &binding.deliver {
            derived.push((format!("{variable}_FILE"), format!("/secrets/{index}")));
        }
    }
    derived
}

/// How many of the engine's secrets a specification needs: those for the environment, which an engine of files gives by one.
pub(crate) fn secret_count(spec: &FunctionSpec) -> usize {
    spec.secrets.iter().filter(|binding| matches!(binding.deliver, SecretDelivery::Env(_))).count()
}

/// The document for a revision. Its specification has passed [`check`].
pub(crate) fn deployment(
    request: &DeployRequest,
    reference: &DriverRef,
    target: &Target<'_>,
    config: &OpenFaasConfig,
) -> FunctionDeployment {
    let spec = request.spec();
    let (settings, _) = Settings::read(spec, config);
    let (image, env_process) = match &spec.run {
        Workload::Image(run) => {
            let words: Vec<_> = run.command.iter().chain(&run.args).map(String::as_str).collect();
            (run.image.clone(), words.join(" "))
        }
        _ => (String::new(), String::new()),
    };
    let mut env_vars = spec.env.clone();
    if let Some(longest) = spec.timeouts.attempt.or(spec.timeouts.total).filter(|_| !spec.streaming) {
        // Whole seconds, since it is the gateway that keeps the time: the watchdog is only not to be the shorter one.
        let seconds = longest.as_secs() + u64::from(longest.subsec_nanos() > 0);
        for name in WATCHDOG_TIMES {
            env_vars.entry(name.to_owned()).or_insert_with(|| format!("{}s", seconds + 1));
        }
    }
    let scale = spec.scale.clone().unwrap_or_default();
    if let Some(calls) = scale.instance_concurrency {
        env_vars.insert(MAX_INFLIGHT.to_owned(), calls.to_string());
    }
    for (index, secret) in request.secrets.iter().enumerate() {
        let file = format!("{SECRET_FOLDER}/{}", secret_name(target.service, index));
        env_vars.insert(format!("{}_FILE", secret.name), file);
    }
    let mut labels = settings.labels;
    for (key, bound) in [(SCALE_MIN, scale.min), (SCALE_MAX, scale.max)] {
        if let Some(bound) = bound {
            labels.insert(key.to_owned(), bound.to_string());
        }
    }
    let (tenant, name) = (request.revision.key.tenant.as_str(), request.revision.key.name.as_str());
    let readable =
        spec.labels.iter().map(|(key, value)| (format!("{}{key}", label::OF_SPEC), key.as_str(), value.as_str()));
    let readable =
        readable.chain([(label::TENANT.to_owned(), "tenant", tenant), (label::NAME.to_owned(), "name", name)]);
    // What the engine's labels can't hold stays with the gateway, which is where functions are found by their labels.
    labels.extend(
        readable
            .filter(|(_, key, value)| is_label_name(key) && is_label_value(value))
            .map(|(label, _, value)| (label, value.to_owned())),
    );
    for (key, value) in
        [(label::GATEWAY, target.gateway), (label::FUNCTION, target.function), (label::GENERATION, target.generation)]
    {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let mut annotations = settings.annotations;
    annotations.insert(label::REFERENCE.to_owned(), reference.to_string());
    annotations.insert(label::TENANT.to_owned(), tenant.to_owned());
    annotations.insert(label::NAME.to_owned(), name.to_owned());
    if let Some(deployed) = Deployed::of(&image, &env_vars) {
        annotations.insert(label::DEPLOYED.to_owned(), deployed);
    }
    FunctionDeployment {
        service: target.service.to_owned(),
        image,
        namespace: target.namespace.map(str::to_owned),
        env_process,
        env_vars,
        constraints: settings.constraints,
        secrets: (0..request.secrets.len()).map(|index| secret_name(target.service, index)).collect(),
        labels,
        annotations,
        limits: Resources::of(spec.limits.memory_bytes, spec.limits.cpu_millis),
        requests: Resources::of(settings.requested_memory, settings.requested_cpu),
        read_only_root_filesystem: settings.read_only,
    }
}

/// What of a deployment is compared with what the engine says later: image and variables.
#[derive(Debug, Serialize, Deserialize)]
struct Deployed {
    image: String,
    /// The names of the variables; the engine may add others.
    env: BTreeSet<String>,
    digest: String,
}

impl Deployed {
    fn of(image: &str, env: &BTreeMap<String, String>) -> Option<String> {
        let names: BTreeSet<_> = env.keys().cloned().collect();
        let deployed = Self { image: image.to_owned(), digest: digest_of(&names, env), env: names };
        serde_json::to_string(&deployed).ok().filter(|text| text.len() <= MAX_ANNOTATION)
    }
}

fn digest_of(names: &BTreeSet<String>, env: &BTreeMap<String, String>) -> String {
    digest(names.iter().flat_map(|name| [name.as_str(), env.get(name).map_or("", String::as_str)]))
}

/// What the engine says of a function (`FunctionStatus` of the API). What is zero or empty is absent there.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FunctionDocument {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) namespace: Option<String>,
    pub(crate) env_vars: Option<BTreeMap<String, String>>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    pub(crate) replicas: u64,
    pub(crate) available_replicas: u64,
}

/// What a function in the engine is to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// It is the target, as it was deployed.
    Intact,
    /// It is the target, and somebody has changed it.
    Changed,
    /// It belongs to somebody else.
    Foreign,
}

impl FunctionDocument {
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// The reference that was stored with it.
    pub(crate) fn reference(&self) -> Option<&str> {
        self.annotation(label::REFERENCE)
    }

    /// Whether it bears the labels of a gateway.
    pub(crate) fn belongs_to(&self, gateway: &str) -> bool {
        self.label(label::GATEWAY) == Some(gateway)
    }

    /// What it is to a target.
    pub(crate) fn held(&self, target: &Target<'_>) -> Held {
        let ours = self.belongs_to(target.gateway)
            && self.label(label::FUNCTION) == Some(target.function)
            && self.label(label::GENERATION) == Some(target.generation);
        match ours {
            false => Held::Foreign,
            true if self.is_changed() => Held::Changed,
            true => Held::Intact,
        }
    }

    /// Whether image or variables are others than were deployed, as far as the engine tells.
    fn is_changed(&self) -> bool {
        let deployed = self.annotation(label::DEPLOYED).and_then(|text| serde_json::from_str::<Deployed>(text).ok());
        let Some(deployed) = deployed else { return false };
        let image = !self.image.is_empty() && normal(&self.image) != normal(&deployed.image);
        image || self.env_vars.as_ref().is_some_and(|env| digest_of(&deployed.env, env) != deployed.digest)
    }

    /// How it is. Ready is what can take a call; a function without an instance is ready only where the engine may scale it
    /// to zero, since with faasd one that has died looks the same.
    pub(crate) fn status(&self) -> DeploymentStatus {
        let scales_to_zero = self.label(SCALE_ZERO) == Some("true") || self.label(SCALE_MIN) == Some("0");
        match (self.available_replicas, self.replicas) {
            (0, 0) if scales_to_zero => DeploymentStatus::ready().with_idle(true),
            (0, 0) => DeploymentStatus::progressing("the engine runs no replica of it"),
            (0, wanted) => DeploymentStatus::progressing(format!("0 of {wanted} replicas are available")),
            _ => DeploymentStatus::ready(),
        }
    }
}

/// The reference of an image in one form: faasd writes out what Docker leaves out.
fn normal(image: &str) -> String {
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    let image = image.strip_prefix("library/").unwrap_or(image);
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use function_gateway_core::{
        DeploymentState, FunctionId, FunctionKey, Generation, Revision, RevisionReason, Scale, Secret, SecretBinding,
        SecretVariable, Timestamp,
    };
    use serde_json::json;

    use super::*;

    fn config() -> OpenFaasConfig {
        OpenFaasConfig::new("http://faas").with_namespaces(["staging"])
    }

    fn spec() -> FunctionSpec {
        FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new("lab/fn:v1"))
    }

    fn document(spec: FunctionSpec) -> serde_json::Value {
        let gateway = "g1".parse().unwrap();
        let key = FunctionKey::new("acme".parse().unwrap(), "resize".parse().unwrap());
        let created = (Timestamp::default(), "ada".parse().unwrap());
        let (id, reason) = (FunctionId::from_bytes([7; 16]), RevisionReason::Created);
        let revision = Arc::new(Revision::new(key, id, Generation::FIRST, spec, created, reason));
        let (settings, found) = Settings::read(&revision.spec, &config());
        assert_eq!(found, []);
        let secrets = secret_count(&revision.spec);
        let reference = crate::names::reference(&gateway, &revision, settings.namespace.as_deref(), secrets);
        let mut request = DeployRequest::new(gateway, Arc::clone(&revision));
        for binding in &revision.spec.secrets {
            if let SecretDelivery::Env(name) = &binding.deliver {
                request = request.with_secret(SecretVariable::new(name, Secret::new("canary")));
            }
        }
        let target = Target::parse(&reference).unwrap();
        let mut document = serde_json::to_value(deployment(&request, &reference, &target, &config())).unwrap();
        assert!(!document.to_string().contains("canary"), "a secret is in {document}");
        assert_eq!(document["annotations"]["function-gateway/reference"], reference.as_str());
        for own in ["labels", "annotations"] {
            document[own].as_object_mut().unwrap().retain(|key, _| !key.starts_with("function-gateway/"));
        }
        document.as_object_mut().unwrap().remove("service");
        document
    }

    #[test]
    fn every_part_of_a_specification_is_mapped() {
        let mut full = spec()
            .with_env("A", "1")
            .with_label("team", "x")
            .with_label("of whom", "Équipe A")
            .with_secret(SecretBinding::env("key".parse().unwrap(), "API_KEY"))
            .with_annotation("openfaas.com/namespace", "staging")
            .with_annotation("openfaas.com/constraints", "node=a")
            .with_annotation("openfaas.com/read-only-root-filesystem", "true")
            .with_annotation("openfaas.com/requests.memory-bytes", "16777216")
            .with_annotation("openfaas.com/requests.cpu-millis", "10")
            .with_annotation("openfaas.com/label.com.openfaas.scale.factor", "20")
            .with_annotation("openfaas.com/annotation.topic", "t");
        let mut run = ImageWorkload::new("lab/fn:v1");
        (run.command, run.args) = (vec!["/usr/bin/fn".to_owned()], vec!["--fast".to_owned()]);
        full.run = run.into();
        (full.limits.memory_bytes, full.limits.cpu_millis) = (Some(64 << 20), Some(100));
        full.timeouts.total = Some(Duration::from_millis(1500));
        let mut scale = Scale::default();
        (scale.min, scale.max, scale.instance_concurrency) = (Some(1), Some(4), Some(8));
        full.scale = Some(scale);
        assert_eq!(check(&full, &config(), Provider::Cluster), []);
        let document = document(full);
        let file = document["envVars"]["API_KEY_FILE"].clone();
        let secret = document["secrets"][0].as_str().unwrap().to_owned();
        assert_eq!(file, format!("/var/openfaas/secrets/{secret}"));
        assert_eq!(
            document,
            json!({
                "image": "lab/fn:v1",
                "namespace": "staging",
                "envProcess": "/usr/bin/fn --fast",
                "envVars": {
                    "A": "1", "API_KEY_FILE": file, "exec_timeout": "3s", "max_inflight": "8", "read_timeout": "3s",
                    "write_timeout": "3s"
                },
                "constraints": ["node=a"],
                "secrets": [secret],
                "labels": {
                    "com.openfaas.scale.factor": "20", "com.openfaas.scale.max": "4", "com.openfaas.scale.min": "1",
                    "label.function-gateway/team": "x"
                },
                "annotations": {"topic": "t"},
                "limits": {"memory": "67108864", "cpu": "100m"},
                "requests": {"memory": "16777216", "cpu": "10m"},
                "readOnlyRootFilesystem": true
            })
        );
    }

    #[test]
    fn what_is_not_set_is_not_sent() {
        assert_eq!(document(spec()), json!({"image": "lab/fn:v1", "labels": {}, "annotations": {}}));
    }

    #[test]
    fn what_the_engine_can_t_do_is_refused_with_its_place() {
        let refused = |spec: FunctionSpec, provider| {
            let found = check(&spec, &config(), provider);
            found.into_iter().map(|violation| violation.pointer).collect::<Vec<_>>()
        };
        let mut args = ImageWorkload::new("a");
        args.args = vec!["x".to_owned()];
        let with_args = FunctionSpec::new("faas".parse().unwrap(), args);
        assert_eq!(refused(with_args, Provider::Cluster), ["/run/image/args"]);
        let mut words = ImageWorkload::new("a b");
        words.command = vec!["a b".to_owned()];
        let with_words = FunctionSpec::new("faas".parse().unwrap(), words);
        assert_eq!(refused(with_words, Provider::Cluster), ["/run/image/image", "/run/image/command"]);
        let on_faasd = spec()
            .with_annotation("openfaas.com/constraints", "a=b")
            .with_annotation("openfaas.com/requests.cpu-millis", "1");
        assert_eq!(refused(on_faasd.clone(), Provider::Cluster), <[&str; 0]>::default());
        assert_eq!(
            refused(on_faasd, Provider::Faasd),
            ["/annotations/openfaas.com~1constraints", "/annotations/openfaas.com~1requests.cpu-millis"]
        );
        let mut queued = spec().with_annotation("openfaas.com/async", "true");
        queued.streaming = true;
        queued.limits.max_request_bytes = Some(256_001);
        assert_eq!(refused(queued, Provider::Cluster), ["/streaming", "/limits/max_request_bytes"]);
        let clashing = spec()
            .with_env("API_KEY_FILE", "x")
            .with_env("max_inflight", "3")
            .with_secret(SecretBinding::env("key".parse().unwrap(), "API_KEY"));
        let mut clashing = clashing.with_secret(SecretBinding::env("key".parse().unwrap(), "A-B"));
        let mut scale = Scale::default();
        (scale.min, scale.instance_concurrency) = (Some(0), Some(1));
        clashing.scale = Some(scale);
        assert_eq!(
            refused(clashing, Provider::Cluster),
            ["/env/max_inflight", "/env/API_KEY_FILE", "/secrets/1/deliver/env", "/scale/min"]
        );
        let mut label = spec().with_annotation("openfaas.com/label.com.openfaas.scale.max", "3");
        let mut scale = Scale::default();
        scale.max = Some(2);
        label.scale = Some(scale);
        assert_eq!(refused(label, Provider::Cluster), ["/annotations/openfaas.com~1label.com.openfaas.scale.max"]);
    }

    fn reported(document: serde_json::Value) -> FunctionDocument {
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn readiness_is_what_the_engine_says() {
        for (document, state, idle) in [
            (json!({"replicas": 1}), DeploymentState::Progressing, false),
            (json!({"replicas": 5, "availableReplicas": 1}), DeploymentState::Ready, false),
            (json!({}), DeploymentState::Progressing, false),
            (json!({"labels": {"com.openfaas.scale.zero": "true"}}), DeploymentState::Ready, true),
        ] {
            let status = reported(document).status();
            assert_eq!((status.state, status.idle), (state, idle));
        }
    }

    #[test]
    fn a_function_is_ours_by_its_labels_and_intact_by_what_was_deployed() {
        let reference = DriverRef::new("v1/g1/f/1/-/0/fn-x");
        let target = Target::parse(&reference).unwrap();
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let deployed = Deployed::of("fn:1", &env).unwrap();
        let labels =
            json!({label::GATEWAY: "g1", label::FUNCTION: "f", label::GENERATION: "1", "faas_function": "fn-x"});
        let held = |image: &str, env: serde_json::Value| {
            let annotations = json!({label::DEPLOYED: deployed});
            reported(json!({"image": image, "envVars": env, "labels": labels, "annotations": annotations}))
                .held(&target)
        };
        assert_eq!(held("fn:1", json!({"A": "1"})), Held::Intact);
        // faasd writes references out, and providers add variables of their own.
        assert_eq!(held("docker.io/library/fn:1", json!({"A": "1", "fprocess": "x"})), Held::Intact);
        assert_eq!(held("fn:1", json!(null)), Held::Intact);
        assert_eq!(held("fn:2", json!({"A": "1"})), Held::Changed);
        assert_eq!(held("fn:1", json!({"A": "2"})), Held::Changed);
        assert_eq!(held("fn:1", json!({})), Held::Changed);
        assert_eq!(reported(json!({"name": "fn-x", "image": "fn:1"})).held(&target), Held::Foreign);
        assert_eq!(normal("a/b"), "a/b:latest");
        assert_eq!(normal("host:5000/b"), "host:5000/b:latest");
    }
}
