//! Function Gateway middleware that checks payloads and results against the JSON Schemas of a function.
//!
//! ```
//! use function_gateway_core::{ErrorKind, FunctionSpec, ProcessWorkload};
//! use function_gateway_validation::Validation;
//! use serde_json::json;
//!
//! let spec = FunctionSpec::new("local".parse()?, ProcessWorkload::new("/bin/cat"))
//!     .with_input_schema(json!({"type": "object", "properties": {"width": {"type": "integer", "minimum": 1}}}));
//! let validation = Validation::default();
//! validation.check_payload(&spec, br#"{"width": 64}"#)?;
//!
//! let error = validation.check_payload(&spec, br#"{"width": 0}"#).unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::InvalidInput);
//! assert_eq!(error.violations()[0].pointer, "/width");
//! assert_eq!(error.violations()[0].schema_pointer.as_deref(), Some("/properties/width/minimum"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # Schemas
//! - The dialects are 2020-12 (without `$schema`), 2019-09, draft-07, draft-06 and draft-04. One schema is in one
//!   dialect. `format` is checked in draft-07 and older, where it is a rule; in the newer ones it is a note.
//! - A `$ref` leads to a part of the same schema, by pointer, anchor or `$id`, or to a standard meta-schema. Nothing is
//!   ever loaded, from the network or from a file: such a reference is refused when the function is created.
//! - Patterns are matched in linear time. Lookaround that has no linear equivalent, and backreferences, are refused.
//! - A schema that would apply to one value without end is refused, and so is one past the [`ValidationLimits`].
//!
//! # Payloads and results
//! - A payload is read whole before the function is called, a result before it is handed on, each only where there is
//!   a schema for it. Such a function can't stream.
//! - An empty payload is not JSON, whatever the method of the call: against an input schema it is
//!   [`ErrorKind::InvalidInput`], as is invalid UTF-8, and an object with the same name twice, of which the function
//!   might read the one that was not checked. An empty result that succeeds breaks any output schema in the same way.
//! - Only a result that succeeds is checked: what a function says of its own failure passes as it is.
//! - Each violation names the place in the document and the rule in the schema as JSON Pointers (RFC 6901). The pointer
//!   names properties; beyond that nothing of a document is in any error.
//! - [`check_payload`](function_gateway_core::FunctionExecutor::check_payload) gives the violations that a call with the same
//!   payload would be refused with. One that is refused as a whole, since it is no JSON or can't be checked, has one
//!   violation, without a place, with the reason.
//! - The check runs on the caller's task. Its work is bounded by [`ValidationLimits::max_steps`].

mod document;
mod inspect;
mod metered;
mod report;
mod schema;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use function_gateway_core::{
    Body, BodyAccess, Error, ErrorKind, FunctionSpec, Invocation, InvokeResponse, Middleware, MiddlewareFactory, Next,
    Result, Revision, Settings, SpecField, Stage, TimedPhase, Violation,
};
use serde_json::Value;

use crate::schema::{Refusal, Schema};

/// The name under which a specification chooses this middleware.
const NAME: &str = "validation";

/// What schemas and documents may ask of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValidationLimits {
    /// Size of a schema, in bytes of compact JSON; 256 KiB unless set.
    pub max_schema_bytes: usize,
    /// How deep a schema nests, in levels of objects and arrays; 64 unless set.
    pub max_schema_depth: usize,
    /// The longest chain of schemas that apply to one value by `$ref`, `allOf` and the like; 32 unless set.
    pub max_schema_chain: usize,
    /// How deep one check nests: levels of the document times the longest chain of schemas; 1,024 unless set, for which
    /// half a stack of 2 MiB is enough. Where a schema could go deeper, as one that refers to itself can, documents that
    /// nest too deep for it are refused. No document nests deeper than 127 levels.
    pub max_check_depth: usize,
    /// How many schemas apply to one value by `$ref`, `allOf` and the like, each counted as often as it is reached;
    /// 10,000 unless set.
    pub max_schemas_per_value: usize,
    /// How many different patterns a schema has; 256 unless set.
    pub max_patterns: usize,
    /// Size of a compiled pattern, in bytes, and again of what matching it keeps; 256 KiB unless set.
    pub max_pattern_bytes: usize,
    /// How many violations are listed; 100 unless set. Where there are more, the last one listed says so.
    pub max_violations: usize,
    /// Length of a property's name in a document, in bytes; 4,096 unless set.
    pub max_name_bytes: usize,
    /// How often one check looks at a part of the document; 10,000,000 unless set, and 16 times more for each byte of
    /// the document. A document that takes more is refused. Only a schema that refers to itself comes near.
    pub max_steps: u64,
    /// Size of a body that comes as a stream and is read whole to be checked, in bytes, where the function's
    /// specification sets no limit; 8 MiB unless set.
    pub max_body_bytes: u64,
}

impl Default for ValidationLimits {
    fn default() -> Self {
        Self {
            max_schema_bytes: 256 * 1024,
            max_schema_depth: 64,
            max_schema_chain: 32,
            max_check_depth: 1024,
            max_schemas_per_value: 10_000,
            max_patterns: 256,
            max_pattern_bytes: 256 * 1024,
            max_violations: 100,
            max_name_bytes: 4096,
            max_steps: 10_000_000,
            max_body_bytes: 8 * 1024 * 1024,
        }
    }
}

/// Makes the middleware that checks payloads and results, for every revision that has a schema.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    limits: ValidationLimits,
}

impl Validation {
    /// Validation within limits.
    #[must_use]
    pub fn new(limits: ValidationLimits) -> Self {
        Self { limits }
    }

    /// Checks a payload against the input schema of a specification, as a call would. Without a schema, any payload
    /// passes. The schema is compiled each time.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] where the schema is not valid, [`ErrorKind::InvalidInput`] where the payload does not
    /// meet it. Both list the violations.
    pub fn check_payload(&self, spec: &FunctionSpec, payload: &[u8]) -> Result<()> {
        match self.compile(Side::Input, spec).map_err(Error::invalid_spec)? {
            Some(schema) => Side::Input.check(&schema, payload),
            None => Ok(()),
        }
    }

    fn compile(&self, side: Side, spec: &FunctionSpec) -> Result<Option<Schema>, Vec<Violation>> {
        let Some(schema) = side.schema(spec) else { return Ok(None) };
        let at = side.field().pointer();
        Schema::compile(schema, &self.limits).map(Some).map_err(|violations| {
            violations.into_iter().map(|found| Violation::new(format!("{at}{}", found.pointer), found.reason)).collect()
        })
    }
}

impl MiddlewareFactory for Validation {
    fn name(&self) -> &str {
        NAME
    }

    fn stage(&self) -> Stage {
        Stage::Validate
    }

    fn claims(&self) -> &[SpecField] {
        CLAIMS
    }

    fn admit(&self, spec: &FunctionSpec, settings: &Settings<'_>) -> Vec<Violation> {
        let mut found = Vec::new();
        if !settings.value().is_null() {
            found.push(Violation::new(settings.pointer(""), "this middleware takes no settings"));
        }
        for side in [Side::Input, Side::Output] {
            found.extend(self.compile(side, spec).err().into_iter().flatten());
        }
        found
    }

    fn build(&self, revision: &Arc<Revision>, _settings: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        let compile = |side| {
            self.compile(side, &revision.spec).map_err(|violations| {
                let message = "a schema of the function can't be used by this version of the gateway";
                Error::new(ErrorKind::Misconfigured, message).with_violations(violations)
            })
        };
        let (input, output) = (compile(Side::Input)?, compile(Side::Output)?);
        if input.is_none() && output.is_none() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Check { input, output, max_body_bytes: self.limits.max_body_bytes })))
    }
}

const CLAIMS: &[SpecField] = &[SpecField::InputSchema, SpecField::OutputSchema];

/// Which of a function's two documents.
#[derive(Clone, Copy)]
enum Side {
    Input,
    Output,
}

impl Side {
    fn field(self) -> SpecField {
        match self {
            Self::Input => SpecField::InputSchema,
            Self::Output => SpecField::OutputSchema,
        }
    }

    fn schema(self, spec: &FunctionSpec) -> Option<&Value> {
        match self {
            Self::Input => spec.input_schema.as_ref(),
            Self::Output => spec.output_schema.as_ref(),
        }
    }

    fn check(self, schema: &Schema, document: &[u8]) -> Result<()> {
        let (what, kind) = match self {
            Self::Input => ("payload", ErrorKind::InvalidInput),
            Self::Output => ("result", ErrorKind::InvalidOutput),
        };
        schema.check(document).map_err(|Refusal { reason, violations }| {
            Error::new(kind, format!("the {what} {reason}")).with_violations(violations)
        })
    }
}

/// Checks the calls of one revision.
#[derive(Debug)]
struct Check {
    input: Option<Schema>,
    output: Option<Schema>,
    max_body_bytes: u64,
}

#[async_trait]
impl Middleware for Check {
    fn name(&self) -> &str {
        NAME
    }

    fn stage(&self) -> Stage {
        Stage::Validate
    }

    fn body_access(&self) -> BodyAccess {
        match (&self.input, &self.output) {
            (Some(_), Some(_)) => BodyAccess::Both,
            (Some(_), None) => BodyAccess::Request,
            (None, Some(_)) => BodyAccess::Response,
            (None, None) => BodyAccess::None,
        }
    }

    fn claims(&self) -> &[SpecField] {
        CLAIMS
    }

    async fn check(&self, call: &Invocation) -> Result<Vec<Violation>> {
        // A function with a schema does not stream, so that its payload is in memory by now.
        let (Some(schema), Some(payload)) = (&self.input, call.request.body.as_bytes()) else { return Ok(Vec::new()) };
        let Err(error) = Side::Input.check(schema, payload) else { return Ok(Vec::new()) };
        Ok(match error.violations() {
            // What is no JSON, or takes too much to be checked, has no place that breaks a rule of the schema.
            [] => vec![Violation::new("", error.message())],
            found => found.to_vec(),
        })
    }

    async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let state = Arc::clone(call.state());
        let limits = &call.revision().spec.limits;
        let max_response_bytes = limits.max_response_bytes.unwrap_or(self.max_body_bytes);
        if let Some(schema) = &self.input {
            let max_request_bytes = limits.max_request_bytes.unwrap_or(self.max_body_bytes);
            let payload = whole(std::mem::take(&mut call.request.body), max_request_bytes).await?;
            let started = Instant::now();
            let checked = Side::Input.check(schema, &payload);
            state.add_time(TimedPhase::Validate, started.elapsed());
            checked?;
            call.request.body = Body::from(payload);
        }
        let mut response = next.run(call).await?;
        if let Some(schema) = &self.output
            && response.outcome.is_success()
        {
            let body = std::mem::take(&mut response.body);
            let result = whole(body, max_response_bytes).await.map_err(|error| match error.kind() {
                ErrorKind::PayloadTooLarge => Error::too_large(ErrorKind::OutputTooLarge, "result", max_response_bytes),
                _ => error,
            })?;
            let started = Instant::now();
            let checked = Side::Output.check(schema, &result);
            state.add_time(TimedPhase::Validate, started.elapsed());
            checked?;
            response.body = Body::from(result);
        }
        Ok(response)
    }
}

/// The bytes of a body. Those that are in memory already have passed the gateway's own limit.
async fn whole(body: Body, max_bytes: u64) -> Result<Bytes> {
    let max_bytes = if body.is_stream() { max_bytes } else { u64::MAX };
    body.collect(max_bytes).await
}

#[cfg(test)]
mod tests;
