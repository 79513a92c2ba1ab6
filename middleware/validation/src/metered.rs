//! JSON as the validator reads it: each look at the document is counted, and no error ever holds a part of it.
//!
//! A schema that refers to itself can make the work grow exponentially with the depth of a payload. Counting bounds it
//! whatever the schema: once the steps are used up, the document looks empty, and the validator is done at once. The
//! meter then says that its findings mean nothing.

use std::borrow::Cow;
use std::cell::Cell;

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object, SerdeJson};
use serde_json::{Map, Number, Value};

/// How many bytes of a string count as one step.
const BYTES_PER_STEP: usize = 64;

/// Counts down what one check may still do.
#[derive(Debug)]
pub(crate) struct Meter {
    steps: Cell<u64>,
    reports: Cell<u32>,
}

impl Meter {
    pub(crate) fn new(steps: u64, reports: u32) -> Self {
        Self { steps: Cell::new(steps), reports: Cell::new(reports) }
    }

    /// Whether the validator saw less than there is.
    pub(crate) fn is_used_up(&self) -> bool {
        self.steps.get() == 0
    }

    fn spend(&self, steps: usize) -> bool {
        let left = self.steps.get().saturating_sub(u64::try_from(steps).unwrap_or(u64::MAX));
        self.steps.set(left);
        left > 0
    }

    /// Counts an error. Past the last one that is wanted, no more work is done.
    fn report(&self) -> bool {
        match self.reports.get().checked_sub(1) {
            Some(left) => self.reports.set(left),
            None => self.steps.set(0),
        }
        !self.is_used_up()
    }
}

/// Stands for the place of a value in an error of the validator.
pub(crate) const FOUND_IN_TIME: Value = Value::Bool(true);
const FOUND_TOO_LATE: Value = Value::Null;

/// `serde_json` values behind a meter.
#[derive(Debug)]
pub(crate) struct MeteredJson;

/// One value, and the meter of the check that looks at it. The name of a property has none: it has no inside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metered<'a> {
    value: &'a Value,
    meter: Option<&'a Meter>,
}

impl<'a> Metered<'a> {
    pub(crate) fn new(value: &'a Value, meter: &'a Meter) -> Self {
        Self { value, meter: Some(meter) }
    }

    /// The value, unless the steps are used up.
    fn look(&self) -> &'a Value {
        self.look_for(1)
    }

    fn look_for(&self, steps: usize) -> &'a Value {
        static NOTHING: Value = Value::Null;
        if self.meter.is_none_or(|meter| meter.spend(steps)) { self.value } else { &NOTHING }
    }

    fn within<T>(&self, inner: T) -> Within<'a, T> {
        Within { inner, meter: self.meter }
    }
}

impl Json for MeteredJson {
    type Node<'a> = Metered<'a>;
    type PreparedKey = String;
    type StringBuffer = Value;

    const KEYS_PER_LOOKUP: usize = SerdeJson::KEYS_PER_LOOKUP;
    const ACYCLIC: bool = SerdeJson::ACYCLIC;

    fn prepare_key(key: &str) -> String {
        SerdeJson::prepare_key(key)
    }

    fn with_string_node<T>(buffer: &mut Value, string: &str, f: impl FnOnce(Metered<'_>) -> T) -> T {
        *buffer = Value::String(string.to_owned());
        f(Metered { value: buffer, meter: None })
    }
}

impl<'a> Node<'a, MeteredJson> for Metered<'a> {
    type Object = Within<'a, &'a Map<String, Value>>;
    type Array = Within<'a, &'a [Value]>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Self::Object> {
        self.look().as_object().map(|members| self.within(members))
    }

    fn as_array(&self) -> Option<Self::Array> {
        self.look().as_array().map(|items| self.within(items.as_slice()))
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        let steps = self.value.as_str().map_or(1, |text| 1 + text.len() / BYTES_PER_STEP);
        self.look_for(steps).as_str().map(Cow::Borrowed)
    }

    fn as_number(&self) -> Option<&'a Number> {
        self.look().as_number()
    }

    fn as_boolean(&self) -> Option<bool> {
        self.look().as_bool()
    }

    fn is_null(&self) -> bool {
        self.look().is_null()
    }

    fn json_type(&self) -> JsonType {
        Node::<SerdeJson>::json_type(&self.look())
    }

    fn string_length(&self) -> Option<u64> {
        Node::<SerdeJson>::string_length(&self.look())
    }

    fn string_length_within(&self, min: u64, max: u64) -> Option<bool> {
        Node::<SerdeJson>::string_length_within(&self.look(), min, max)
    }

    fn equals_value(&self, expected: &Value) -> bool {
        Node::<SerdeJson>::equals_value(&self.look(), expected)
    }

    /// What an error says of the value: only whether it was found in time.
    fn to_value(&self) -> Cow<'a, Value> {
        let in_time = self.meter.is_none_or(Meter::report);
        Cow::Owned(if in_time { FOUND_IN_TIME } else { FOUND_TOO_LATE })
    }

    fn identity(&self) -> Option<NodeIdentity> {
        Node::<SerdeJson>::identity(&self.value)
    }

    fn container_identity(&self) -> Option<NodeIdentity> {
        Node::<SerdeJson>::container_identity(&self.value)
    }
}

/// The inside of an object or an array, or an iterator over it.
#[derive(Debug)]
pub(crate) struct Within<'a, T> {
    inner: T,
    meter: Option<&'a Meter>,
}

impl<'a, T> Within<'a, T> {
    fn node(&self, value: &'a Value) -> Metered<'a> {
        Metered { value, meter: self.meter }
    }

    fn spend(&self, steps: usize) -> bool {
        self.meter.is_none_or(|meter| meter.spend(steps))
    }
}

impl<'a> Object<'a, MeteredJson> for Within<'a, &'a Map<String, Value>> {
    type Node = Metered<'a>;
    type MemberName = &'a str;
    type MembersIter = Within<'a, serde_json::map::Iter<'a>>;

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn get(&self, key: &String) -> Option<Metered<'a>> {
        let value = Object::<SerdeJson>::get(&self.inner, key).filter(|_| self.spend(1))?;
        Some(self.node(value))
    }

    fn members(&self) -> Self::MembersIter {
        Within { inner: self.inner.iter(), meter: self.meter }
    }
}

impl<'a> Iterator for Within<'a, serde_json::map::Iter<'a>> {
    type Item = (&'a str, Metered<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.inner.next().filter(|_| self.spend(1))?;
        Some((name, self.node(value)))
    }
}

impl<'a> Array<'a, MeteredJson> for Within<'a, &'a [Value]> {
    type Node = Metered<'a>;
    type ElementsIter = Within<'a, std::slice::Iter<'a, Value>>;

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn elements(&self) -> Self::ElementsIter {
        Within { inner: self.inner.iter(), meter: self.meter }
    }

    fn is_unique(&self) -> bool {
        self.spend(self.inner.len()) && Array::<SerdeJson>::is_unique(&self.inner)
    }
}

impl<'a> Iterator for Within<'a, std::slice::Iter<'a, Value>> {
    type Item = Metered<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let value = self.inner.next().filter(|_| self.spend(1))?;
        Some(self.node(value))
    }
}
