//! One schema, compiled.

use std::fmt;
use std::sync::Arc;

use function_gateway_core::Violation;
use jsonschema::{Draft, PatternOptions, Retrieve, ValidationOptions, Validator};
use serde_json::Value;

use crate::metered::{Meter, Metered, MeteredJson};
use crate::report::{clip, reason, reason_in_schema, violations};
use crate::{ValidationLimits, document, inspect};

/// How many steps each byte of a document adds to those that every check may take.
const STEPS_PER_BYTE: u64 = 16;
/// How many errors the validator may make for each violation that is listed.
const REPORTS_PER_VIOLATION: usize = 4;

/// The dialects, by what `$schema` says, without an empty fragment at its end.
const DIALECTS: [(&str, Draft); 5] = [
    ("json-schema.org/draft/2020-12/schema", Draft::Draft202012),
    ("json-schema.org/draft/2019-09/schema", Draft::Draft201909),
    ("json-schema.org/draft-07/schema", Draft::Draft7),
    ("json-schema.org/draft-06/schema", Draft::Draft6),
    ("json-schema.org/draft-04/schema", Draft::Draft4),
];

/// The dialect that an URI names.
pub(crate) fn dialect_of(uri: &str) -> Option<Draft> {
    let name = uri.strip_suffix('#').unwrap_or(uri);
    let name = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://"))?;
    DIALECTS.into_iter().find(|(known, _)| *known == name).map(|(_, draft)| draft)
}

type Loader = Arc<dyn Retrieve>;

/// How a schema is compiled: nothing is loaded, and patterns run in linear time.
fn options(draft: Draft, limits: &ValidationLimits) -> ValidationOptions<'static, Loader, MeteredJson> {
    let patterns =
        PatternOptions::regex().size_limit(limits.max_pattern_bytes).dfa_size_limit(limits.max_pattern_bytes);
    jsonschema::options_for::<MeteredJson>().with_draft(draft).offline().with_pattern_options(patterns)
}

/// Whether a schema can be compiled.
pub(crate) fn builds(schema: &Value, draft: Draft, limits: &ValidationLimits) -> bool {
    options(draft, limits).build(schema).is_ok()
}

/// Why a document does not pass.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Goes after "the payload" or "the result".
    pub(crate) reason: String,
    pub(crate) violations: Vec<Violation>,
}

impl Refusal {
    fn new(reason: String) -> Self {
        Self { reason, violations: Vec::new() }
    }
}

/// A schema that documents can be checked against.
pub(crate) struct Schema {
    validator: Validator<MeteredJson>,
    /// How deep a document may nest.
    max_depth: usize,
    limits: ValidationLimits,
}

impl Schema {
    /// Compiles a schema, or says everything that is wrong with it. The violations point into the schema.
    pub(crate) fn compile(schema: &Value, limits: &ValidationLimits) -> Result<Self, Vec<Violation>> {
        let places = inspect::Places::of(schema, limits).map_err(|violation| vec![violation])?;
        let draft = match schema.get("$schema") {
            None => Draft::Draft202012,
            Some(uri) => uri.as_str().and_then(dialect_of).ok_or_else(|| {
                let known = "2020-12, 2019-09, draft-07, draft-06 or draft-04";
                let reason = format!("is not the URI of a dialect that is known here ({known})");
                vec![Violation::new("/$schema", reason)]
            })?,
        };
        let meta = match draft {
            Draft::Draft4 => jsonschema::draft4::meta::validator(),
            Draft::Draft6 => jsonschema::draft6::meta::validator(),
            Draft::Draft7 => jsonschema::draft7::meta::validator(),
            Draft::Draft201909 => jsonschema::draft201909::meta::validator(),
            _ => jsonschema::draft202012::meta::validator(),
        };
        let mut wrong = Vec::new();
        for error in meta.iter_errors(schema) {
            let violation = Violation::new(error.instance_path().as_str(), clip(reason_in_schema(&error)));
            // The meta-schema of a newer dialect is made of several, which say the same of a value that is no schema.
            if !wrong.contains(&violation) && wrong.len() < limits.max_violations {
                wrong.push(violation);
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let max_depth = inspect::inspect(schema, draft, &places, limits).map_err(|mut wrong| {
            wrong.truncate(limits.max_violations);
            wrong
        })?;
        let validator = options(draft, limits)
            .build(schema)
            .map_err(|error| vec![Violation::new(error.instance_path().as_str(), clip(reason(&error)))])?;
        Ok(Self { validator, max_depth, limits: limits.clone() })
    }

    /// Checks a document. Nothing of it is in what is said of it but the names in pointers.
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let limits = &self.limits;
        let document = document::parse(bytes, limits.max_name_bytes).map_err(Refusal::new)?;
        if !document::nests_within(&document, self.max_depth) {
            let reason = format!("nests deeper than {} levels, as deep as this schema can be checked", self.max_depth);
            return Err(Refusal::new(reason));
        }
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let steps = limits.max_steps.saturating_add(size.saturating_mul(STEPS_PER_BYTE));
        let meter = Meter::new(steps, 0);
        let valid = self.validator.is_valid(Metered::new(&document, &meter));
        if meter.is_used_up() {
            return Err(Refusal::new(format!("takes more than {steps} steps to check against the schema")));
        }
        if valid {
            return Ok(());
        }
        Err(Refusal { reason: "does not meet the schema".to_owned(), violations: self.list(&document, steps) })
    }

    /// Lists what is wrong with a document that is known not to be valid.
    fn list(&self, document: &Value, steps: u64) -> Vec<Violation> {
        let most = self.limits.max_violations.max(1);
        // Alternatives count beside the errors that they make up.
        let reports = u32::try_from(most.saturating_mul(REPORTS_PER_VIOLATION)).unwrap_or(u32::MAX);
        let meter = Meter::new(steps, reports);
        let errors = self.validator.iter_errors(Metered::new(document, &meter));
        let mut errors = errors.flat_map(|error| violations(&error, document, most + 1));
        let mut listed: Vec<Violation> = errors.by_ref().take(most).collect();
        if errors.next().is_some() || meter.is_used_up() {
            listed.truncate(most - 1);
            let last = match listed.as_slice() {
                [] => "too much does not meet the schema to be listed",
                _ => "there is more that does not meet the schema; it is not listed",
            };
            listed.push(Violation::new("", last));
        }
        listed
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").field("dialect", &self.validator.draft()).finish_non_exhaustive()
    }
}
