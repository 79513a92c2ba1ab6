//! Middleware that functions choose by name, with settings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use function_gateway::{
    BodyAccess, Error, ErrorKind, FunctionSpec, Invocation, InvokeResponse, Middleware, MiddlewareFactory, Next,
    Result, Revision, Settings, Stage, TimedPhase, Violation,
};
use http::header::CONTENT_LENGTH;
use serde_json::{Map, Value};

/// Renames fields of the result, for functions that choose it:
///
/// ```
/// # use function_gateway::{FunctionSpec, ProcessWorkload};
/// # let spec = FunctionSpec::new("local".parse()?, ProcessWorkload::new("/bin/cat"));
/// let spec = spec.with_middleware("rename-fields", serde_json::json!({"fields": {"colour": "color"}}));
/// # Ok::<_, function_gateway::InvalidName>(())
/// ```
///
/// A result that succeeds has to be a JSON object; what a function says of its own failure passes as it is.
#[derive(Debug, Clone, Copy)]
pub struct RenameFields;

const NAME: &str = "rename-fields";

impl MiddlewareFactory for RenameFields {
    fn name(&self) -> &str {
        NAME
    }

    fn stage(&self) -> Stage {
        Stage::Validate
    }

    fn admit(&self, _: &FunctionSpec, settings: &Settings<'_>) -> Vec<Violation> {
        let found = Names::read(settings.value()).err().unwrap_or_default();
        found.into_iter().map(|(at, reason)| Violation::new(settings.pointer(&at), reason)).collect()
    }

    fn build(&self, _: &Arc<Revision>, settings: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        // What was admitted once can be refused now only by a newer version of this middleware.
        let names = Names::read(settings).map_err(|found| {
            let found = found.into_iter().map(|(at, reason)| Violation::new(at, reason)).collect();
            Error::new(ErrorKind::Misconfigured, "the settings of rename-fields can't be used").with_violations(found)
        })?;
        Ok(Some(Arc::new(Renaming(names))))
    }
}

/// The new names of fields, by the old ones.
#[derive(Debug)]
struct Names(BTreeMap<String, String>);

impl Names {
    /// Reads the settings, or says what is wrong and where.
    fn read(settings: &Value) -> Result<Self, Vec<(String, String)>> {
        let wrong = |at: &str, reason: &str| vec![(at.to_owned(), reason.to_owned())];
        let Some(settings) = settings.as_object() else {
            return Err(wrong("", "must be an object with `fields`"));
        };
        let mut found = Vec::new();
        for unknown in settings.keys().filter(|key| *key != "fields") {
            found.push((format!("/{}", escape(unknown)), "there is no such setting; there is: fields".to_owned()));
        }
        let Some(fields) = settings.get("fields").and_then(Value::as_object).filter(|fields| !fields.is_empty()) else {
            found.extend(wrong("/fields", "must be an object from old names to new ones, with at least one"));
            return Err(found);
        };
        let (mut names, mut taken) = (BTreeMap::new(), BTreeSet::new());
        for (old, new) in fields {
            let at = format!("/fields/{}", escape(old));
            match new.as_str() {
                None => found.extend(wrong(&at, "must be the new name, a string")),
                Some(new) if !taken.insert(new) => found.extend(wrong(&at, "another field gets this name already")),
                Some(new) => drop(names.insert(old.clone(), new.to_owned())),
            }
        }
        if found.is_empty() { Ok(Self(names)) } else { Err(found) }
    }

    fn rename(&self, result: Map<String, Value>) -> Result<Map<String, Value>> {
        let mut renamed = Map::new();
        for (name, value) in result {
            let name = self.0.get(&name).cloned().unwrap_or(name);
            if renamed.insert(name, value).is_some() {
                let message = "two fields of the result get the same name";
                return Err(Error::new(ErrorKind::InvalidOutput, message));
            }
        }
        Ok(renamed)
    }
}

/// Escapes a name for a JSON Pointer (RFC 6901).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Renames the fields of one revision's results.
#[derive(Debug)]
struct Renaming(Names);

#[async_trait]
impl Middleware for Renaming {
    fn name(&self) -> &str {
        NAME
    }

    fn stage(&self) -> Stage {
        Stage::Validate
    }

    fn body_access(&self) -> BodyAccess {
        BodyAccess::Response
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let state = Arc::clone(call.state());
        let mut response = next.run(call).await?;
        if !response.outcome.is_success() {
            return Ok(response);
        }
        // The result of a function that doesn't stream is in memory, and within the limits, by now.
        let body = std::mem::take(&mut response.body).collect(u64::MAX).await?;
        let started = std::time::Instant::now();
        let result = serde_json::from_slice(&body).map_err(|error| {
            Error::new(ErrorKind::InvalidOutput, "the result is not a JSON object, whose fields could be renamed")
                .with_source(error)
        })?;
        response.body = Value::Object(self.0.rename(result)?).to_string().into();
        response.headers.remove(CONTENT_LENGTH);
        state.add_time(TimedPhase::Validate, started.elapsed());
        Ok(response)
    }
}
