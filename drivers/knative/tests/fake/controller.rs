//! Knative's controllers: what becomes of a Service, step by step, with the conditions that real ones were seen to set.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ingress::domain;
use super::{Instance, Key, PODS, REVISIONS, SERVICES, Shared, State};

/// Works as long as there is something to do, and waits for more.
pub(super) async fn run(shared: Shared) {
    let mut changed = shared.state().changed.subscribe();
    loop {
        changed.borrow_and_update();
        let (worked, pause) = {
            let mut state = shared.state();
            let alive = |(key, object): &(&Key, &Value)| key.0 == SERVICES && object["status"]["frozen"] != true;
            let services: Vec<_> = state.objects.iter().filter(alive).map(|(key, _)| key.clone()).collect();
            let controlled = state.options.controlled;
            let mut worked = false;
            for key in services.iter().filter(|_| controlled) {
                worked |= state.step(key);
            }
            (worked, state.options.step)
        };
        match worked {
            // sleep: controllers take their time, and are seen between two steps
            true => tokio::time::sleep(pause).await,
            false => {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": "2026-11-24T01:46:16Z"});
    for (name, value) in [("reason", reason), ("message", message)] {
        if !value.is_empty() {
            condition[name] = json!(value);
        }
    }
    condition
}

/// What a condition says: status, reason and message.
type Said = (&'static str, &'static str, String);

fn conditions(configurations: &Said, routes: &Said) -> Value {
    let ready = match (configurations.0, routes.0) {
        ("True", "True") => &("True", "", String::new()),
        ("False", _) => configurations,
        (_, "True") => configurations,
        _ => routes,
    };
    let one = |kind: &str, said: &Said| condition(kind, said.0, said.1, &said.2);
    json!([one("ConfigurationsReady", configurations), one("Ready", ready), one("RoutesReady", routes)])
}

fn status_of<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

fn reason_of<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["reason"].as_str()
}

impl State {
    /// One step of what is to be done for a Service; `false` where there is nothing.
    fn step(&mut self, key: &Key) -> bool {
        let Some(service) = self.objects.get(key).cloned() else { return false };
        if service["metadata"]["deletionTimestamp"].is_string() {
            return false;
        }
        let generation = service["metadata"]["generation"].clone();
        let before = service["status"].clone();
        let working = || {
            (
                "Unknown",
                "OutOfDate",
                "The Route is still working to reflect the latest desired specification.".to_owned(),
            )
        };
        if before["observedGeneration"] != generation {
            let mut next = service;
            next["status"]["observedGeneration"] = generation;
            next["status"]["conditions"] = conditions(&("Unknown", "", String::new()), &working());
            self.write(key.clone(), next);
            return true;
        }
        if self.step_revisions(key, &service) {
            return true;
        }
        let (configurations, latest_ready) = self.configurations(key, &service);
        let (routes, traffic) = self.routes(key, &service, &latest_ready);
        let mut next = service.clone();
        let status = &mut next["status"];
        status["conditions"] = conditions(&configurations, &routes);
        status["latestCreatedRevisionName"] = service["spec"]["template"]["metadata"]["name"].clone();
        if !latest_ready.is_empty() {
            status["latestReadyRevisionName"] = json!(latest_ready);
        }
        let (host, inside) = self.names(key, &service);
        status["url"] = json!(format!("http://{host}"));
        status["address"] = json!({"url": format!("http://{inside}")});
        if let Some(traffic) = traffic {
            status["traffic"] = traffic;
        }
        if *status == before {
            return false;
        }
        if routes.0 == "True" {
            self.take_over(key, &next);
        }
        self.write(key.clone(), next);
        true
    }

    fn names(&self, key: &Key, service: &Value) -> (String, String) {
        let inside = format!("{}.{}.svc.cluster.local", key.2, key.1);
        let hidden = service["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local";
        (if hidden { inside.clone() } else { format!("{}.{}", key.2, domain(&key.1)) }, inside)
    }

    /// Makes the newest Revision, and gets one a step further.
    fn step_revisions(&mut self, key: &Key, service: &Value) -> bool {
        let template = &service["spec"]["template"];
        let name = template["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let revision = (REVISIONS, key.1.clone(), name.clone());
        if !self.objects.contains_key(&revision) {
            let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            for (label, value) in [
                ("serving.knative.dev/service", key.2.clone()),
                ("serving.knative.dev/configurationGeneration", service["metadata"]["generation"].to_string()),
            ] {
                labels.insert(label.to_owned(), json!(value));
            }
            let mut annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
            annotations.insert("serving.knative.dev/creator".to_owned(), json!("lab-driver"));
            let owner = json!([{"apiVersion": "serving.knative.dev/v1", "kind": "Configuration", "name": key.2, "uid": service["metadata"]["uid"]}]);
            let object = json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "metadata": {"name": name, "generation": 1, "labels": labels, "annotations": annotations, "ownerReferences": owner},
                "spec": template["spec"],
                "status": {"observedGeneration": 1, "conditions": [
                    condition("Ready", "Unknown", "Deploying", ""), condition("ResourcesAvailable", "Unknown", "Deploying", ""),
                ]},
            });
            self.write(revision, object);
            return true;
        }
        let owned: Vec<_> = self
            .objects
            .iter()
            .filter(|(other, object)| {
                other.0 == REVISIONS && object["metadata"]["labels"]["serving.knative.dev/service"] == key.2.as_str()
            })
            .map(|(other, object)| (other.clone(), object.clone()))
            .collect();
        let mut worked = false;
        for (key, object) in owned {
            worked |= self.step_revision(key, object);
        }
        worked
    }

    fn step_revision(&mut self, key: Key, mut object: Value) -> bool {
        if status_of(&object, "Ready") != Some("Unknown") {
            return false;
        }
        let env = object["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
        let behaviour = env.iter().find(|variable| variable["name"] == "BEHAVIOUR").and_then(|it| it["value"].as_str());
        let failure = match behaviour.unwrap_or_default() {
            "never-ready" => Some(("ExitCode1".to_owned(), "Container failed with: it ends\n".to_owned())),
            "never-done" => return false,
            other => other
                .strip_prefix("broken:")
                .and_then(|rest| rest.split_once(':'))
                .map(|(reason, message)| (reason.to_owned(), message.to_owned())),
        };
        match failure {
            Some((reason, message)) => {
                let failed = |kind: &str| condition(kind, "False", &reason, &message);
                object["status"]["conditions"] = json!([failed("Ready"), failed("ResourcesAvailable")]);
                self.write(key, object);
            }
            None => {
                let done = |kind: &str| condition(kind, "True", "", "");
                object["status"]["conditions"] =
                    json!([done("Active"), done("ContainerHealthy"), done("Ready"), done("ResourcesAvailable")]);
                object["status"]["conditions"][0]["severity"] = json!("Info");
                let name = key.2.clone();
                self.instances.entry(name.clone()).or_insert_with(Instance::new);
                self.write(key, object);
                self.scale(&name, 1);
            }
        }
        true
    }

    /// Has so many instances of a Revision run.
    pub(super) fn scale(&mut self, revision: &str, replicas: i64) {
        let found = self.objects.iter().find(|(key, _)| key.0 == REVISIONS && key.2 == revision);
        let Some((key, mut object)) = found.map(|(key, object)| (key.clone(), object.clone())) else { return };
        let active = if replicas > 0 {
            condition("Active", "True", "", "")
        } else {
            condition("Active", "False", "NoTraffic", "The target is not receiving traffic.")
        };
        object["status"]["conditions"][0] = active;
        object["status"]["conditions"][0]["severity"] = json!("Info");
        object["status"]["actualReplicas"] = json!(replicas);
        let pod = (PODS, key.1.clone(), format!("{revision}-deployment-abc"));
        match replicas {
            0 => self.delete(&pod),
            _ => {
                let labels = json!({"serving.knative.dev/revision": revision});
                let owner = json!([{"apiVersion": "serving.knative.dev/v1", "kind": "Revision", "name": revision, "uid": object["metadata"]["uid"]}]);
                self.write(
                    pod.clone(),
                    json!({"metadata": {"name": pod.2, "labels": labels, "ownerReferences": owner}}),
                );
            }
        }
        self.write(key, object);
    }

    fn configurations(&self, key: &Key, service: &Value) -> (Said, String) {
        let newest = service["spec"]["template"]["metadata"]["name"].as_str().unwrap_or_default();
        let find = |name: &str| self.objects.get(&(REVISIONS, key.1.clone(), name.to_owned()));
        let before = service["status"]["latestReadyRevisionName"].as_str().unwrap_or_default();
        let before = if find(before).is_some() { before.to_owned() } else { String::new() };
        let Some(object) = find(newest) else { return (("Unknown", "", String::new()), before) };
        match status_of(object, "Ready") {
            Some("True") => (("True", "", String::new()), newest.to_owned()),
            Some("False") => {
                let ready = &object["status"]["conditions"][0];
                let message = format!(
                    "Revision \"{newest}\" failed with message: {}.",
                    ready["message"].as_str().unwrap_or_default()
                );
                (("False", "RevisionFailed", message), before)
            }
            _ => (("Unknown", "", String::new()), before),
        }
    }

    /// What the route is, and its traffic where that could be set up.
    fn routes(&self, key: &Key, service: &Value, latest_ready: &str) -> (Said, Option<Value>) {
        let mut traffic = Vec::new();
        for part in service["spec"]["traffic"].as_array().into_iter().flatten() {
            let latest = part["latestRevision"] == true;
            let name = if latest { latest_ready } else { part["revisionName"].as_str().unwrap_or_default() };
            if name.is_empty() {
                let message = format!("Configuration \"{}\" is waiting for a Revision to become ready.", key.2);
                return (("Unknown", "RevisionMissing", message), None);
            }
            let object = self.objects.get(&(REVISIONS, key.1.clone(), name.to_owned()));
            match object.map(|object| status_of(object, "Ready")) {
                None => {
                    let message = format!("Revision \"{name}\" referenced in traffic not found.");
                    return (("False", "RevisionMissing", message), None);
                }
                Some(Some("True")) => {}
                Some(Some("False")) => {
                    let message = format!("Revision \"{name}\" failed to become ready.");
                    return (("False", "RevisionMissing", message), None);
                }
                Some(_) => {
                    let message = format!("Revision \"{name}\" is not yet ready.");
                    return (("Unknown", "RevisionMissing", message), None);
                }
            }
            let mut told = part.clone();
            told["revisionName"] = json!(name);
            if let Some(tag) = part["tag"].as_str() {
                let (host, _) = self.names(key, service);
                told["url"] = json!(format!("http://{tag}-{host}"));
            }
            traffic.push(told);
        }
        let traffic = Value::Array(traffic);
        let done = ("True", "", String::new());
        if service["status"]["traffic"] != traffic {
            let message = "Ingress has not yet been reconciled.".to_owned();
            return (("Unknown", "IngressNotConfigured", message), Some(traffic));
        }
        match reason_of(service, "RoutesReady") {
            Some("IngressNotConfigured" | "OutOfDate" | "RevisionMissing") => {
                let message = "Waiting for load balancer to be ready".to_owned();
                (("Unknown", "Uninitialized", message), None)
            }
            Some("Uninitialized") if !self.options.ingress_up => {
                (("Unknown", "Uninitialized", "Waiting for load balancer to be ready".to_owned()), None)
            }
            _ => (done, None),
        }
    }

    /// Has the ingress lead the names of a Service where its traffic says.
    fn take_over(&mut self, key: &Key, service: &Value) {
        let hidden = service["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local";
        let (host, inside) = self.names(key, service);
        let mut hosts = BTreeMap::new();
        for part in service["status"]["traffic"].as_array().into_iter().flatten() {
            let revision = part["revisionName"].as_str().unwrap_or_default().to_owned();
            let prefix = part["tag"].as_str().map(|tag| format!("{tag}-")).unwrap_or_default();
            hosts.insert(format!("{prefix}{inside}"), (revision.clone(), key.2.clone(), true));
            if !hidden {
                hosts.insert(format!("{prefix}{host}"), (revision, key.2.clone(), false));
            }
        }
        self.hosts.retain(|_, (_, owner, _)| *owner != key.2);
        self.hosts.extend(hosts);
    }
}
