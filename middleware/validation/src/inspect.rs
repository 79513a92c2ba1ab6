//! Looks through a schema before it is compiled: how large it is, what it refers to, and how much work it can make.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};

use function_gateway_core::Violation;
use jsonschema::{Draft, Registry, Retrieve, Uri, uri};
use serde_json::{Value, json};

use crate::ValidationLimits;
use crate::report::{clip, escape};
use crate::schema::{builds, dialect_of};

/// How many bytes all pointers into a schema may have in sum, for each byte that the schema may have.
const POINTER_BYTES_PER_BYTE: usize = 64;
/// What a schema outside of the document counts for. Only the standard meta-schemas stand there.
const META_SCHEMA: Work = Work { depth: 8, schemas: 64 };

type Address = *const Value;

#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

/// Where each value of a document stands.
pub(crate) struct Places<'a>(HashMap<Address, (Address, Step<'a>)>);

impl<'a> Places<'a> {
    /// Walks a document, within the limits.
    pub(crate) fn of(document: &'a Value, limits: &ValidationLimits) -> Result<Self, Violation> {
        let mut places = HashMap::new();
        let mut pointer_bytes = 0_usize;
        // No recursion: a document that was not parsed from text may be of any depth.
        let mut open = vec![(document, 1_usize, 0_usize)];
        while let Some((value, depth, pointer)) = open.pop() {
            pointer_bytes = pointer_bytes.saturating_add(pointer);
            if depth > limits.max_schema_depth {
                let reason = format!("nests deeper than {} levels", limits.max_schema_depth);
                return Err(Violation::new("", reason));
            }
            if pointer_bytes > limits.max_schema_bytes.saturating_mul(POINTER_BYTES_PER_BYTE) {
                return Err(Violation::new("", "has too many parts below too long names"));
            }
            let mut enter = |child: &'a Value, step: Step<'a>, len: usize| {
                places.insert(std::ptr::from_ref(child), (std::ptr::from_ref(value), step));
                open.push((child, depth + 1, pointer.saturating_add(len).saturating_add(1)));
            };
            match value {
                Value::Object(members) => {
                    members.iter().for_each(|(name, child)| enter(child, Step::Name(name), name.len()));
                }
                Value::Array(items) => {
                    items.iter().enumerate().for_each(|(index, child)| enter(child, Step::Index(index), 4));
                }
                _ => {}
            }
        }
        let size = document.to_string().len();
        if size > limits.max_schema_bytes {
            let reason = format!("is {size} bytes long as JSON, at most {} are allowed", limits.max_schema_bytes);
            return Err(Violation::new("", reason));
        }
        Ok(Self(places))
    }

    fn steps(&self, value: &Value) -> impl Iterator<Item = (Address, Step<'a>)> {
        let mut at = std::ptr::from_ref(value);
        std::iter::from_fn(move || {
            let (parent, step) = *self.0.get(&at)?;
            at = parent;
            Some((parent, step))
        })
    }

    /// The JSON Pointer to a value of the document.
    fn pointer(&self, value: &Value) -> String {
        let mut steps: Vec<String> = self
            .steps(value)
            .map(|(_, step)| match step {
                Step::Name(name) => format!("/{}", escape(name)),
                Step::Index(index) => format!("/{index}"),
            })
            .collect();
        steps.reverse();
        steps.concat()
    }

    /// The keyword of a schema under which a value stands, at any depth.
    fn keyword(&self, value: &Value, schema: &Value) -> Option<&'a str> {
        let schema = std::ptr::from_ref(schema);
        match self.steps(value).find(|(parent, _)| *parent == schema)? {
            (_, Step::Name(keyword)) => Some(keyword),
            (_, Step::Index(_)) => None,
        }
    }

    fn holds(&self, value: &Value, root: &Value) -> bool {
        std::ptr::eq(value, root) || self.0.contains_key(&std::ptr::from_ref(value))
    }
}

/// Gives an empty schema for whatever is asked for, and notes what it was.
#[derive(Clone, Default)]
struct Outside(Arc<Mutex<HashSet<String>>>);

impl Retrieve for Outside {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn StdError + Send + Sync>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uri.as_str().to_owned());
        Ok(json!({}))
    }
}

impl Outside {
    fn has(&self, uri: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(uri)
    }
}

/// Which schemas a schema applies, and to what.
#[derive(Default)]
struct Applied<'a> {
    /// Whether it is to the same value, or to a part of it.
    edges: HashMap<Address, Vec<(&'a Value, bool)>>,
    schemas: Vec<&'a Value>,
}

/// How much one schema makes of one value, itself included.
#[derive(Clone, Copy)]
struct Work {
    /// Longest chain of schemas.
    depth: usize,
    /// How many schemas.
    schemas: usize,
}

/// Whether a keyword applies its schemas to the same value as the schema that it stands in.
fn applies_in_place(keyword: &str) -> bool {
    matches!(
        keyword,
        "allOf" | "anyOf" | "oneOf" | "not" | "if" | "then" | "else" | "dependentSchemas" | "dependencies"
    )
}

/// Everything that is wrong with a schema that is one by its meta-schema: references that lead nowhere or outside,
/// patterns that can't be compiled, schemas that make too much work.
///
/// Else, how deep a document may nest to be checked.
pub(crate) fn inspect(
    root: &Value,
    draft: Draft,
    places: &Places<'_>,
    limits: &ValidationLimits,
) -> Result<usize, Vec<Violation>> {
    let mut found = one_dialect(root, draft, places);
    if !found.is_empty() {
        return Err(found);
    }
    let whole = |reason: String| Err(vec![Violation::new("", clip(reason))]);
    let outside = Outside::default();
    let resource = draft.create_resource_ref(root);
    let base = match uri::from_str(resource.id().unwrap_or_default()) {
        Ok(base) => base,
        Err(error) => return whole(format!("its identifier is not valid: {error}")),
    };
    let registry = Registry::new()
        .retriever(outside.clone())
        .draft(draft)
        .retrieve_known_draft_meta_schemas(false)
        .add(base.as_str(), resource)
        .and_then(|registry| registry.prepare());
    let registry = match registry {
        Ok(registry) => registry,
        Err(error) => return whole(format!("its references can't be resolved: {error}")),
    };

    let mut applied = Applied::default();
    let mut dynamic: Vec<(Address, String)> = Vec::new();
    let mut anchors: HashMap<String, Vec<&Value>> = HashMap::new();
    let mut patterns: HashSet<&str> = HashSet::new();
    let mut seen: HashSet<Address> = HashSet::new();
    let mut open = vec![(root, registry.resolver(base))];
    while let Some((schema, resolver)) = open.pop() {
        let address = std::ptr::from_ref(schema);
        if !seen.insert(address) {
            continue;
        }
        applied.schemas.push(schema);
        let Some(members) = schema.as_object() else { continue };
        let here = || places.pointer(schema);

        let named = members.get("pattern").and_then(Value::as_str).map(|pattern| ("/pattern".to_owned(), pattern));
        let keyed = members.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
        let keyed = keyed.map(|(pattern, _)| (format!("/patternProperties/{}", escape(pattern)), pattern.as_str()));
        for (at, pattern) in named.into_iter().chain(keyed) {
            if patterns.len() < limits.max_patterns && !builds(&json!({"pattern": pattern}), draft, limits) {
                let reason = format!(
                    "is not a regular expression that can be matched in linear time within {} bytes; lookaround and \
                     backreferences can't be",
                    limits.max_pattern_bytes
                );
                found.push(Violation::new(here() + &at, reason));
            }
            patterns.insert(pattern);
        }

        let references: &[&str] = match draft {
            Draft::Draft202012 => &["$ref", "$dynamicRef"],
            Draft::Draft201909 => &["$ref", "$recursiveRef"],
            _ => &["$ref"],
        };
        for &keyword in references {
            let Some(reference) = members.get(keyword).and_then(Value::as_str) else { continue };
            let mut refuse = |reason: String| found.push(Violation::new(here() + "/" + keyword, clip(reason)));
            let document = reference.split_once('#').map_or(reference, |(document, _)| document);
            let target = resolver.resolve_uri(&resolver.base_uri().borrow(), document);
            if target.is_ok_and(|target| outside.has(target.as_str())) {
                refuse(format!("refers to {reference:?}, which is not part of this schema: nothing is loaded"));
                continue;
            }
            match resolver.lookup(reference) {
                Ok(resolved) => {
                    let (target, resolver, _) = resolved.into_inner();
                    applied.edges.entry(address).or_default().push((target, true));
                    if places.holds(target, root) {
                        open.push((target, resolver));
                    }
                }
                Err(error) => refuse(format!("refers to {reference:?}, which can't be resolved: {error}")),
            }
            match keyword {
                "$dynamicRef" => {
                    dynamic.extend(reference.split_once('#').map(|(_, name)| (address, name.to_owned())));
                }
                "$recursiveRef" => dynamic.push((address, String::new())),
                _ => {}
            }
        }
        if let Some(name) = members.get("$dynamicAnchor").and_then(Value::as_str) {
            anchors.entry(name.to_owned()).or_default().push(schema);
        }
        if members.get("$recursiveAnchor") == Some(&Value::Bool(true)) {
            anchors.entry(String::new()).or_default().push(schema);
        }

        for child in draft.subresources_of(schema) {
            let in_place = places.keyword(child, schema).is_some_and(applies_in_place);
            applied.edges.entry(address).or_default().push((child, in_place));
            // An identifier that can't be resolved is an error of the registry already.
            if let Ok(resolver) = resolver.in_subresource(draft.create_resource_ref(child)) {
                open.push((child, resolver));
            }
        }
    }
    for (from, name) in dynamic {
        let targets = anchors.get(&name).into_iter().flatten();
        applied.edges.entry(from).or_default().extend(targets.map(|target| (*target, true)));
    }
    if patterns.len() > limits.max_patterns {
        found.push(Violation::new("", format!("has more than {} different patterns", limits.max_patterns)));
    }
    match applied.deepest_document(root, places, limits) {
        Ok(deepest) if found.is_empty() => return Ok(deepest),
        Ok(_) => {}
        Err(violation) => found.push(violation),
    }
    Err(found)
}

/// Only one dialect is spoken in a schema.
fn one_dialect(root: &Value, draft: Draft, places: &Places<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(schema) = open.pop() {
        if let Some(Value::String(dialect)) = schema.get("$schema")
            && dialect_of(dialect) != Some(draft)
        {
            let reason = format!("a part can't be in another dialect than the whole: {dialect:?}");
            found.push(Violation::new(places.pointer(schema) + "/$schema", clip(reason)));
        }
        open.extend(draft.subresources_of(schema));
    }
    found
}

impl<'a> Applied<'a> {
    /// How deep a document may nest so that the check of it fits the stack.
    ///
    /// Refuses schemas that apply to one value without end, or in so many ways that checking it would take too long.
    fn deepest_document(
        &self,
        root: &Value,
        places: &Places<'_>,
        limits: &ValidationLimits,
    ) -> Result<usize, Violation> {
        let refuse = |schema: &Value, reason: String| Violation::new(places.pointer(schema), reason);
        let in_place = self.work(true, root, places).map_err(|schema| {
            refuse(schema, "applies to the same value without end: it leads back to itself".to_owned())
        })?;
        let mut chain = 1;
        for (schema, work) in in_place {
            if work.depth > limits.max_schema_chain {
                let reason = format!("applies a chain of more than {} schemas to one value", limits.max_schema_chain);
                return Err(refuse(schema, reason));
            }
            if work.schemas > limits.max_schemas_per_value {
                let reason = format!("applies more than {} schemas to one value", limits.max_schemas_per_value);
                return Err(refuse(schema, reason));
            }
            chain = chain.max(work.depth);
        }
        // A schema that leads back to itself goes as deep as the document does.
        let whole = self.work(false, root, places);
        let longest = whole.map_or(usize::MAX, |all| all.iter().map(|(_, work)| work.depth).max().unwrap_or(0));
        Ok(if longest <= limits.max_check_depth { usize::MAX } else { limits.max_check_depth / chain })
    }

    /// The work that each schema makes of one value, or of it and all that is in it. Fails with a schema that leads
    /// back to itself. The inner ones come first.
    fn work(&self, in_place: bool, root: &Value, places: &Places<'_>) -> Result<Vec<(&'a Value, Work)>, &'a Value> {
        // `None` marks a schema whose work is being counted.
        let mut known: HashMap<Address, Option<Work>> = HashMap::new();
        let mut counted = Vec::new();
        let targets = |schema: &Value| {
            let all = self.edges.get(&std::ptr::from_ref(schema)).map(Vec::as_slice).unwrap_or_default();
            all.iter().filter(move |(_, to_same)| *to_same || !in_place).map(|(target, _)| *target)
        };
        // No recursion: a chain of references can be as long as the schema.
        for &start in &self.schemas {
            let mut open = vec![(start, false)];
            while let Some((schema, entered)) = open.pop() {
                let address = std::ptr::from_ref(schema);
                if entered {
                    let mut work = Work { depth: 0, schemas: 1 };
                    for target in targets(schema) {
                        let Some(Some(target)) = known.get(&std::ptr::from_ref(target)) else { return Err(schema) };
                        work.depth = work.depth.max(target.depth);
                        work.schemas = work.schemas.saturating_add(target.schemas);
                    }
                    work.depth += 1;
                    known.insert(address, Some(work));
                    counted.push((schema, work));
                    continue;
                }
                let Entry::Vacant(new) = known.entry(address) else { continue };
                if places.holds(schema, root) {
                    new.insert(None);
                    open.push((schema, true));
                    open.extend(targets(schema).map(|target| (target, false)));
                } else if in_place {
                    new.insert(Some(META_SCHEMA));
                } else {
                    return Err(schema);
                }
            }
        }
        Ok(counted)
    }
}
