//! What a specification says to this driver in particular: its annotations, and the variables that it may not set.

use std::time::Duration;

use function_gateway_core::{FunctionSpec, SecretDelivery, Violation};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use crate::error::MAX_STRING;

/// The annotations of a specification. Each is to be asked for: what nobody has asked for is refused.
#[derive(Debug)]
pub(crate) struct Annotations<'a> {
    spec: &'a FunctionSpec,
    known: Vec<&'static str>,
    found: Vec<Violation>,
}

impl<'a> Annotations<'a> {
    pub(crate) fn of(spec: &'a FunctionSpec) -> Self {
        Self { spec, known: Vec::new(), found: Vec::new() }
    }

    pub(crate) fn get(&mut self, name: &'static str) -> Option<&'a str> {
        self.known.push(name);
        self.spec.annotations.get(name).map(String::as_str)
    }

    /// A time in whole milliseconds, at least one.
    pub(crate) fn millis(&mut self, name: &'static str) -> Option<Duration> {
        let text = self.get(name)?;
        match text.parse() {
            Ok(millis) if millis > 0 => Some(Duration::from_millis(millis)),
            _ => {
                self.refuse(name, "is not a number of milliseconds, at least 1");
                None
            }
        }
    }

    pub(crate) fn refuse(&mut self, name: &str, reason: impl Into<String>) {
        self.found.push(Violation::new(format!("/annotations/{}", escape(name)), reason));
    }

    /// All that is wrong with them.
    pub(crate) fn finish(mut self) -> Vec<Violation> {
        for name in self.spec.annotations.keys().filter(|name| !self.known.contains(&name.as_str())) {
            let known: Vec<_> = self.known.iter().map(|name| format!("{name:?}")).collect();
            let reason = format!(
                "the protocol {:?} has no such annotation; there is {}",
                self.spec.protocol.as_str(),
                known.join(", ")
            );
            self.found.push(Violation::new(format!("/annotations/{}", escape(name)), reason));
        }
        self.found
    }
}

/// A name as part of a JSON Pointer (RFC 6901, section 3).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Whether a variable is the driver's to set.
pub(crate) fn is_reserved(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"FUNCTION_") || name == "TRACEPARENT" || name == "TRACESTATE"
}

/// What is wrong with the variables of a specification. `own` are those that the driver sets beside the reserved ones.
pub(crate) fn check_variables(spec: &FunctionSpec, own: &[&str], found: &mut Vec<Violation>) {
    let is_taken = |name: &str| is_reserved(OsStr::new(name)) || own.contains(&name);
    let mut names = "is one of the names that the driver sets: FUNCTION_*, TRACEPARENT, TRACESTATE".to_owned();
    for name in own {
        names = format!("{names}, {name}");
    }
    for (name, value) in &spec.env {
        let at = format!("/env/{}", escape(name));
        let bytes = name.len() + 1 + value.len();
        if is_taken(name) {
            found.push(Violation::new(at, names.as_str()));
        } else if bytes >= MAX_STRING {
            let reason = format!("comes to {bytes} bytes, at most {} are handed over", MAX_STRING - 1);
            found.push(Violation::new(at, reason));
        }
    }
    for (index, binding) in spec.secrets.iter().enumerate() {
        if let SecretDelivery::Env(name) = &binding.deliver
            && is_taken(name)
        {
            found.push(Violation::new(format!("/secrets/{index}/deliver/env"), names.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use function_gateway_core::{ProcessWorkload, SecretBinding};

    use super::*;

    fn spec() -> FunctionSpec {
        FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("/bin/sh"))
    }

    fn pointers(found: Vec<Violation>) -> Vec<String> {
        found.into_iter().map(|violation| violation.pointer).collect()
    }

    fn variables(spec: &FunctionSpec) -> Vec<String> {
        let mut found = Vec::new();
        check_variables(spec, &["PORT"], &mut found);
        pointers(found)
    }

    #[test]
    fn the_driver_s_own_variables_can_t_be_set() {
        assert_eq!(variables(&spec().with_env("FUNCTION", "").with_env("HTTP_PROXY", "x")), [""; 0]);
        let mut taken = spec().with_env("FUNCTION_X", "").with_env("PORT", "").with_env("TRACEPARENT", "");
        taken = taken.with_secret(SecretBinding::env("s".parse().unwrap(), "FUNCTION_HEADER_COOKIE"));
        let expected = ["/env/FUNCTION_X", "/env/PORT", "/env/TRACEPARENT", "/secrets/0/deliver/env"];
        assert_eq!(variables(&taken), expected);
    }

    #[test]
    fn a_variable_that_can_never_be_handed_over_is_refused() {
        assert_eq!(variables(&spec().with_env("A", "x".repeat(MAX_STRING - 3))), [""; 0]);
        assert_eq!(variables(&spec().with_env("A/B", "x".repeat(MAX_STRING))), ["/env/A~1B"]);
    }

    #[test]
    fn an_annotation_that_nobody_asks_for_is_refused() {
        let spec = spec().with_annotation("idle", "1").with_annotation("ides", "0").with_annotation("a/b", "");
        let mut annotations = Annotations::of(&spec);
        assert_eq!(annotations.millis("idle"), Some(Duration::from_millis(1)));
        let found = annotations.finish();
        assert!(found[0].reason.contains("\"idle\""), "{found:?}");
        assert_eq!(pointers(found), ["/annotations/a~1b", "/annotations/ides"]);
        let mut annotations = Annotations::of(&spec);
        let read = ["idle", "ides", "a/b", "other"].map(|name| annotations.millis(name).is_some());
        assert_eq!(read, [true, false, false, false]);
        assert_eq!(pointers(annotations.finish()), ["/annotations/ides", "/annotations/a~1b"]);
    }
}
