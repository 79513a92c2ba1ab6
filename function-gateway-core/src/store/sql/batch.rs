//! Many executions, and steps of the queue, written in one transaction, with the figures over them.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::Arc;

use uuid::Uuid;

use super::engine::{Dialect, Session, Statement, Unreadable, Value, stored};
use super::fault::Fault;
use super::functions::json;
use super::record_row::{self, OPEN};
use super::steps::{self, Step, Steps};
use crate::store::statistics::{Minute, Rollup};
use crate::store::{kept_bytes, record_exists, record_is_final};
use crate::{
    Accepted, Error, FunctionId, FunctionKey, FunctionName, InvocationId, InvocationRecord, KeptBytes, PrincipalId,
    TenantId, Timestamp,
};

/// The form of the rows of figures that this program writes, and the latest that it reads.
pub(super) const ROLLUP_FORMAT: i64 = 1;
/// How many rows one statement inserts at most.
pub(super) const MAX_ROWS: usize = 256;
/// More than so many are inserted in multiples of it.
const STEP: usize = 16;
/// How many bytes one statement inserts, beside its last row. Servers refuse packets that are too large.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// For how many pairs of function and minute figures are held here, to go on with.
const MAX_OPEN: usize = 10_000;

/// What is written as a whole, or not at all.
pub(super) enum Entry {
    Record(Encoded),
    Step(Box<Step>),
}

/// What became of an entry.
pub(super) enum Outcome {
    Done,
    Accepted(Accepted),
}

impl Entry {
    pub(super) fn records(&self) -> impl Iterator<Item = &Encoded> {
        let (record, step) = match self {
            Self::Record(record) => (Some(record), None),
            Self::Step(step) => (None, Some(step.records())),
        };
        record.into_iter().chain(step.into_iter().flatten())
    }

    fn step(&self) -> Option<&Step> {
        match self {
            Self::Record(_) => None,
            Self::Step(step) => Some(step),
        }
    }

    /// Whether it need not be written once nobody waits for it any more: as far as its caller knows it has not been.
    pub(super) fn may_be_given_up(&self) -> bool {
        match self {
            Self::Record(record) => record.change == Change::Begin,
            Self::Step(step) => step.may_be_given_up(),
        }
    }
}

/// What is to be done with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Begin,
    Finish,
    /// Its beginning was written, and nobody knows of it.
    Discard,
}

/// A record as it is stored.
pub(super) struct Encoded {
    pub(super) change: Change,
    pub(super) record: Arc<InvocationRecord>,
    id: String,
    document: Arc<str>,
}

impl Encoded {
    pub(super) fn new(change: Change, record: Arc<InvocationRecord>) -> Result<Self, Fault> {
        let document = record_row::document(&record)?.into();
        Ok(Self { change, id: record.id.to_string(), record, document })
    }

    fn bytes(&self) -> usize {
        self.document.len() + kept_bytes(&self.record)
    }

    fn class(&self) -> Option<&'static str> {
        self.record.failure.as_ref().map(|failure| failure.class.as_str())
    }

    fn kept(&self) -> [&Option<KeptBytes>; 3] {
        [&self.record.payload, &self.record.result, &self.record.logs]
    }
}

/// What a batch did.
pub(super) struct Written {
    /// What became of each entry, in their order.
    pub(super) outcomes: Vec<Result<Outcome, Error>>,
    /// What the figures are once it is committed.
    pub(super) figures: Figures,
    /// The functions of what has ended.
    pub(super) ended: Vec<FunctionId>,
    /// Whether the queue has something new, and whether something in it has ended.
    pub(super) signals: Signals,
    /// The place of a record that it writes.
    probe: Option<usize>,
    /// The number by which it is known, where it has steps of the queue.
    mark: Option<i64>,
}

/// What a batch has to tell those that wait.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signals {
    pub(super) arrivals: bool,
    pub(super) endings: bool,
}

/// Says in the database which batch with steps of the queue was the last one that this process has written: the rows of such a
/// batch may have been changed again by others before it is asked whether it was committed.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) writer: String,
    pub(super) batch: i64,
}

/// What is known of the record of an id.
struct Known<'a> {
    is_final: bool,
    begun: Begun,
    place: Placed<'a>,
}

enum Placed<'a> {
    /// In the database.
    Stored,
    /// To be written by this batch, in place of a stored one or as a new one.
    Pending { replaces: bool, record: &'a Encoded },
}

impl<'a> Known<'a> {
    /// The database has its beginning.
    fn open(begun: Begun) -> Self {
        Self { is_final: false, begun, place: Placed::Stored }
    }

    fn pending(replaces: bool, record: &'a Encoded) -> Self {
        let of = &*record.record;
        Self { is_final: of.state.is_final(), begun: Begun::new(of), place: Placed::Pending { replaces, record } }
    }
}

/// What is known before a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// Of it the database has what this process has begun, and nothing else. Where that is not so nothing is written.
    Begun,
    /// The database has to be asked.
    Some,
}

/// What makes the end of an execution that of one that has begun.
#[derive(Debug, Clone)]
pub(super) struct Begun {
    key: FunctionKey,
    function: FunctionId,
    caller: PrincipalId,
    created_at: Timestamp,
}

impl Begun {
    pub(super) fn new(record: &InvocationRecord) -> Self {
        let InvocationRecord { key, function, caller, created_at, .. } = record;
        Self { key: key.clone(), function: *function, caller: caller.clone(), created_at: *created_at }
    }

    fn is_of(&self, record: &InvocationRecord) -> bool {
        let Self { key, function, caller, created_at } = self;
        (key, function, caller, created_at) == (&record.key, &record.function, &record.caller, &record.created_at)
    }
}

/// The records of a batch as they are and as they will be.
pub(super) struct Records<'a> {
    known: HashMap<InvocationId, Known<'a>>,
    discarded: Vec<&'a Encoded>,
    ended: Vec<FunctionId>,
    before: &'a mut Rollups,
    figures: Figures,
}

impl<'a> Records<'a> {
    /// Whether a change can be made.
    pub(super) fn check(&self, encoded: &Encoded) -> Result<(), Error> {
        let record = &*encoded.record;
        match (encoded.change, self.known.get(&record.id)) {
            (Change::Begin, Some(_)) => Err(record_exists(record)),
            (Change::Finish, Some(known)) if known.is_final || !known.begun.is_of(record) => {
                Err(record_is_final(record))
            }
            _ => Ok(()),
        }
    }

    /// Makes a change that can be made. Says whether its record is written.
    pub(super) fn put(&mut self, encoded: &'a Encoded) -> bool {
        let record = &*encoded.record;
        match (encoded.change, self.known.entry(record.id)) {
            (Change::Begin | Change::Finish, Place::Vacant(free)) => drop(free.insert(Known::pending(false, encoded))),
            (Change::Begin | Change::Finish, Place::Occupied(mut taken)) => {
                let replaces = match taken.get().place {
                    Placed::Stored => true,
                    Placed::Pending { replaces, .. } => replaces,
                };
                taken.insert(Known::pending(replaces, encoded));
            }
            (Change::Discard, place) => {
                if let Place::Occupied(taken) = place
                    && !taken.get().is_final
                    && taken.get().begun.is_of(record)
                    && matches!(taken.remove().place, Placed::Stored)
                {
                    self.discarded.push(encoded);
                }
                return false;
            }
        }
        if encoded.change == Change::Finish
            && let Some(at) = record.finished_at
        {
            self.figures.record(self.before, Minute::of(at), record);
            self.ended.push(record.function);
        }
        true
    }

    async fn write(&mut self, session: &mut dyn Session, expect: Expect) -> Result<(), Fault> {
        let (mut new, mut replaced) = (Vec::new(), Vec::new());
        for known in std::mem::take(&mut self.known).into_values() {
            if let Placed::Pending { replaces, record } = known.place {
                if replaces { &mut replaced } else { &mut new }.push(record);
            }
        }
        // Along the index, which is faster, and the same for every process, so that two don't wait for each other.
        new.sort_unstable_by(|a: &&Encoded, b| a.id.cmp(&b.id));
        replaced.sort_unstable_by(|a: &&Encoded, b| a.id.cmp(&b.id));
        insert_all(session, &new, None).await?;
        insert_all(session, &replaced, Some(expect)).await?;
        delete_labels(session, replaced.iter().copied().filter(|record| !record.record.labels.is_empty())).await?;
        insert_labels(session, new.iter().chain(&replaced).copied()).await?;
        discard(session, &self.discarded).await
    }
}

/// Writes a batch in a session, which then has to be committed.
pub(super) async fn write(
    session: &mut dyn Session,
    batch: &[Entry],
    (figures, begun): (&mut Rollups, &HashMap<InvocationId, Begun>),
    expect: Expect,
    mark: &Mark,
) -> Result<Written, Fault> {
    let mut steps = Steps::lock(session, batch.iter().filter_map(Entry::step), expect).await?;
    let known = match expect {
        Expect::Begun => batch.iter().flat_map(|entry| expected(entry, begun)).collect(),
        Expect::Some => read_known(session, batch).await?,
    };
    let mut records =
        Records { known, discarded: Vec::new(), ended: Vec::new(), before: figures, figures: Figures::default() };
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut probe = None;
    for (at, entry) in batch.iter().enumerate() {
        let outcome = match entry {
            Entry::Record(encoded) => records.check(encoded).map(|()| {
                if records.put(encoded) {
                    // The last one: no later record of the batch takes its place.
                    probe = Some(at);
                }
                Outcome::Done
            }),
            Entry::Step(step) => steps.decide(step, &mut records),
        };
        outcomes.push(outcome);
    }
    records.write(session, expect).await?;
    let signals = steps.write(session).await?;
    let Records { ended, figures, .. } = records;
    figures.write(session).await?;
    let has_steps = batch.iter().any(|entry| entry.step().is_some());
    if has_steps {
        write_mark(session, mark).await?;
        steps::tell(session, signals, &mark.writer).await?;
    }
    Ok(Written { outcomes, figures, ended, signals, probe, mark: has_steps.then_some(mark.batch) })
}

/// What the database has of the records of an entry, as far as this process knows. A step that ends an invocation holds its
/// lease, so that its record has begun with it, wherever that was.
fn expected<'a>(entry: &Entry, begun: &HashMap<InvocationId, Begun>) -> Vec<(InvocationId, Known<'a>)> {
    let of_step = entry.step().is_some();
    let known = |encoded: &Encoded| {
        let record = &encoded.record;
        let is_ended_by_step = of_step && encoded.change == Change::Finish;
        let known = is_ended_by_step.then(|| Begun::new(record));
        Some((record.id, Known::open(known.or_else(|| begun.get(&record.id).cloned())?)))
    };
    entry.records().filter_map(known).collect()
}

/// Whether a batch was committed that this is the outcome of. A transaction is kept as a whole, so one of its rows tells; `false`
/// for one that writes none.
pub(super) async fn is_committed(
    session: &mut dyn Session,
    batch: &[Entry],
    written: &Written,
    mark: &Mark,
) -> Result<bool, Fault> {
    let dialect = session.dialect();
    if let Some(batch) = written.mark {
        // Waits for that transaction, should it be under way still.
        let insert = insert_mark(dialect, &Mark { writer: mark.writer.clone(), batch: 0 });
        session.execute(insert.sql(&dialect.upsert("writer", &["at"]))).await?;
        let select = dialect.sql("SELECT batch FROM fg_commits WHERE writer = ").arg(mark.writer.as_str());
        return Ok(session.row(select).await?.is_some_and(|mut row| row.int(0).is_ok_and(|found| found == batch)));
    }
    let Some(Entry::Record(probe)) = written.probe.and_then(|at| batch.get(at)) else { return Ok(false) };
    let select = dialect.sql("SELECT document, created_at, finished_at, caller FROM fg_invocations WHERE id = ");
    let Some(mut row) = session.row(select.arg(probe.id.as_str())).await? else { return Ok(false) };
    // The document alone does not tell an end from its beginning, nor two that bring one id.
    let record = &*probe.record;
    let mut is_as_written = || {
        Ok::<_, Unreadable>(
            row.text(0)? == *probe.document
                && row.int(1)? == record.created_at.as_micros()
                && row.opt_int(2)? == record.finished_at.map(Timestamp::as_micros)
                && row.text(3)? == record.caller.as_str(),
        )
    };
    Ok(is_as_written().unwrap_or(false))
}

fn insert_mark(dialect: &'static Dialect, mark: &Mark) -> Statement {
    let insert = dialect.sql("INSERT INTO fg_commits (writer, batch, at) VALUES (").arg(mark.writer.as_str());
    insert.sql(", ").arg(mark.batch).sql(", ").sql(dialect.now).sql(")")
}

async fn write_mark(session: &mut dyn Session, mark: &Mark) -> Result<(), Fault> {
    let dialect = session.dialect();
    session.execute(insert_mark(dialect, mark).sql(&dialect.upsert("writer", &["batch", "at"]))).await?;
    Ok(())
}

/// Reads what there is of the ids of a batch, and locks it.
async fn read_known<'a>(session: &mut dyn Session, batch: &[Entry]) -> Result<HashMap<InvocationId, Known<'a>>, Fault> {
    let dialect = session.dialect();
    let records: Vec<&Encoded> = batch.iter().flat_map(Entry::records).collect();
    let mut known = HashMap::with_capacity(records.len());
    for ids in records.chunks(MAX_ROWS) {
        let select = dialect.sql("SELECT id, tenant, name, function_id, created_at, state, caller");
        let select = select.sql(" FROM fg_invocations WHERE ");
        let select = select.any_of("id", ids.iter().map(|encoded| encoded.id.as_str())).sql(dialect.for_update);
        for mut row in session.rows(select).await? {
            let mut read = || {
                let key = FunctionKey::new(row.parse(1)?, row.parse(2)?);
                let state = row.text(5)?;
                let begun = Begun {
                    key,
                    function: row.parse(3)?,
                    caller: row.parse(6)?,
                    created_at: Timestamp::from_micros(row.int(4)?),
                };
                let is_final = !OPEN.iter().any(|open| open.as_str() == state);
                let known = Known { is_final, begun, place: Placed::Stored };
                Ok::<_, Unreadable>((row.parse(0)?, known))
            };
            match read() {
                Ok((id, row)) => drop(known.insert(id, row)),
                // It is in the way of the batch, which says so when it is written.
                Err(Unreadable(reason)) => tracing::error!(reason, "the record of an execution can't be read"),
            }
        }
    }
    Ok(known)
}

/// A column of the rows of records.
struct Column {
    name: &'static str,
    /// What decides whether many rows have the same in it.
    of: Of,
    value: fn(&Encoded) -> Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Row,
    Tenant,
    Function,
    Caller,
    State,
    Kept,
    Program,
}

const COLUMNS: [Column; 14] = {
    use Of::{Caller, Function, Kept, Program, Row, State, Tenant};
    const fn column(name: &'static str, of: Of, value: fn(&Encoded) -> Value) -> Column {
        Column { name, of, value }
    }
    fn kept(kept: Option<&KeptBytes>) -> Value {
        kept.map(|kept| &*kept.bytes).into()
    }
    [
        column("id", Row, |encoded| encoded.id.as_str().into()),
        column("tenant", Tenant, |encoded| Value::Shared(encoded.record.key.tenant.clone().into())),
        column("name", Function, |encoded| Value::Shared(encoded.record.key.name.clone().into())),
        column("function_id", Function, |encoded| encoded.record.function.to_string().into()),
        column("state", State, |encoded| encoded.record.state.as_str().into()),
        column("class", State, |encoded| encoded.class().into()),
        column("caller", Caller, |encoded| Value::Shared(encoded.record.caller.clone().into())),
        column("created_at", Row, |encoded| encoded.record.created_at.as_micros().into()),
        column("finished_at", Row, |encoded| encoded.record.finished_at.map(Timestamp::as_micros).into()),
        column("format", Program, |_| record_row::FORMAT.into()),
        column("document", Row, |encoded| Value::Shared(Arc::clone(&encoded.document))),
        column("payload", Kept, |encoded| kept(encoded.record.payload.as_ref())),
        column("result", Kept, |encoded| kept(encoded.record.result.as_ref())),
        column("logs", Kept, |encoded| kept(encoded.record.logs.as_ref())),
    ]
};

impl Of {
    /// Whether two rows have the same there.
    fn is_same(self, one: &Encoded, two: &Encoded) -> bool {
        let (a, b) = (&*one.record, &*two.record);
        match self {
            Self::Row => false,
            Self::Tenant => a.key.tenant == b.key.tenant,
            Self::Function => a.function == b.function && a.key == b.key,
            Self::Caller => a.caller == b.caller,
            Self::State => a.state == b.state && one.class() == two.class(),
            // Bytes that happen to be the same are not looked for.
            Self::Kept => one.kept().into_iter().chain(two.kept()).all(Option::is_none),
            Self::Program => true,
        }
    }

    /// What all rows have in common.
    fn common(rows: &[&Encoded]) -> Vec<Self> {
        let Some((first, rest)) = rows.split_first() else { return Vec::new() };
        let all = [Self::Tenant, Self::Function, Self::Caller, Self::State, Self::Kept, Self::Program];
        all.into_iter().filter(|of| rest.iter().all(|row| of.is_same(first, row))).collect()
    }
}

/// Those of them that may differ between an execution's beginning and its end.
const CHANGING: [&str; 8] = ["state", "class", "finished_at", "format", "document", "payload", "result", "logs"];

/// Cuts a list in pieces of so many items that there are few different statements, and few for each list.
pub(super) fn pieces<'a, T>(mut items: &'a [T], size: impl Fn(&T) -> usize + 'a) -> impl Iterator<Item = &'a [T]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = items.iter().take(MAX_ROWS).take_while(|item| {
            let fits = bytes <= MAX_BYTES;
            bytes += size(item);
            fits
        });
        let count = fitting.count();
        let whole = if count > STEP { count - count % STEP } else { count };
        let (piece, rest) = items.split_at_checked(whole)?;
        items = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Inserts rows in their order. What many have in common is an argument once, where the engine takes that, and not one in each row.
async fn insert_all(session: &mut dyn Session, records: &[&Encoded], replace: Option<Expect>) -> Result<(), Fault> {
    let dialect = session.dialect();
    for piece in pieces(records, |record| record.bytes()) {
        let into = if replace.is_none() { dialect.insert_new } else { "INSERT INTO" };
        let shares = dialect.selects_values && replace.is_none() && piece.len() >= STEP;
        let common = if shares { Of::common(piece) } else { Vec::new() };
        let (once, own): (Vec<_>, Vec<_>) = COLUMNS.iter().partition(|column| common.contains(&column.of));
        let names: Vec<_> = own.iter().chain(&once).map(|column| column.name).collect();
        let mut statement = dialect.sql(&format!("{into} fg_invocations ({}) ", names.join(", ")));
        if let Some(first) = piece.first().filter(|_| !once.is_empty()) {
            statement = statement.sql("SELECT v.*, ").list(once.iter().map(|column| (column.value)(first)));
            statement = statement.sql(" FROM (");
        }
        statement = statement.sql("VALUES ");
        for (index, encoded) in piece.iter().enumerate() {
            statement = statement.sql(if index > 0 { ", (" } else { "(" });
            statement = statement.list(own.iter().map(|column| (column.value)(encoded))).sql(")");
        }
        if !once.is_empty() {
            statement = statement.sql(") v");
        }
        if replace.is_some() {
            statement = statement.sql(&dialect.upsert("id", &CHANGING));
        }
        let unread = replace == Some(Expect::Begun);
        let guard = if unread { dialect.only_where("fg_invocations.finished_at IS NULL") } else { None };
        let is_guarded = guard.is_some();
        let written = session.execute(statement.sql(&guard.unwrap_or_default())).await?;
        if is_guarded && usize::try_from(written) != Ok(piece.len()) {
            return Err(Fault::Unexpected);
        }
    }
    Ok(())
}

async fn delete_labels(session: &mut dyn Session, records: impl Iterator<Item = &Encoded> + Send) -> Result<(), Fault> {
    let ids: Vec<&str> = records.map(|encoded| encoded.id.as_str()).collect();
    for ids in ids.chunks(MAX_ROWS) {
        let delete = session.dialect().sql("DELETE FROM fg_invocation_labels WHERE ");
        session.execute(delete.any_of("id", ids.iter().copied())).await?;
    }
    Ok(())
}

async fn insert_labels(session: &mut dyn Session, records: impl Iterator<Item = &Encoded> + Send) -> Result<(), Fault> {
    let labels: Vec<_> =
        records.flat_map(|encoded| encoded.record.labels.iter().map(move |label| (encoded, label))).collect();
    let dialect = session.dialect();
    for piece in pieces(&labels, |(_, (key, value))| key.len() + value.len()) {
        let insert = "INSERT INTO fg_invocation_labels (id, label_key, label_value, tenant, created_at) VALUES ";
        let mut statement = dialect.sql(insert);
        for (index, (encoded, (key, value))) in piece.iter().enumerate() {
            statement = statement
                .sql(if index > 0 { ", (" } else { "(" })
                .arg(encoded.id.as_str())
                .sql(", ")
                .list([key.as_bytes(), value.as_bytes()])
                .sql(", ")
                .arg(encoded.record.key.tenant.as_str())
                .sql(", ")
                .arg(encoded.record.created_at.as_micros())
                .sql(")");
        }
        session.execute(statement).await?;
    }
    Ok(())
}

async fn discard(session: &mut dyn Session, records: &[&Encoded]) -> Result<(), Fault> {
    for ids in records.chunks(MAX_ROWS) {
        let delete = session.dialect().sql("DELETE FROM fg_invocations WHERE finished_at IS NULL AND ");
        session.execute(delete.any_of("id", ids.iter().map(|encoded| encoded.id.as_str()))).await?;
    }
    delete_labels(session, records.iter().copied()).await
}

type RollupKey = (TenantId, FunctionName, Minute);

/// A row of figures. It is this process's alone, so that it can be written without being read.
#[derive(Debug, Clone)]
struct OpenRollup {
    id: String,
    rollup: Rollup,
}

/// The figures that this process has written and goes on with.
#[derive(Debug, Default)]
pub(super) struct Rollups(HashMap<RollupKey, OpenRollup>);

/// Figures as a batch changes them.
#[derive(Debug, Default)]
pub(super) struct Figures(HashMap<RollupKey, OpenRollup>);

impl Figures {
    fn record(&mut self, before: &mut Rollups, minute: Minute, record: &InvocationRecord) {
        let key = (record.key.tenant.clone(), record.key.name.clone(), minute);
        let open = self.0.entry(key).or_insert_with_key(|key| {
            // The row gets its id before it is written: what is written once more is the same row.
            let new = || OpenRollup { id: Uuid::now_v7().to_string(), rollup: Rollup::default() };
            before.0.entry(key.clone()).or_insert_with(new).clone()
        });
        open.rollup.record(record);
    }

    async fn write(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let dialect = session.dialect();
        let columns = ["id", "tenant", "name", "minute", "format", "document"];
        let mut rows = Vec::with_capacity(self.0.len());
        for ((tenant, name, minute), OpenRollup { id, rollup }) in &self.0 {
            rows.push((id, tenant, name, minute.get(), json(rollup)?));
        }
        rows.sort_unstable_by_key(|(id, ..)| *id);
        for piece in pieces(&rows, |(.., document)| document.len()) {
            let insert = format!("INSERT INTO fg_rollups ({}) VALUES ", columns.join(", "));
            let mut statement = dialect.sql(&insert);
            for (index, (id, tenant, name, minute, document)) in piece.iter().enumerate() {
                statement = statement
                    .sql(if index > 0 { ", (" } else { "(" })
                    .list([id.as_str(), tenant.as_str(), name.as_str()])
                    .sql(", ")
                    .list([*minute, ROLLUP_FORMAT])
                    .sql(", ")
                    .arg(document.as_str())
                    .sql(")");
            }
            session.execute(statement.sql(&dialect.upsert("id", &["format", "document"]))).await?;
        }
        Ok(())
    }
}

impl Rollups {
    /// Takes over what a batch has changed, once it is committed.
    pub(super) fn apply(&mut self, figures: Figures) {
        let newest = figures.0.keys().map(|(_, _, minute)| *minute).max();
        self.0.extend(figures.0);
        if self.0.len() > MAX_OPEN {
            // What comes late to a minute that is let go gets a row of its own.
            self.0.retain(|(_, _, minute), _| Some(*minute) >= newest);
            if self.0.len() > MAX_OPEN {
                self.0.clear();
            }
        }
    }
}

/// A number of rows that a statement takes.
pub(super) fn row_limit(limit: usize) -> i64 {
    stored(u64::try_from(limit).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_leave_nothing_out_and_come_in_few_sizes() {
        for count in [0, 1, 2, 16, 17, 33, 255, 256, 257, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let pieces: Vec<_> = pieces(&items, |_| 1).collect();
            assert!(pieces.iter().all(|piece| piece.len() <= STEP || piece.len().is_multiple_of(STEP)));
            assert!(pieces.iter().all(|piece| piece.len() <= MAX_ROWS));
            assert!(pieces.len() <= count / MAX_ROWS + 2);
            assert_eq!(pieces.concat(), items);
        }
    }

    #[test]
    fn a_piece_that_is_large_enough_takes_no_more() {
        let items = [MAX_BYTES + 1, 1, 1, MAX_BYTES, 1, 1];
        let lengths: Vec<_> = pieces(&items, |bytes| *bytes).map(<[usize]>::len).collect();
        assert_eq!(lengths, [1, 3, 2]);
    }
}
