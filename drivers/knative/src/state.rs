//! What a generation's objects say of how it is.

use function_gateway_core::DeploymentStatus;
use function_gateway_core::forward::one_line;

use crate::api::{Condition, Revision, Service, condition};
use crate::names::Target;
use crate::watch::Held;

/// How a generation is that a Service holds, by that Service and its own Revision.
///
/// What makes it ready is the Revision of this very generation, and that its name leads there: both are known by names that no
/// other generation bears, so that nothing older can be taken for it.
pub(crate) fn status(held: &Held, target: &Target<'_>, revision: Option<&Revision>) -> DeploymentStatus {
    let service = &held.service;
    let Some(revision) = revision else {
        return match of_configuration(service) {
            _ if !held.is_observed() => DeploymentStatus::progressing("Knative has not looked at it yet"),
            Some(failed) if held.newest == target.revision() => DeploymentStatus::failed(failed),
            _ if held.newest == target.revision() => DeploymentStatus::progressing("Knative is making the revision"),
            // Somebody has deleted it, and Knative makes the newest again only.
            _ => DeploymentStatus::missing(),
        };
    };
    let is_current = revision.status.observed_generation >= revision.metadata.generation;
    let conditions = &revision.status.conditions;
    match condition(conditions, "Ready").filter(|_| is_current) {
        Some(ready) if ready.has_failed() => DeploymentStatus::failed(in_words(ready)),
        Some(ready) if ready.is_true() => match held.is_routed(target.generation) {
            true => DeploymentStatus::ready().with_idle(is_idle(revision)),
            false => DeploymentStatus::progressing(of_route(held)),
        },
        _ => DeploymentStatus::progressing(on_its_way(conditions)),
    }
}

/// Scaled to zero: nobody calls it, and no instance is there.
fn is_idle(revision: &Revision) -> bool {
    let active = condition(&revision.status.conditions, "Active");
    active.is_some_and(|active| active.status == "False") && revision.status.actual_replicas.unwrap_or_default() == 0
}

/// Why there is no Revision, where Knative has failed to make it.
fn of_configuration(service: &Service) -> Option<String> {
    condition(&service.status.conditions, "ConfigurationsReady").filter(|made| made.has_failed()).map(in_words)
}

fn of_route(held: &Held) -> String {
    let routes = condition(&held.service.status.conditions, "RoutesReady").filter(|_| held.is_observed());
    match routes.map(|routes| one_line(&routes.message)).filter(|message| !message.is_empty()) {
        Some(message) => format!("the revision is ready, and its route is not: {message}"),
        None => "the revision is ready, and its route is being set up".to_owned(),
    }
}

/// What Knative is at, as far as it says something.
fn on_its_way(conditions: &[Condition]) -> String {
    let telling = ["ResourcesAvailable", "ContainerHealthy", "Ready"];
    let conditions = telling.iter().filter_map(|kind| condition(conditions, kind));
    let told = conditions.filter(|condition| !condition.is_true()).find(|condition| !condition.message.is_empty());
    told.map_or_else(|| "Knative is getting the first instance ready".to_owned(), in_words)
}

/// What went wrong, in words for a developer; Knative's own follow.
fn in_words(condition: &Condition) -> String {
    let message = one_line(&condition.message);
    let reason = condition.reason.as_str();
    let what = match reason {
        "ContainerMissing" => "the image can't be found",
        "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => "the image can't be pulled",
        "CreateContainerConfigError" | "CreateContainerError" => "the container can't be made: is a secret missing?",
        "Unschedulable" => "no node has room for it",
        "ProgressDeadlineExceeded" => "it does not listen, or its probe fails, and its time to get ready is up",
        "FailedCreate" => "no instance could be made",
        _ if message.contains("exceeded quota") => "a quota of the namespace is used up",
        _ => "",
    };
    let what = match reason.strip_prefix("ExitCode") {
        Some(code) => format!("the container ends with the exit code {code}"),
        None => what.to_owned(),
    };
    match (what.is_empty(), message.is_empty()) {
        (false, false) => format!("{what}: {message}"),
        (false, true) => what,
        (true, false) => message,
        (true, true) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(reason: &str, message: &str) -> Condition {
        let text = str::to_owned;
        Condition {
            kind: text("Ready"),
            status: text("False"),
            reason: text(reason),
            message: text(message),
            ..Condition::default()
        }
    }

    #[test]
    fn reasons_are_told_in_words() {
        for (reason, message, expected) in [
            ("ImagePullBackOff", "Back-off\npulling", "the image can't be pulled: Back-off pulling"),
            ("ContainerMissing", "", "the image can't be found"),
            ("ExitCode3", "boom", "the container ends with the exit code 3: boom"),
            ("Unschedulable", "0/1 nodes", "no node has room for it: 0/1 nodes"),
            ("Odd", "pods \"a\" is forbidden: exceeded quota: q", "a quota of the namespace is used up: pods"),
            ("Odd", "something", "something"),
            ("Odd", "", "Odd"),
        ] {
            let told = in_words(&condition(reason, message));
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn what_is_on_its_way_says_what_it_waits_for() {
        let waiting = Condition { status: "Unknown".to_owned(), ..condition("Resolving", "digests") };
        assert_eq!(on_its_way(&[waiting]), "digests");
        assert_eq!(on_its_way(&[]), "Knative is getting the first instance ready");
        let info = Condition { severity: "Info".to_owned(), ..condition("NoTraffic", "") };
        assert!(!info.has_failed());
    }
}
