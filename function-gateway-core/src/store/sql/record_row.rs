//! The record of an execution as a row: what is searched and sorted by has columns, and a document has the rest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::IntoDeserializer as _;
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Serialize};

use super::engine::{Row, Unreadable};
use super::fault::Fault;
use super::functions::json;
use crate::{
    DriverName, Failure, FunctionKey, Generation, InvocationRecord, InvocationState, KeptBytes, Lineage, Origin,
    PrincipalId, Timestamp, Timings, TraceParent,
};

/// The form of rows that this program writes, and the latest that it reads. The document of form 1 has the whole record.
pub(super) const FORMAT: i64 = 2;

/// The states of an execution that has not ended. They stand in the row, and need not be what a document of form 1 says.
pub(super) const OPEN: [InvocationState; 2] = [InvocationState::Queued, InvocationState::Running];

/// The columns that a record is read from, in the order in which [`decode`] takes them.
pub(super) const COLUMNS: &str = "i.created_at, i.id, i.format, i.document, i.payload, i.result, i.logs, i.state, \
                                  i.tenant, i.name, i.function_id, i.caller, i.finished_at";

/// What has no column of its own.
#[derive(Serialize, Deserialize)]
struct Document<'a> {
    generation: Generation,
    driver: Cow<'a, DriverName>,
    /// Unless it is the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Cow<'a, PrincipalId>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<Cow<'a, BTreeMap<String, String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<Cow<'a, Failure>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    attempts: u32,
    /// Unless somebody waits for the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<TraceParent>,
    /// In microseconds after it came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started: Option<i64>,
    #[serde(default)]
    timings: Timings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_bytes: Option<u64>,
    #[serde(default)]
    response_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lineage: Option<Cow<'a, Lineage>>,
    // What there is beside the bytes that were kept, which have columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<About>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<About>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logs: Option<About>,
}

/// What is known of bytes that were kept.
#[derive(Serialize, Deserialize)]
struct About {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    len: Option<u64>,
    truncated: bool,
}

/// The document of form 1.
#[derive(Deserialize)]
struct Whole {
    record: InvocationRecord,
    payload: Option<About>,
    result: Option<About>,
    logs: Option<About>,
}

impl About {
    fn of(kept: Option<&KeptBytes>) -> Option<Self> {
        let KeptBytes { content_type, len, truncated, .. } = kept?;
        Some(Self { content_type: content_type.clone(), len: *len, truncated: *truncated })
    }

    fn with(self, bytes: Vec<u8>) -> KeptBytes {
        let Self { content_type, len, truncated } = self;
        let mut kept = KeptBytes::cut(bytes.into(), usize::MAX);
        (kept.content_type, kept.len, kept.truncated) = (content_type, len, truncated);
        kept
    }
}

/// Adds the bytes, which stand in the columns from 4.
fn read_kept(row: &mut Row, record: &mut InvocationRecord, about: [Option<About>; 3]) -> Result<(), Unreadable> {
    let mut bytes = |about: Option<About>, column| {
        let bytes = row.opt_bytes(column)?;
        Ok::<_, Unreadable>(about.map(|about| about.with(bytes.unwrap_or_default())))
    };
    let [payload, result, logs] = about;
    record.payload = bytes(payload, 4)?;
    record.result = bytes(result, 5)?;
    record.logs = bytes(logs, 6)?;
    Ok(())
}

/// The document of a record.
pub(super) fn document(record: &InvocationRecord) -> Result<String, Fault> {
    let started = record.started_at.map(|at| at.as_micros().saturating_sub(record.created_at.as_micros()));
    let [payload, result, logs] = [&record.payload, &record.result, &record.logs].map(|kept| About::of(kept.as_ref()));
    json(&Document {
        generation: record.generation,
        driver: Cow::Borrowed(&record.driver),
        owner: (record.owner != record.caller).then_some(Cow::Borrowed(&record.owner)),
        labels: (!record.labels.is_empty()).then_some(Cow::Borrowed(&record.labels)),
        failure: record.failure.as_ref().map(Cow::Borrowed),
        status: record.status,
        attempts: record.attempts,
        origin: (record.origin != Origin::Sync).then_some(record.origin),
        trace: record.trace,
        started,
        timings: record.timings,
        request_bytes: record.request_bytes,
        response_bytes: record.response_bytes,
        lineage: record.lineage.as_deref().map(Cow::Borrowed),
        payload,
        result,
        logs,
    })
}

/// Reads [`COLUMNS`].
pub(super) fn decode(row: &mut Row) -> Result<Arc<InvocationRecord>, Unreadable> {
    let (mut record, kept) = match row.check_format(2, FORMAT)? {
        FORMAT => read(row)?,
        _ => read_whole(row)?,
    };
    read_kept(row, &mut record, kept)?;
    Ok(Arc::new(record))
}

fn read_whole(row: &mut Row) -> Result<(InvocationRecord, [Option<About>; 3]), Unreadable> {
    let Whole { mut record, payload, result, logs } = row.json(3)?;
    if !record.state.is_final() {
        // The queue moves an execution on without writing its document anew.
        let state = row.text(7)?;
        record.state = OPEN.into_iter().find(|open| open.as_str() == state).unwrap_or(record.state);
    }
    Ok((record, [payload, result, logs]))
}

fn read(row: &mut Row) -> Result<(InvocationRecord, [Option<About>; 3]), Unreadable> {
    let document: Document<'static> = row.json(3)?;
    let caller: PrincipalId = row.parse(11)?;
    let created_at = Timestamp::from_micros(row.peek_int(0)?);
    let started_at = document.started.map(|after| Timestamp::from_micros(created_at.as_micros().saturating_add(after)));
    let record = InvocationRecord {
        id: row.peek_text(1)?.parse().map_err(|error| Unreadable(format!("column 1: {error}")))?,
        key: FunctionKey::new(row.parse(8)?, row.parse(9)?),
        function: row.parse(10)?,
        generation: document.generation,
        driver: document.driver.into_owned(),
        owner: document.owner.map_or_else(|| caller.clone(), Cow::into_owned),
        labels: document.labels.map(Cow::into_owned).unwrap_or_default(),
        state: state(row)?,
        failure: document.failure.map(Cow::into_owned),
        status: document.status,
        attempts: document.attempts,
        caller,
        origin: document.origin.unwrap_or_default(),
        trace: document.trace,
        created_at,
        started_at,
        finished_at: row.opt_int(12)?.map(Timestamp::from_micros),
        timings: document.timings,
        request_bytes: document.request_bytes,
        response_bytes: document.response_bytes,
        payload: None,
        result: None,
        logs: None,
        lineage: document.lineage.map(|lineage| Box::new(lineage.into_owned())),
    };
    Ok((record, [document.payload, document.result, document.logs]))
}

fn state(row: &mut Row) -> Result<InvocationState, Unreadable> {
    let text = row.text(7)?;
    let state: StrDeserializer<'_, serde::de::value::Error> = text.as_str().into_deserializer();
    InvocationState::deserialize(state).map_err(|error| Unreadable(format!("column 7: {error}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::engine::Cell;
    use super::*;
    use crate::{ErrorClass, TimedPhase};

    /// A row as it is read.
    fn cells(record: &InvocationRecord, format: i64, document: &str) -> Vec<Result<Cell, String>> {
        let text = |text: &str| Ok(Cell::Bytes(text.as_bytes().to_vec()));
        let bytes =
            |kept: &Option<KeptBytes>| Ok(kept.as_ref().map_or(Cell::Null, |kept| Cell::Bytes(kept.bytes.to_vec())));
        vec![
            Ok(Cell::Int(record.created_at.as_micros())),
            text(&record.id.to_string()),
            Ok(Cell::Int(format)),
            text(document),
            bytes(&record.payload),
            bytes(&record.result),
            bytes(&record.logs),
            text(record.state.as_str()),
            text(record.key.tenant.as_str()),
            text(record.key.name.as_str()),
            text(&record.function.to_string()),
            text(record.caller.as_str()),
            Ok(record.finished_at.map_or(Cell::Null, |at| Cell::Int(at.as_micros()))),
        ]
    }

    fn row(record: &InvocationRecord, format: i64, document: &str) -> Row {
        Row::new(cells(record, format, document))
    }

    fn record() -> InvocationRecord {
        let json = r#"{
            "id": "01a21478-2b1d-723d-9050-8c637f2aa32c", "key": {"tenant": "acme", "name": "greet"},
            "function": "01a21478-2b1a-704d-a5e4-6be5eaf51c8a", "generation": 1, "driver": "local", "owner": "ann",
            "state": "running", "attempts": 0, "caller": "bob", "created_at": "2026-11-25T20:49:09.405374Z"
        }"#;
        serde_json::from_str(json).unwrap()
    }

    fn full() -> InvocationRecord {
        let mut record = record();
        let at = |after| Some(record.created_at.plus(Duration::from_micros(after)));
        (record.started_at, record.finished_at) = (at(70), at(1000));
        record.state = InvocationState::Failed;
        record.failure =
            Some(Failure::new(ErrorClass::Function, "function_failed", "no name", crate::Delivery::Executed));
        record.labels.insert("team".to_owned(), "blue".to_owned());
        (record.status, record.attempts, record.origin) = (Some(500), 2, Origin::Async);
        record.trace = Some(TraceParent::root());
        record.timings.set(TimedPhase::Total, Duration::from_micros(1000));
        (record.request_bytes, record.response_bytes) = (Some(5), 7);
        let mut payload = KeptBytes::cut("hello".into(), 4);
        payload.content_type = Some("text/plain".to_owned());
        (record.payload, record.logs) = (Some(payload), Some(KeptBytes::cut("".into(), 10)));
        record.result = Some(KeptBytes::cut(vec![0xff, 0].into(), 10));
        record.failure.as_mut().unwrap().violations.push(crate::Violation::new("/name", "is missing"));
        record.lineage = Some(Box::default());
        record
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut own = record();
        own.caller = own.owner.clone();
        let mut early = record();
        early.started_at = Some(early.created_at.minus(Duration::from_secs(1)));
        for record in [record(), full(), own, early] {
            let document = document(&record).unwrap();
            assert_eq!(*decode(&mut row(&record, FORMAT, &document)).unwrap(), record, "{document}");
        }
    }

    #[test]
    fn a_row_of_form_1_has_the_whole_record_in_its_document() {
        let mut full = full();
        let payload = full.payload.take();
        (full.result, full.logs) = (None, None);
        let about = r#"{"content_type":"text/plain","len":5,"truncated":true}"#;
        let document = format!(r#"{{"record":{},"payload":{about}}}"#, serde_json::to_string(&full).unwrap());
        full.payload = payload;
        assert_eq!(*decode(&mut row(&full, 1, &document)).unwrap(), full);
    }

    #[test]
    fn what_has_a_column_is_not_in_the_document_too() {
        let record = record();
        assert_eq!(
            document(&record).unwrap(),
            r#"{"generation":1,"driver":"local","owner":"ann","attempts":0,"timings":{},"response_bytes":0}"#
        );
    }

    #[test]
    fn the_state_is_that_of_the_row() {
        let mut record = record();
        let document = document(&record).unwrap();
        for state in [InvocationState::Queued, InvocationState::Lost] {
            record.state = state;
            assert_eq!(decode(&mut row(&record, FORMAT, &document)).unwrap().state, state);
        }
    }

    #[test]
    fn what_another_program_wrote_wrongly_is_told() {
        let record = record();
        let good = document(&record).unwrap();
        let reason = |mut row: Row| decode(&mut row).unwrap_err().0;
        assert!(reason(row(&record, FORMAT + 1, &good)).contains("format 3, this program reads up to 2"));
        assert!(reason(row(&record, FORMAT, "{}")).contains("column 3: missing field `generation`"));
        let with = |column: usize, text: &str| {
            let mut cells = cells(&record, FORMAT, &good);
            cells[column] = Ok(Cell::Bytes(text.as_bytes().to_vec()));
            Row::new(cells)
        };
        assert!(reason(with(7, "asleep")).contains("column 7: unknown variant `asleep`"));
        assert!(reason(with(1, "x")).contains("column 1: "));
    }
}
