//! Writes records of executions and steps of the queue, all that have come in while the last ones were written in one
//! transaction.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::SqlStoreOptions;
use super::batch::{self, Begun, Change, Encoded, Entry, Expect, Mark, Outcome, Rollups, Signals};
use super::engine::Engine;
use super::fault::{Fault, FaultKind};
use super::retention::Crowded;
use super::steps::Step;
use crate::store::{check_begin, check_finish, kept_bytes};
use crate::{Deadline, Delivery, Error, ErrorKind, InvocationId, InvocationRecord, QueueNotifier, Result};

/// How many records are written in one transaction at most.
const BATCH: usize = 512;
/// How many bytes of them, beside the last one.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How many executions are known to have begun here.
const MAX_BEGUN: usize = 100_000;
/// How often others get their turn before a batch that somebody waits for is written.
const GATHER: usize = 8;
/// After so many records that are encoded, others on the same thread get their turn.
const ENCODE: usize = 16;
/// How long a batch may take at least, however short an operation is to be.
const MIN_ATTEMPT: Duration = Duration::from_secs(30);
/// After so many tries that took too long, and that met an unexpected row, a batch is written in halves.
const MAX_SLOW: u32 = 2;
const MAX_DOUBLES: u32 = 3;
/// After the first try that has failed; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(2);

type Reply = oneshot::Sender<Result<Outcome>>;
type Answer = oneshot::Receiver<Result<Outcome>>;

/// Tells those that wait in this process.
#[derive(Debug, Default)]
pub(super) struct Notifiers {
    pub(super) arrivals: QueueNotifier,
    pub(super) endings: QueueNotifier,
}

impl Notifiers {
    pub(super) fn tell(&self, signals: Signals) {
        if signals.arrivals {
            self.arrivals.notify();
        }
        if signals.endings {
            self.endings.notify();
        }
    }
}

/// Room in the buffer.
struct Room {
    _records: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

enum Job {
    /// To be written once enough others have come.
    Buffered {
        record: Arc<InvocationRecord>,
        room: Room,
    },
    /// Its caller waits, and has encoded it meanwhile.
    Durable {
        entry: Entry,
        bytes: usize,
        reply: Reply,
        room: Room,
    },
    Discard {
        record: Arc<InvocationRecord>,
    },
    /// Somebody waits until all before is written.
    Flush(Reply),
}

impl Job {
    fn is_urgent(&self) -> bool {
        matches!(self, Self::Flush(_) | Self::Durable { .. })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Buffered { record, .. } => kept_bytes(record),
            Self::Durable { bytes, .. } => *bytes,
            Self::Discard { .. } | Self::Flush(_) => 0,
        }
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// How many of them somebody waits for.
    urgent: usize,
    /// Somebody waits for room, so nothing is waited for here.
    full: bool,
    /// No more will come.
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Something has come that is not to wait for more.
    wake: Notify,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the buffer at which records come in. Dropped, what is in the buffer is written and its task ends.
pub(super) struct Writer {
    shared: Arc<Shared>,
    records: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    max_kib: u32,
    timeout: Duration,
    notifiers: Arc<Notifiers>,
    id: String,
    /// Its other end goes with the task.
    alive: watch::Receiver<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Writer {
    pub(super) fn start(
        engine: Arc<dyn Engine>,
        crowded: Arc<Crowded>,
        options: &SqlStoreOptions,
        runtime: &Handle,
    ) -> Self {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Notify::new() });
        let timeout = options.operation_timeout;
        let (notifiers, id) = (Arc::<Notifiers>::default(), Uuid::now_v7().to_string());
        let (alive, seen_alive) = watch::channel(());
        let task = Task {
            shared: Arc::clone(&shared),
            engine,
            crowded,
            notifiers: Arc::clone(&notifiers),
            mark: Mark { writer: id.clone(), batch: 0 },
            interval: options.flush_interval,
            timeout,
            figures: Rollups::default(),
            begun: HashMap::new(),
            _alive: alive,
        };
        runtime.spawn(task.run());
        let records = options.max_buffered_records.clamp(1, Semaphore::MAX_PERMITS);
        let kib = u32::try_from(options.max_buffered_bytes / 1024).unwrap_or(u32::MAX >> 3).clamp(1, u32::MAX >> 3);
        let bytes = Arc::new(Semaphore::new(usize::try_from(kib).unwrap_or(Semaphore::MAX_PERMITS)));
        let records = Arc::new(Semaphore::new(records));
        Self { shared, records, bytes, max_kib: kib, timeout, notifiers, id, alive: seen_alive }
    }

    pub(super) fn notifiers(&self) -> &Arc<Notifiers> {
        &self.notifiers
    }

    /// By what its messages to other processes are known.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Takes nothing more. What is in the buffer is written, as far as the database lets it be.
    pub(super) fn close(&self) {
        self.shared.queue().closed = true;
        self.shared.wake.notify_one();
    }

    /// Takes nothing more, and waits until all that was taken is written, or can't be.
    pub(super) async fn end(&self) {
        self.close();
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// How many records wait to be written.
    pub(super) fn len(&self) -> usize {
        self.shared.queue().jobs.len()
    }

    /// Takes a job, unless no more is taken: then nobody would come to it.
    fn push(&self, job: Job) -> Result<()> {
        let is_urgent = job.is_urgent();
        let mut queue = self.shared.queue();
        if queue.closed {
            return Err(super::closed());
        }
        if self.alive.has_changed().is_err() {
            return Err(ended());
        }
        queue.jobs.push_back(job);
        queue.urgent += usize::from(is_urgent);
        let len = queue.jobs.len();
        drop(queue);
        // The task need not be woken for each: the first one starts the time that it waits for more.
        if is_urgent || len == 1 || len == BATCH {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Waits for room in the buffer.
    async fn room(&self, bytes: usize) -> Result<Room> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.max_kib);
        {
            let mut queue = self.shared.queue();
            if queue.closed {
                return Err(super::closed());
            }
            // What is given back goes to those who wait first, so this one overtakes nobody.
            if let Ok(records) = Arc::clone(&self.records).try_acquire_owned()
                && let Ok(bytes) = Arc::clone(&self.bytes).try_acquire_many_owned(kib)
            {
                return Ok(Room { _records: records, _bytes: bytes });
            }
            queue.full = !queue.jobs.is_empty();
            self.shared.wake.notify_one();
        }
        let taking = async {
            let records = Arc::clone(&self.records).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(kib).await.ok()?;
            Some(Room { _records: records, _bytes: bytes })
        };
        match tokio::time::timeout(self.timeout, taking).await {
            Ok(Some(room)) => Ok(room),
            _ => {
                let message = "the buffer of records is full and the database does not keep up \
                               (max_buffered_records, max_buffered_bytes)";
                Err(Error::new(ErrorKind::Store, message))
            }
        }
    }

    pub(super) async fn finish_buffered(&self, record: Arc<InvocationRecord>) -> Result<()> {
        check_finish(&record)?;
        let room = self.room(kept_bytes(&record)).await?;
        self.push(Job::Buffered { record, room })
    }

    pub(super) async fn finish_durable(&self, record: Arc<InvocationRecord>) -> Result<()> {
        check_finish(&record)?;
        self.commit(Change::Finish, record).await
    }

    pub(super) async fn begin(&self, record: Arc<InvocationRecord>) -> Result<()> {
        check_begin(&record)?;
        self.commit(Change::Begin, record).await
    }

    /// Makes a step of the queue.
    pub(super) async fn step(&self, step: Step) -> Result<Outcome> {
        let bytes = step.kept_bytes();
        let room = self.room(bytes).await?;
        self.write(Entry::Step(Box::new(step)), bytes, room).await
    }

    async fn commit(&self, change: Change, record: Arc<InvocationRecord>) -> Result<()> {
        let bytes = kept_bytes(&record);
        let room = self.room(bytes).await?;
        let encoded = Encoded::new(change, record).map_err(Fault::into_error)?;
        self.write(Entry::Record(encoded), bytes, room).await.map(|_| ())
    }

    async fn write(&self, entry: Entry, bytes: usize, room: Room) -> Result<Outcome> {
        let (reply, answer) = oneshot::channel();
        self.push(Job::Durable { entry, bytes, reply, room })?;
        self.answer(answer).await
    }

    /// Waits until everything that has come so far is written.
    pub(super) async fn flush(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.push(Job::Flush(reply))?;
        self.answer(answer).await.map(|_| ())
    }

    async fn answer(&self, answer: Answer) -> Result<Outcome> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ended().with_delivery(Delivery::Unknown)),
            Err(_) => Err(Fault::TimedOut.into_error()),
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Store, "the task that writes records has ended with its runtime")
}

struct Task {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    crowded: Arc<Crowded>,
    notifiers: Arc<Notifiers>,
    /// Of the batch that was tried last.
    mark: Mark,
    interval: Duration,
    timeout: Duration,
    figures: Rollups,
    /// What this process has begun and not ended.
    begun: HashMap<InvocationId, Begun>,
    _alive: watch::Sender<()>,
}

/// How the tries to write a batch have gone.
struct Tries {
    expect: Expect,
    pause: Duration,
    /// What a try would have done that may have been committed.
    unanswered: Option<batch::Written>,
    /// How many took too long or lost their connection: the batch may be more than the way to the database takes.
    slow: u32,
    /// How many met a row that they did not expect.
    doubles: u32,
}

/// What is written together, and who waits for it.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    replies: Vec<Option<Reply>>,
    rooms: Vec<Option<Room>>,
}

impl Task {
    async fn run(mut self) {
        while self.arrived().await {
            self.gather().await;
            let jobs = self.take();
            let (batch, flushes) = encode(jobs).await;
            self.keep(batch).await;
            for flush in flushes {
                // Who waits no longer needs no answer.
                let _ = flush.send(Ok(Outcome::Done));
            }
        }
    }

    /// Waits until something is to be written. `false` once nothing more comes.
    async fn arrived(&self) -> bool {
        let mut until = None;
        loop {
            {
                let queue = self.shared.queue();
                let is_due = queue.urgent > 0 || queue.full || queue.closed || queue.jobs.len() >= BATCH;
                if is_due || until.is_some_and(|until| Instant::now() >= until) {
                    return !queue.jobs.is_empty() || !queue.closed;
                }
                if until.is_none() && !queue.jobs.is_empty() {
                    until = Some(Instant::from(Deadline::after(self.interval).instant()));
                }
            }
            match until {
                None => self.shared.wake.notified().await,
                Some(until) => drop(tokio::time::timeout_at(until, self.shared.wake.notified()).await),
            }
        }
    }

    /// Lets those who are about to record something do so: a commit for many costs little more than one for a few.
    async fn gather(&self) {
        let mut seen = 0;
        for _ in 0..GATHER {
            let len = self.shared.queue().jobs.len();
            if len == seen || len >= BATCH {
                return;
            }
            seen = len;
            tokio::task::yield_now().await;
        }
    }

    fn take(&self) -> Vec<Job> {
        let mut queue = self.shared.queue();
        queue.full = false;
        let count = count(&queue.jobs);
        let taken: Vec<_> = queue.jobs.drain(..count).collect();
        queue.urgent -= taken.iter().filter(|job| job.is_urgent()).count();
        taken
    }

    /// Writes a batch, until it is written or can't be.
    async fn keep(&mut self, batch: Batch) {
        let mut left = vec![batch];
        while let Some(batch) = left.pop() {
            if let Some(rest) = self.keep_together(batch).await {
                left.extend(rest);
            }
        }
    }

    /// Writes a batch in one transaction, as often as it takes. Gives it back in two halves where something in it can't be
    /// written, or where all of it may be too much at once.
    async fn keep_together(&mut self, mut batch: Batch) -> Option<[Batch; 2]> {
        let mut tries =
            Tries { expect: self.expect(&batch), pause: FIRST_PAUSE, unanswered: None, slow: 0, doubles: 0 };
        let mut closed_since = None;
        loop {
            if batch.entries.is_empty() {
                return None;
            }
            let mut decided = None;
            let bound = self.timeout.max(MIN_ATTEMPT);
            let attempt = self.attempt(&batch, &mut tries, &mut decided);
            let fault = match tokio::time::timeout(bound, attempt).await {
                Ok(Ok(written)) => {
                    self.figures.apply(written.figures);
                    self.note_begun(&batch, &written.outcomes);
                    self.crowded.note(&written.ended);
                    self.tell(batch, written.outcomes);
                    self.notifiers.tell(written.signals);
                    return None;
                }
                Ok(Err(fault)) => fault,
                Err(_) => Fault::TimedOut,
            };
            if fault.is_uncertain() && decided.is_some() {
                tries.unanswered = decided;
            }
            let is_double = fault.is(FaultKind::Duplicate) || matches!(fault, Fault::Unexpected);
            if is_double && tries.expect == Expect::Begun {
                tries.expect = Expect::Some;
                continue;
            }
            tries.doubles += u32::from(is_double);
            if fault.is(FaultKind::Duplicate) && tries.doubles <= MAX_DOUBLES {
                // Another process has written the same id or key since this one looked.
                continue;
            }
            tries.slow += u32::from(fault.is_of_size());
            let is_hopeless = fault.is_of_content() || tries.doubles > MAX_DOUBLES;
            if tries.unanswered.is_none() && (is_hopeless || tries.slow > MAX_SLOW) {
                if let Some(halves) = batch.split() {
                    return Some(halves);
                }
                if is_hopeless {
                    batch.fail(&fault.into_error());
                    return None;
                }
            }
            // The store is gone: it is not waited for much longer, and once its connections are gone, not at all.
            if self.shared.queue().closed {
                let since = closed_since.get_or_insert_with(Instant::now);
                if since.elapsed() > self.timeout || self.engine.is_closed() {
                    batch.fail(&fault.into_error());
                    return None;
                }
            }
            let records = batch.entries.len();
            if fault.is_transient() {
                tracing::warn!(error = ?fault.into_error(), records, "records are not written yet");
            } else {
                tracing::error!(error = ?fault.into_error(), records, "records are not written until somebody sees to it");
            }
            tokio::time::sleep(tries.pause.mul_f64(0.5 + fastrand::f64())).await;
            tries.pause = (tries.pause * 2).min(MAX_PAUSE);
            if tries.unanswered.is_none() {
                batch.forget_given_up();
            }
        }
    }

    /// Writes a batch once. What it does is `decided` before it is committed, so that it is known where the answer is lost.
    async fn attempt(
        &mut self,
        batch: &Batch,
        tries: &mut Tries,
        decided: &mut Option<batch::Written>,
    ) -> Result<batch::Written, Fault> {
        let mut session = self.engine.transaction().await?;
        if let Some(written) = &tries.unanswered {
            if batch::is_committed(&mut *session, &batch.entries, written, &self.mark).await?
                && let Some(written) = tries.unanswered.take()
            {
                session.release().await;
                return Ok(written);
            }
            tries.expect = Expect::Some;
        }
        self.mark.batch += 1;
        let known = (&mut self.figures, &self.begun);
        match batch::write(&mut *session, &batch.entries, known, tries.expect, &self.mark).await {
            Ok(written) => *decided = Some(written),
            Err(fault) => {
                session.release().await;
                return Err(fault);
            }
        }
        session.commit().await?;
        decided.take().ok_or(Fault::Unexpected)
    }

    /// Most executions are ended by the process that has begun them, or are recorded once: there is nothing to be asked.
    fn expect(&self, batch: &Batch) -> Expect {
        let can_replace = self.engine.dialect().only_where("").is_some();
        let mut ids = HashSet::with_capacity(batch.entries.len());
        let mut is_known = |entry: &Entry, encoded: &Encoded| {
            let id = encoded.record.id;
            let replaces = match entry {
                Entry::Record(_) => self.begun.contains_key(&id),
                Entry::Step(_) => encoded.change == Change::Finish,
            };
            encoded.change != Change::Discard && (can_replace || !replaces) && ids.insert(id)
        };
        let mut entries = batch.entries.iter();
        if entries.all(|entry| entry.records().all(|encoded| is_known(entry, encoded))) {
            Expect::Begun
        } else {
            Expect::Some
        }
    }

    fn note_begun(&mut self, batch: &Batch, outcomes: &[Result<Outcome>]) {
        for (entry, _) in batch.entries.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok()) {
            // Who ends what was accepted holds its lease, and needs not know where it has begun.
            let Entry::Record(encoded) = entry else { continue };
            let record = &encoded.record;
            match encoded.change {
                Change::Begin => self.begun.insert(record.id, Begun::new(record)),
                Change::Finish | Change::Discard => self.begun.remove(&record.id),
            };
        }
        // Those that nobody has ended are known to the database.
        if self.begun.len() > MAX_BEGUN {
            self.begun.clear();
        }
    }

    fn tell(&self, batch: Batch, outcomes: Vec<Result<Outcome>>) {
        let Batch { entries, replies, rooms } = batch;
        for ((entry, reply), outcome) in entries.into_iter().zip(replies).zip(outcomes) {
            let Some(reply) = reply else {
                if let Err(error) = outcome {
                    tracing::debug!(?error, "a record that was buffered is there already");
                }
                continue;
            };
            let is_done = outcome.is_ok();
            if reply.send(outcome).is_err()
                && is_done
                && let Entry::Record(Encoded { change: Change::Begin, record, .. }) = entry
            {
                // Nobody waited for it any more: as far as its caller knows it has not begun.
                self.shared.queue().jobs.push_back(Job::Discard { record });
            }
        }
        drop(rooms);
    }
}

impl Batch {
    /// Its two halves, if it has more than one record.
    fn split(&mut self) -> Option<[Self; 2]> {
        let half = self.entries.len() / 2;
        if half == 0 {
            return None;
        }
        let (entries, replies, rooms) =
            (self.entries.split_off(half), self.replies.split_off(half), self.rooms.split_off(half));
        let first = std::mem::take(self);
        // The last one is written first.
        Some([Self { entries, replies, rooms }, first])
    }

    /// Tells everybody that it can't be written.
    fn fail(self, error: &Error) {
        let is_buffered = |(at, reply): &(usize, &Option<Reply>)| {
            let entry = self.entries.get(*at);
            let discards = matches!(entry, Some(Entry::Record(Encoded { change: Change::Discard, .. })));
            reply.is_none() && !discards
        };
        let lost = self.replies.iter().enumerate().filter(is_buffered).count();
        if lost > 0 {
            metrics::counter!("function_gateway.records.lost").increment(u64::try_from(lost).unwrap_or(u64::MAX));
            tracing::error!(?error, lost, "records of executions could not be kept");
        }
        for reply in self.replies.into_iter().flatten() {
            let _ = reply.send(Err(error.clone()));
        }
    }

    fn push(&mut self, entry: Entry, reply: Option<Reply>, room: Option<Room>) {
        self.entries.push(entry);
        self.replies.push(reply);
        self.rooms.push(room);
    }

    /// Leaves out what begins an execution, or moves it on, that nobody waits for any more.
    fn forget_given_up(&mut self) {
        let Self { entries, replies, rooms } = std::mem::take(self);
        for ((entry, reply), room) in entries.into_iter().zip(replies).zip(rooms) {
            let is_given_up = entry.may_be_given_up() && reply.as_ref().is_some_and(oneshot::Sender::is_closed);
            if !is_given_up {
                self.push(entry, reply, room);
            }
        }
    }
}

/// How many jobs make one batch.
fn count(jobs: &VecDeque<Job>) -> usize {
    let mut bytes = 0;
    let fitting = jobs.iter().take(BATCH).take_while(|job| {
        let fits = bytes <= BATCH_BYTES;
        bytes += job.bytes();
        fits
    });
    fitting.count()
}

/// What is to be written, and who waits until it is.
async fn encode(jobs: Vec<Job>) -> (Batch, Vec<Reply>) {
    let (mut batch, mut flushes) = (Batch::default(), Vec::new());
    for (index, job) in jobs.into_iter().enumerate() {
        if index % ENCODE == ENCODE - 1 {
            tokio::task::yield_now().await;
        }
        let (entry, reply, room) = match job {
            Job::Flush(reply) => {
                flushes.push(reply);
                continue;
            }
            Job::Durable { entry, reply, room, .. } => (Ok(entry), Some(reply), Some(room)),
            Job::Buffered { record, room } => {
                (Encoded::new(Change::Finish, record).map(Entry::Record), None, Some(room))
            }
            Job::Discard { record } => (Encoded::new(Change::Discard, record).map(Entry::Record), None, None),
        };
        match entry {
            Ok(entry) => batch.push(entry, reply, room),
            Err(fault) => Batch { replies: vec![reply], ..Batch::default() }.fail(&fault.into_error()),
        }
    }
    batch.forget_given_up();
    (batch, flushes)
}
