//! A specification as what the cluster takes: the template of a Revision, and the Service around the generations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use function_gateway_core::naming::{annotation_pointer, env_pointer, is_label_name, is_label_value};
use function_gateway_core::{
    DeployRequest, DriverRef, FunctionSpec, Generation, ImageWorkload, SecretDelivery, Violation, Workload,
};
use serde_json::{Map, Value, json};

use crate::api::{AppliedService, Meta, Revision, Service, Traffic, label};
use crate::config::KnativeConfig;
use crate::names::{Target, of_tag, revision_name, tag};
use crate::settings::{Probe, Settings, seconds};

/// What Knative sets in each instance.
const RESERVED_VARIABLES: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
const MAX_CONCURRENCY: u32 = 1000;
/// Counts of instances are 32 bits with a sign there.
const MAX_SCALE: u32 = i32::MAX.unsigned_abs();
const MIN_SCALE_ANNOTATION: &str = "autoscaling.knative.dev/min-scale";
const MAX_SCALE_ANNOTATION: &str = "autoscaling.knative.dev/max-scale";
const PROGRESS_DEADLINE: &str = "serving.knative.dev/progress-deadline";
pub(crate) const CONTAINER: &str = "user-container";

/// Everything of a specification that this driver or its engine can't do, beyond what the capabilities say.
pub(crate) fn check(spec: &FunctionSpec, config: &KnativeConfig) -> Vec<Violation> {
    let (settings, mut found) = Settings::read(spec, config);
    let mut add = |pointer: &str, reason: String| found.push(Violation::new(pointer, reason));
    if let Workload::Image(run) = &spec.run {
        check_image(run, &mut add);
    }
    let secrets = spec.secrets.iter().enumerate().filter_map(|(index, binding)| match &binding.deliver {
        SecretDelivery::Env(variable) => Some((format!("/secrets/{index}/deliver/env"), variable)),
        _ => None,
    });
    let variables = spec.env.keys().map(|name| (env_pointer(name), name)).chain(secrets);
    for (pointer, variable) in variables {
        if RESERVED_VARIABLES.contains(&variable.as_str()) {
            add(&pointer, format!("Knative itself sets the variable {variable}"));
        } else if variable.contains(|sign: char| !sign.is_ascii_graphic()) {
            add(&pointer, "the name of a variable has printable signs of ASCII only, here".to_owned());
        }
    }
    if let Some(scale) = &spec.scale {
        if scale.instance_concurrency.is_some_and(|calls| calls > MAX_CONCURRENCY) {
            add("/scale/instance_concurrency", format!("is at most {MAX_CONCURRENCY} with Knative"));
        }
        for (pointer, bound) in [("/scale/min", scale.min), ("/scale/max", scale.max)] {
            if bound.is_some_and(|bound| bound > MAX_SCALE) {
                add(pointer, format!("is at most {MAX_SCALE} with Knative"));
            }
        }
        let initial = settings.scaling.get("autoscaling.knative.dev/initial-scale").and_then(|text| text.parse().ok());
        if let (Some(initial), Some(max)) = (initial, scale.max)
            && max < initial
        {
            let reason = format!("is greater than `scale.max`, which is {max}");
            add(&annotation_pointer("knative.dev/initial-scale"), reason);
        }
    }
    let (requests, limits) = (
        (settings.requested_memory, settings.requested_cpu.map(u64::from)),
        (spec.limits.memory_bytes, spec.limits.cpu_millis.map(u64::from)),
    );
    for (name, requested, limit) in [
        ("knative.dev/requests.memory-bytes", requests.0, limits.0),
        ("knative.dev/requests.cpu-millis", requests.1, limits.1),
    ] {
        if let (Some(requested), Some(limit)) = (requested, limit)
            && requested > limit
        {
            add(&annotation_pointer(name), format!("is greater than the limit, which is {limit}"));
        }
    }
    let longest = config.max_call;
    for (pointer, time) in
        [("/timeouts/attempt_ms", spec.timeouts.attempt), ("/timeouts/total_ms", longest_total(spec))]
    {
        if time.is_some_and(|time| time >= longest) {
            let reason = format!(
                "has to be shorter than {} ms, after which Knative breaks a call off in a way that looks complete",
                longest.as_millis()
            );
            add(pointer, reason);
        }
    }
    found
}

/// The time of a whole call, where it bounds an attempt too.
fn longest_total(spec: &FunctionSpec) -> Option<Duration> {
    spec.timeouts.total.filter(|_| spec.streaming || spec.timeouts.attempt.is_none())
}

fn check_image(run: &ImageWorkload, add: &mut impl FnMut(&str, String)) {
    if run.image.is_empty() || run.image.contains(char::is_whitespace) {
        add("/run/image/image", "is the reference of an image, without spaces".to_owned());
    }
}

/// How many variables the Secret of a specification holds.
pub(crate) fn secret_count(spec: &FunctionSpec) -> usize {
    spec.secrets.iter().filter(|binding| matches!(binding.deliver, SecretDelivery::Env(_))).count()
}

/// How long Knative lets a call of a function take. A second longer than the gateway does, so that it is the gateway that ends it: what
/// Knative ends after its first byte looks complete.
pub(crate) fn longest_call(spec: &FunctionSpec, config: &KnativeConfig) -> Duration {
    let own = if spec.streaming { spec.timeouts.total } else { spec.timeouts.attempt.or(spec.timeouts.total) };
    let own = own.map_or(config.max_call, |time| Duration::from_secs(seconds(time) + 1));
    own.min(config.max_call)
}

/// What says whose an object is. Values that no label can hold are in annotations.
fn identity(request: &DeployRequest, target: &Target<'_>) -> BTreeMap<String, String> {
    let key = &request.revision.key;
    let mut labels = BTreeMap::from([
        (label::GATEWAY.to_owned(), target.gateway.to_owned()),
        (label::FUNCTION.to_owned(), target.function.to_owned()),
    ]);
    for (name, value) in [(label::TENANT, key.tenant.as_str()), (label::NAME, key.name.as_str())] {
        if is_label_value(value) {
            labels.insert(name.to_owned(), value.to_owned());
        }
    }
    labels
}

/// The labels of a specification that can be labels here. The others stay with the gateway, which is where functions are found by them.
fn of_spec(spec: &FunctionSpec) -> impl Iterator<Item = (String, String)> {
    let fits = |(key, value): &(&String, &String)| is_label_name(key) && is_label_value(value);
    spec.labels.iter().filter(fits).map(|(key, value)| (format!("{}{key}", label::OF_SPEC), value.clone()))
}

/// The Secret of a generation: its labels, and whom it goes with.
pub(crate) fn secret_meta(request: &DeployRequest, target: &Target<'_>) -> Meta {
    let mut labels = identity(request, target);
    labels.insert(label::GENERATION.to_owned(), target.generation.to_string());
    Meta { name: target.revision(), namespace: target.namespace.to_owned(), labels, ..Meta::default() }
}

/// The template of a generation's Revision. Its specification has passed [`check`].
pub(crate) fn template(request: &DeployRequest, target: &Target<'_>, config: &KnativeConfig) -> Value {
    let spec = request.spec();
    let (settings, _) = Settings::read(spec, config);
    let scale = spec.scale.clone().unwrap_or_default();
    let mut labels = settings.labels.clone();
    labels.extend(of_spec(spec));
    labels.extend(identity(request, target));
    labels.insert(label::GENERATION.to_owned(), target.generation.to_string());
    let mut annotations = settings.annotations.clone();
    annotations.extend(settings.scaling.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    for (name, bound) in [(MIN_SCALE_ANNOTATION, scale.min), (MAX_SCALE_ANNOTATION, scale.max)] {
        annotations.extend(bound.map(|bound| (name.to_owned(), bound.to_string())));
    }
    let ready = seconds(spec.timeouts.ready.unwrap_or(config.progress_deadline));
    annotations.insert(PROGRESS_DEADLINE.to_owned(), format!("{ready}s"));
    let longest = longest_call(spec, config).as_secs();
    let mut pod = json!({
        "timeoutSeconds": longest,
        "containers": [container(request, target, &settings)],
    });
    let mut set = |name: &str, value: Option<Value>| {
        if let (Some(pod), Some(value)) = (pod.as_object_mut(), value) {
            pod.insert(name.to_owned(), value);
        }
    };
    let at_most = |time: Option<Duration>| time.map(|time| json!((seconds(time) + 1).min(longest)));
    set("responseStartTimeoutSeconds", at_most(spec.timeouts.first_byte));
    set("idleTimeoutSeconds", at_most(spec.timeouts.idle.filter(|_| spec.streaming)));
    set("containerConcurrency", scale.instance_concurrency.map(|calls| json!(calls)));
    set("serviceAccountName", settings.service_account.as_ref().map(|name| json!(name)));
    let pull = settings.pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    set("imagePullSecrets", (!pull.is_empty()).then(|| json!(pull)));
    json!({
        "metadata": {"name": target.revision(), "labels": labels, "annotations": annotations},
        "spec": pod,
    })
}

fn container(request: &DeployRequest, target: &Target<'_>, settings: &Settings) -> Value {
    let spec = request.spec();
    let mut container = Map::new();
    let mut set = |name: &str, value: Value| {
        let empty = value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(Map::is_empty);
        if !empty {
            container.insert(name.to_owned(), value);
        }
    };
    set("name", json!(CONTAINER));
    if let Workload::Image(run) = &spec.run {
        set("image", json!(run.image));
        for (name, words) in [("command", &run.command), ("args", &run.args)] {
            set(name, words.iter().map(|word| literal(word)).collect());
        }
    }
    set("imagePullPolicy", json!(settings.pull_policy));
    let plain = spec.env.iter().map(|(name, value)| json!({"name": name, "value": literal(value)}));
    let secret = target.revision();
    let secrets = request.secrets.iter().map(|variable| {
        json!({"name": variable.name, "valueFrom": {"secretKeyRef": {"name": secret, "key": secret_key(&variable.name)}}})
    });
    set("env", plain.chain(secrets).collect());
    let resources = |memory: Option<u64>, cpu: Option<u32>| {
        let mut amounts = Map::new();
        amounts.extend(memory.map(|bytes| ("memory".to_owned(), json!(bytes.to_string()))));
        amounts.extend(cpu.map(|millis| ("cpu".to_owned(), json!(format!("{millis}m")))));
        amounts
    };
    let mut amounts = Map::new();
    for (name, amount) in [
        ("limits", resources(spec.limits.memory_bytes, spec.limits.cpu_millis)),
        ("requests", resources(settings.requested_memory, settings.requested_cpu)),
    ] {
        if !amount.is_empty() {
            amounts.insert(name.to_owned(), Value::Object(amount));
        }
    }
    set("resources", Value::Object(amounts));
    if settings.port.is_some() || settings.h2c {
        let mut port = json!({"name": if settings.h2c { "h2c" } else { "http1" }});
        if let (Some(object), Some(number)) = (port.as_object_mut(), settings.port) {
            object.insert("containerPort".to_owned(), json!(number));
        }
        set("ports", json!([port]));
    }
    // What the gateway asks before a generation serves, each instance is asked before it does.
    let mut readiness = settings.readiness.clone();
    readiness.path = readiness.path.or_else(|| spec.readiness_path.clone());
    for (name, probe) in
        [("readinessProbe", &readiness), ("livenessProbe", &settings.liveness), ("startupProbe", &settings.startup)]
    {
        set(name, probe_document(probe));
    }
    Value::Object(container)
}

/// A text as Kubernetes takes it literally: in it, `$(NAME)` is the value of another variable, and `$$` a `$`.
fn literal(value: &str) -> String {
    match value.contains("$(") || value.contains("$$") {
        true => value.replace('$', "$$"),
        false => value.to_owned(),
    }
}

/// A key of a Secret: letters, digits, `-`, `_` and `.`. Others are written as their numbers, so that no two variables share one.
pub(crate) fn secret_key(variable: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if variable.bytes().all(|byte| plain(&byte)) {
        return variable.to_owned();
    }
    variable.bytes().fold(String::new(), |mut key, byte| {
        use std::fmt::Write as _;

        match plain(&byte) {
            true => key.push(char::from(byte)),
            false => drop(write!(key, ".{byte:02x}")),
        }
        key
    })
}

fn probe_document(probe: &Probe) -> Value {
    let Some(path) = &probe.path else { return Value::Null };
    let mut document = json!({"httpGet": {"path": path}});
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay),
        ("periodSeconds", probe.period),
        ("timeoutSeconds", probe.timeout),
        ("failureThreshold", probe.failures),
    ] {
        if let (Some(object), Some(value)) = (document.as_object_mut(), value) {
            object.insert(name.to_owned(), json!(value));
        }
    }
    document
}

/// The generations that a Service holds, with their references.
pub(crate) fn held(service: &Service) -> BTreeMap<Generation, &str> {
    let annotations = service.metadata.annotations.iter();
    let ours = annotations.filter_map(|(name, reference)| Some((of_tag(name.strip_prefix(label::HELD)?)?, reference)));
    ours.map(|(generation, reference)| (generation, reference.as_str())).collect()
}

/// The Service with one generation more, as the newest. `before` is what is there: its other generations stay, and it is written only if
/// nobody has changed it since.
pub(crate) fn with_generation(
    request: &DeployRequest,
    reference: &DriverRef,
    target: &Target<'_>,
    config: &KnativeConfig,
    before: Option<&Service>,
) -> AppliedService {
    let spec = request.spec();
    let mut labels = identity(request, target);
    labels.extend(of_spec(spec));
    if crate::settings::is_local(spec) {
        labels.insert(label::VISIBILITY.to_owned(), label::CLUSTER_LOCAL.to_owned());
    }
    let key = &request.revision.key;
    let mut annotations = BTreeMap::from([
        (label::TENANT.to_owned(), key.tenant.to_string()),
        (label::NAME.to_owned(), key.name.to_string()),
    ]);
    let mut generations: BTreeSet<_> = BTreeSet::from([target.generation]);
    for (generation, reference) in before.map(held).unwrap_or_default() {
        annotations.insert(held_annotation(generation), reference.to_owned());
        generations.insert(generation);
    }
    annotations.insert(held_annotation(target.generation), reference.to_string());
    let metadata = Meta {
        name: target.service.to_owned(),
        namespace: target.namespace.to_owned(),
        resource_version: before.map(|before| before.metadata.resource_version.clone()).unwrap_or_default(),
        labels,
        annotations,
        ..Meta::default()
    };
    AppliedService::new(metadata, template(request, target, config), traffic(target.service, &generations))
}

/// The Service with one generation less. `newest` is the template that takes the place of the one that goes, where that is the
/// newest: Knative makes a Revision again that is deleted and still the newest.
pub(crate) fn without_generation(before: &Service, target: &Target<'_>, newest: Option<Value>) -> AppliedService {
    let generations: BTreeSet<_> =
        held(before).into_keys().filter(|generation| *generation != target.generation).collect();
    let ours = |name: &String| {
        name.starts_with("function-gateway/") || name.starts_with(label::OF_SPEC) || name == label::VISIBILITY
    };
    let kept =
        |name: &String| ours(name) || (name.starts_with(label::HELD) && *name != held_annotation(target.generation));
    let only = |all: &BTreeMap<String, String>, keep: &dyn Fn(&String) -> bool| {
        all.iter().filter(|(name, _)| keep(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let metadata = Meta {
        name: before.metadata.name.clone(),
        namespace: before.metadata.namespace.clone(),
        resource_version: before.metadata.resource_version.clone(),
        labels: only(&before.metadata.labels, &ours),
        annotations: only(&before.metadata.annotations, &kept),
        ..Meta::default()
    };
    let template = newest.unwrap_or_else(|| before.spec.template.clone());
    AppliedService::new(metadata, template, traffic(target.service, &generations))
}

/// What a Revision was made of, to become the newest again. Its `spec` has to be equal for Knative to take it for the same.
pub(crate) fn template_of(revision: &Revision) -> Value {
    let foreign = |name: &str| name.starts_with("serving.knative.dev/") && name != PROGRESS_DEADLINE;
    let own = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        all.iter().filter(|(name, _)| !foreign(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    json!({
        "metadata": {
            "name": revision.metadata.name,
            "labels": own(&revision.metadata.labels),
            "annotations": own(&revision.metadata.annotations),
        },
        "spec": revision.spec,
    })
}

fn held_annotation(generation: Generation) -> String {
    format!("{}{}", label::HELD, tag(generation))
}

/// All calls of the plain name to the newest Revision that is ready, and a name for each generation.
fn traffic(service: &str, generations: &BTreeSet<Generation>) -> Vec<Traffic> {
    let latest = Traffic { latest_revision: Some(true), percent: Some(100), ..Traffic::default() };
    let named = generations.iter().map(|generation| Traffic {
        revision_name: Some(revision_name(service, *generation)),
        latest_revision: Some(false),
        percent: Some(0),
        tag: Some(tag(*generation)),
        url: None,
    });
    std::iter::once(latest).chain(named).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use function_gateway_core::{
        FunctionId, FunctionKey, RevisionReason, Scale, Secret, SecretBinding, SecretVariable, Timestamp,
    };

    use super::*;
    use crate::config::KnativeNamespaces;
    use crate::names;

    fn spec() -> FunctionSpec {
        FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new("lab.local/fn:1"))
    }

    fn request(spec: FunctionSpec, generation: u64) -> (DeployRequest, DriverRef) {
        let key = FunctionKey::new("acme".parse().unwrap(), "fun".parse().unwrap());
        let (id, generation) = (FunctionId::from_bytes([7; 16]), Generation::new(generation).unwrap());
        let created = (Timestamp::default(), "ada".parse().unwrap());
        let revision =
            function_gateway_core::Revision::new(key, id, generation, spec, created, RevisionReason::Created);
        let gateway = "g1".parse().unwrap();
        let (local, secrets) = (crate::settings::is_local(&revision.spec), secret_count(&revision.spec));
        let reference = names::reference(&gateway, &revision, &KnativeNamespaces::default(), local, secrets);
        (DeployRequest::new(gateway, Arc::new(revision)), reference)
    }

    fn made(spec: FunctionSpec) -> Value {
        let (mut request, reference) = request(spec, 1);
        for binding in request.revision.spec.secrets.clone() {
            if let SecretDelivery::Env(name) = binding.deliver {
                request = request.with_secret(SecretVariable::new(name, Secret::new("canary")));
            }
        }
        let target = Target::parse(&reference).unwrap();
        let service = with_generation(&request, &reference, &target, &KnativeConfig::default(), None);
        serde_json::to_value(service).unwrap()
    }

    #[test]
    fn the_smallest_specification_says_what_it_is_and_no_more() {
        let service = made(spec());
        let name = service["metadata"]["name"].as_str().unwrap();
        let revision = format!("{name}-g1");
        let id = FunctionId::from_bytes([7; 16]).to_string();
        let expected = json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": {
                    "function-gateway/gateway": "g1",
                    "function-gateway/function": id,
                    "function-gateway/tenant": "acme",
                    "function-gateway/name": "fun",
                },
                "annotations": {
                    "function-gateway/tenant": "acme",
                    "function-gateway/name": "fun",
                    "held.function-gateway/g1": format!("v1/g1/{id}/1/default/0/{name}"),
                },
            },
            "spec": {
                "template": {
                    "metadata": {
                        "name": revision,
                        "labels": {
                            "function-gateway/gateway": "g1",
                            "function-gateway/function": id,
                            "function-gateway/generation": "1",
                            "function-gateway/tenant": "acme",
                            "function-gateway/name": "fun",
                        },
                        "annotations": {"serving.knative.dev/progress-deadline": "300s"},
                    },
                    "spec": {
                        "timeoutSeconds": 600,
                        "containers": [{"name": "user-container", "image": "lab.local/fn:1"}],
                    },
                },
                "traffic": [
                    {"latestRevision": true, "percent": 100},
                    {"latestRevision": false, "percent": 0, "tag": "g1", "revisionName": revision},
                ],
            },
        });
        assert_eq!(service, expected);
    }

    #[test]
    fn the_whole_of_a_specification_is_mapped() {
        let mut spec = spec()
            .with_env("A", "1 $(B)")
            .with_label("team", "x")
            .with_label("no label here", "x")
            .with_secret(SecretBinding::env("key".parse().unwrap(), "MY.KEY"))
            .with_annotation("knative.dev/visibility", "cluster-local")
            .with_annotation("knative.dev/h2c", "true")
            .with_annotation("knative.dev/port", "9000")
            .with_annotation("knative.dev/requests.cpu-millis", "50")
            .with_annotation("knative.dev/window-seconds", "6")
            .with_annotation("knative.dev/liveness-probe.path", "/live")
            .with_annotation("knative.dev/label.own", "y")
            .with_annotation("knative.dev/annotation.topic", "t");
        if let Workload::Image(run) = &mut spec.run {
            (run.command, run.args) = (vec!["serve".to_owned()], vec!["--all".to_owned()]);
        }
        spec.limits.memory_bytes = Some(1024);
        spec.limits.cpu_millis = Some(500);
        spec.readiness_path = Some("/ready".to_owned());
        spec.timeouts.total = Some(Duration::from_millis(1500));
        spec.timeouts.first_byte = Some(Duration::from_secs(1));
        spec.timeouts.ready = Some(Duration::from_secs(15));
        let mut scale = Scale::default();
        (scale.min, scale.max, scale.instance_concurrency) = (Some(0), Some(3), Some(4));
        spec.scale = Some(scale);
        assert_eq!(check(&spec, &KnativeConfig::default()), []);
        let service = made(spec);
        assert_eq!(service["metadata"]["labels"]["networking.knative.dev/visibility"], "cluster-local");
        assert_eq!(service["metadata"]["labels"]["label.function-gateway/team"], "x");
        assert_eq!(service.pointer("/metadata/labels/label.function-gateway~1no label here"), None);
        let template = &service["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["own"], "y");
        let annotations = json!({
            "autoscaling.knative.dev/max-scale": "3",
            "autoscaling.knative.dev/min-scale": "0",
            "autoscaling.knative.dev/window": "6s",
            "serving.knative.dev/progress-deadline": "15s",
            "topic": "t",
        });
        assert_eq!(template["metadata"]["annotations"], annotations);
        let secret = template["metadata"]["name"].clone();
        let expected = json!({
            "timeoutSeconds": 3,
            "responseStartTimeoutSeconds": 2,
            "containerConcurrency": 4,
            "containers": [{
                "name": "user-container",
                "image": "lab.local/fn:1",
                "command": ["serve"],
                "args": ["--all"],
                "env": [
                    {"name": "A", "value": "1 $$(B)"},
                    {"name": "MY.KEY", "valueFrom": {"secretKeyRef": {"name": secret, "key": "MY.2eKEY"}}},
                ],
                "resources": {"limits": {"memory": "1024", "cpu": "500m"}, "requests": {"cpu": "50m"}},
                "ports": [{"name": "h2c", "containerPort": 9000}],
                "readinessProbe": {"httpGet": {"path": "/ready"}},
                "livenessProbe": {"httpGet": {"path": "/live"}},
            }],
        });
        assert_eq!(template["spec"], expected);
        assert!(!service.to_string().contains("canary"));
    }

    fn scale(change: impl FnOnce(&mut Scale)) -> Option<Scale> {
        let mut scale = Scale::default();
        change(&mut scale);
        Some(scale)
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        type Change = fn(&mut FunctionSpec);
        const LONG: Option<Duration> = Some(Duration::from_secs(600));
        let annotate =
            |spec: &mut FunctionSpec, name: &str| drop(spec.annotations.insert(name.to_owned(), "2".to_owned()));
        let changes: [(Change, &str); 10] = [
            (|spec| spec.run = ImageWorkload::new("a b").into(), "/run/image/image"),
            (|spec| drop(spec.env.insert("K_SERVICE".to_owned(), String::new())), "/env/K_SERVICE"),
            (|spec| drop(spec.env.insert("Ä".to_owned(), String::new())), "/env/Ä"),
            (|spec| spec.secrets.push(SecretBinding::env("s".parse().unwrap(), "PORT")), "/secrets/0/deliver/env"),
            (|spec| spec.timeouts.attempt = LONG, "/timeouts/attempt_ms"),
            (|spec| spec.timeouts.total = LONG, "/timeouts/total_ms"),
            (|spec| spec.scale = scale(|scale| scale.instance_concurrency = Some(1001)), "/scale/instance_concurrency"),
            (|spec| spec.scale = scale(|scale| scale.max = Some(u32::MAX)), "/scale/max"),
            (|spec| spec.scale = scale(|scale| scale.max = Some(1)), "/annotations/knative.dev~1initial-scale"),
            (|spec| spec.limits.memory_bytes = Some(1), "/annotations/knative.dev~1requests.memory-bytes"),
        ];
        for (index, (change, pointer)) in changes.into_iter().enumerate() {
            let mut spec = spec();
            change(&mut spec);
            match index {
                8 => annotate(&mut spec, "knative.dev/initial-scale"),
                9 => annotate(&mut spec, "knative.dev/requests.memory-bytes"),
                _ => {}
            }
            let found = check(&spec, &KnativeConfig::default());
            let found: Vec<_> = found.into_iter().map(|found| found.pointer).collect();
            assert_eq!(found, [pointer]);
        }
    }

    #[test]
    fn generations_come_and_go_side_by_side() {
        let (first, one) = request(spec(), 1);
        let (second, two) = request(spec(), 2);
        let (target, next) = (Target::parse(&one).unwrap(), Target::parse(&two).unwrap());
        let config = KnativeConfig::default();
        let shown = |applied: &AppliedService| -> Service {
            let mut shown: Service = serde_json::from_value(serde_json::to_value(applied).unwrap()).unwrap();
            shown.metadata.resource_version = "5".to_owned();
            shown
        };
        let alone = shown(&with_generation(&first, &one, &target, &config, None));
        let both = with_generation(&second, &two, &next, &config, Some(&alone));
        assert_eq!(both.metadata.resource_version, "5");
        let tags = |applied: &AppliedService| {
            applied.spec.traffic.iter().filter_map(|part| part.tag.clone()).collect::<Vec<_>>()
        };
        assert_eq!(tags(&both), ["g1", "g2"]);
        assert_eq!(held(&shown(&both)).into_values().collect::<Vec<_>>(), [one.as_str(), two.as_str()]);
        // The older one goes: the newest stays as it is.
        let rest = without_generation(&shown(&both), &target, None);
        assert_eq!((tags(&rest), &rest.spec.template), (vec!["g2".to_owned()], &both.spec.template));
        assert_eq!(held(&shown(&rest)).into_values().collect::<Vec<_>>(), [two.as_str()]);
        assert_eq!(rest.metadata.labels, both.metadata.labels);
    }

    #[test]
    fn a_revision_becomes_the_newest_again_as_it_was() {
        let revision: Revision = serde_json::from_value(json!({
            "metadata": {
                "name": "a-g1",
                "labels": {"function-gateway/gateway": "g1", "serving.knative.dev/service": "a"},
                "annotations": {"serving.knative.dev/creator": "x", "serving.knative.dev/progress-deadline": "5s", "topic": "t"},
            },
            "spec": {"containers": [{"image": "a"}], "timeoutSeconds": 300},
        }))
        .unwrap();
        let expected = json!({
            "metadata": {
                "name": "a-g1",
                "labels": {"function-gateway/gateway": "g1"},
                "annotations": {"serving.knative.dev/progress-deadline": "5s", "topic": "t"},
            },
            "spec": {"containers": [{"image": "a"}], "timeoutSeconds": 300},
        });
        assert_eq!(template_of(&revision), expected);
    }

    #[test]
    fn no_two_variables_share_a_key() {
        assert_eq!(secret_key("A_B-1"), "A_B-1");
        assert_eq!(secret_key("A.B"), "A.2eB");
        assert_ne!(secret_key("A.2eB"), secret_key("A.B"));
    }
}
