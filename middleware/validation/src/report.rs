//! Puts what the validator found into words that show nothing of the document.

use function_gateway_core::Violation;
use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;

use crate::metered::FOUND_IN_TIME;

/// Longest reason, in bytes. It may quote the schema, which can be long.
const MAX_REASON: usize = 300;
/// Longest pointer into a document, in bytes.
const MAX_POINTER: usize = 1024;
const UNEXPECTED: &str = "this property is not allowed";

/// The violations, at most `most`, that stand in an error that was found before the meter was used up. There is more
/// than one where a keyword forbids several properties: each is named by its pointer.
///
/// A pointer names properties, as JSON Pointers do. A reason holds nothing of the document.
pub(crate) fn violations(error: &ValidationError<'_>, document: &Value, most: usize) -> Vec<Violation> {
    if **error.instance() != FOUND_IN_TIME {
        return Vec::new();
    }
    let (at, rule) = (error.instance_path().as_str(), error.schema_path().as_str());
    let below = |name: &String| format!("{at}/{}", escape(name));
    let (places, reason): (Vec<String>, _) = match error.kind() {
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            (unexpected.iter().take(most).map(below).collect(), reason(error))
        }
        // Where a schema lets no property pass at all, the validator names the object.
        Kind::FalseSchema if closes_object(rule) => {
            let members = document.pointer(at).and_then(Value::as_object).into_iter().flatten();
            (members.take(most).map(|(name, _)| below(name)).collect(), UNEXPECTED.to_owned())
        }
        _ => (vec![at.to_owned()], reason(error)),
    };
    let reason = clip(reason);
    let violation = |place: String| {
        let (place, reason) = match shorten(&place) {
            Some(short) => (short.to_owned(), format!("{reason} (further below: the whole pointer is too long)")),
            None => (place, reason.clone()),
        };
        Violation::new(place, reason).with_schema_pointer(rule)
    };
    places.into_iter().map(violation).collect()
}

/// Whether a pointer into a schema leads to the keyword `additionalProperties`, not to a property of that name.
fn closes_object(rule: &str) -> bool {
    let mut segments = rule.split('/').skip(1).peekable();
    while let Some(keyword) = segments.next() {
        match keyword {
            "additionalProperties" if segments.peek().is_none() => return true,
            "properties" | "patternProperties" | "dependentSchemas" | "dependencies" | "$defs" | "definitions" => {
                segments.next();
            }
            _ => {}
        }
    }
    false
}

/// What a schema does not let pass, and what it would.
pub(crate) fn reason(error: &ValidationError<'_>) -> String {
    match error.kind() {
        Kind::AdditionalProperties { .. } => UNEXPECTED.to_owned(),
        Kind::UnevaluatedProperties { .. } => {
            "this property is not allowed: no part of the schema covers it".to_owned()
        }
        Kind::AdditionalItems { limit } => format!("the value has more than {limit} items"),
        Kind::UnevaluatedItems { .. } => "the value has items that no part of the schema covers".to_owned(),
        Kind::PropertyNames { error } => format!("the name of a property is not allowed: {}", reason(error)),
        Kind::Contains => "the value has too few or too many items of the kind that it has to contain".to_owned(),
        Kind::FalseSchema => "nothing is allowed here".to_owned(),
        Kind::AnyOf { .. } => "the value meets none of the schemas in 'anyOf'".to_owned(),
        Kind::OneOfNotValid { .. } => "the value meets none of the schemas in 'oneOf'".to_owned(),
        Kind::OneOfMultipleValid { .. } => "the value meets more than one of the schemas in 'oneOf'".to_owned(),
        Kind::Not { .. } => "the value meets the schema in 'not'".to_owned(),
        Kind::FromUtf8 { .. } => "the value does not hold UTF-8".to_owned(),
        Kind::RegexEngineFailure { .. } | Kind::BacktrackLimitExceeded { .. } => {
            "the value can't be compared with the pattern".to_owned()
        }
        _ => error.masked_with("the value").to_string(),
    }
}

/// What a schema says that no schema may say. It is the author's own, so it is quoted.
pub(crate) fn reason_in_schema(error: &ValidationError<'_>) -> String {
    let value = error.instance();
    match error.kind() {
        Kind::AnyOf { .. } if error.instance_path().as_str().ends_with("/type") => {
            format!("{value} is no type: there are array, boolean, integer, null, number, object and string")
        }
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => format!("{value} can't stand here"),
        _ => reason(error),
    }
}

/// A text of bounded length.
pub(crate) fn clip(mut text: String) -> String {
    if text.len() > MAX_REASON {
        text.truncate(text.floor_char_boundary(MAX_REASON));
        text.push('…');
    }
    text
}

/// The part of a pointer that fits, where the whole does not.
fn shorten(pointer: &str) -> Option<&str> {
    if pointer.len() <= MAX_POINTER {
        return None;
    }
    let fits = pointer.get(..pointer.floor_char_boundary(MAX_POINTER)).unwrap_or_default();
    Some(fits.rsplit_once('/').map_or("", |(parent, _)| parent))
}

/// A name as part of a JSON Pointer (RFC 6901, section 3).
pub(crate) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
