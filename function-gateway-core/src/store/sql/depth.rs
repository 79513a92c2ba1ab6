//! How much there is in the queue for each function and tenant, and from when on a tenant may have something that is due.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::AddAssign;

use super::batch::{MAX_ROWS, pieces};
use super::engine::{Session, Statement};
use super::fault::Fault;
use crate::FunctionKey;

/// How many rows a statement names by tenant and name.
const PAIRS: usize = 64;
/// The name under which a tenant's functions are counted together.
pub(super) const ALL: &str = "";

/// The row of a function, or of its tenant.
pub(super) type Place = (String, String);

/// The places that an invocation of a function counts in.
pub(super) fn places(key: &FunctionKey) -> [Place; 2] {
    [key.name.as_str(), ALL].map(|name| (key.tenant.as_str().to_owned(), name.to_owned()))
}

/// Numbers of invocations, or changes of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) open: i64,
    pub(super) dead: i64,
    pub(super) pinned: i64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.open += other.open;
        self.dead += other.dead;
        self.pinned += other.pinned;
    }
}

#[derive(Debug, Default)]
struct Change {
    counts: Counts,
    /// Something is due then, which may be sooner than all else.
    due_at: Option<i64>,
}

/// What a transaction changes of numbers, written once, in one order for all processes, so that they don't wait for each other in
/// circles.
#[derive(Debug, Default)]
pub(super) struct Depths {
    /// What was read and locked.
    before: HashMap<Place, Counts>,
    changes: BTreeMap<Place, Change>,
}

impl Depths {
    /// Reads the numbers of some places, and locks them until the transaction ends.
    pub(super) async fn lock(&mut self, session: &mut dyn Session, places: BTreeSet<Place>) -> Result<(), Fault> {
        self.read(session, &places).await?;
        let missing = |place: &&Place| !self.before.contains_key(*place);
        let missing: BTreeSet<Place> = places.iter().filter(missing).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        // Somebody else may be about to make the same rows.
        let nothing: Vec<_> = missing.iter().map(|place| (place, &Change::NONE)).collect();
        insert(session, &nothing).await?;
        self.read(session, &missing).await
    }

    async fn read(&mut self, session: &mut dyn Session, places: &BTreeSet<Place>) -> Result<(), Fault> {
        let dialect = session.dialect();
        let places: Vec<_> = places.iter().collect();
        for places in places.chunks(PAIRS) {
            let mut select = dialect.sql("SELECT tenant, name, open, dead, pinned FROM fg_queue_depth WHERE ");
            for (index, (tenant, name)) in places.iter().enumerate() {
                select = select.sql(if index > 0 { " OR (tenant = " } else { "(tenant = " }).arg(tenant.as_str());
                select = select.sql(" AND name = ").arg(name.as_str()).sql(")");
            }
            for mut row in session.rows(select.sql(" ORDER BY tenant, name").sql(dialect.for_update)).await? {
                let mut read = || {
                    let place = (row.text(0)?, row.text(1)?);
                    Ok((place, Counts { open: row.int(2)?, dead: row.int(3)?, pinned: row.int(4)? }))
                };
                let (place, counts) =
                    read().map_err(|reason| super::functions::unreadable("the depth of a queue", reason))?;
                self.before.insert(place, counts);
            }
        }
        Ok(())
    }

    /// The numbers of a place that was locked, as they are with all changes so far.
    pub(super) fn get(&self, place: &Place) -> Counts {
        let mut counts = self.before.get(place).copied().unwrap_or_default();
        counts += self.changes.get(place).map(|change| change.counts).unwrap_or_default();
        counts
    }

    pub(super) fn add(&mut self, key: &FunctionKey, counts: Counts) {
        for place in places(key) {
            self.changes.entry(place).or_default().counts += counts;
        }
    }

    /// Notes that something of a tenant is due sooner than it was, or is new.
    pub(super) fn due(&mut self, tenant: &str, due_at: i64) {
        let change = self.changes.entry((tenant.to_owned(), ALL.to_owned())).or_default();
        change.due_at = Some(change.due_at.map_or(due_at, |before| before.min(due_at)));
    }

    /// Writes all changes.
    pub(super) async fn write(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let is_change = |(_, change): &(&Place, &Change)| **change != Change::NONE;
        let changes: Vec<_> = self.changes.iter().filter(is_change).collect();
        insert(session, &changes).await
    }
}

impl Change {
    const NONE: Self = Self { counts: Counts { open: 0, dead: 0, pinned: 0 }, due_at: None };
}

impl PartialEq for Change {
    fn eq(&self, other: &Self) -> bool {
        (self.counts, self.due_at) == (other.counts, other.due_at)
    }
}

/// Adds changes, which are sorted, to the rows of their places.
async fn insert(session: &mut dyn Session, changes: &[(&Place, &Change)]) -> Result<(), Fault> {
    let dialect = session.dialect();
    let add = |column: &str| format!("{column} = fg_queue_depth.{column} + {}, ", dialect.inserted(column));
    let due = dialect.inserted("next_due_at");
    // Never later than what is due first: see `take.rs`.
    let sooner = format!(
        "next_due_at = CASE WHEN {due} IS NULL THEN fg_queue_depth.next_due_at \
         WHEN fg_queue_depth.next_due_at IS NULL OR {due} < fg_queue_depth.next_due_at THEN {due} \
         ELSE fg_queue_depth.next_due_at END"
    );
    let on_conflict = dialect.on_conflict("tenant, name") + &add("open") + &add("dead") + &add("pinned") + &sooner;
    for piece in pieces(changes, |_| 0) {
        let mut statement = dialect.sql(INSERT);
        for (index, ((tenant, name), Change { counts: Counts { open, dead, pinned }, due_at })) in
            piece.iter().enumerate()
        {
            statement = row(statement, index, (tenant, name), [Some(*open), Some(*dead), Some(*pinned), *due_at]);
        }
        session.execute(statement.sql(&on_conflict)).await?;
    }
    Ok(())
}

const INSERT: &str = "INSERT INTO fg_queue_depth (tenant, name, open, dead, pinned, next_due_at) VALUES ";

fn row(statement: Statement, index: usize, (tenant, name): (&str, &str), numbers: [Option<i64>; 4]) -> Statement {
    let statement = statement.sql(if index > 0 { ", (" } else { "(" }).list([tenant, name]);
    statement.sql(", ").list(numbers).sql(")")
}

/// Sets from when on tenants may have something that is due; their rows are locked.
pub(super) async fn set_due(session: &mut dyn Session, tenants: &[(&str, Option<i64>)]) -> Result<(), Fault> {
    let dialect = session.dialect();
    for tenants in tenants.chunks(MAX_ROWS) {
        let mut statement = dialect.sql(INSERT);
        for (index, (tenant, due_at)) in tenants.iter().enumerate() {
            statement = row(statement, index, (tenant, ALL), [Some(0), Some(0), Some(0), *due_at]);
        }
        session.execute(statement.sql(&dialect.upsert("tenant, name", &["next_due_at"]))).await?;
    }
    Ok(())
}
