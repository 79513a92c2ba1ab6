//! Invocations that are executed later.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;

use super::records::Records;
use super::{MemoryStoreOptions, page};
use crate::queue::{idempotency_mismatch, not_dead, not_queued, queue_lease_lost};
use crate::store::page::{invalid_cursor, place_in_time, read_place_in_time};
use crate::store::{check_begin, check_finish};
use crate::{
    Acceptance, Accepted, Cancelling, CursorKind, DeadLetterFilter, Dispatch, Due, Error, ErrorKind, FunctionId,
    FunctionKey, FunctionName, Generation, InvocationId, InvocationState, Page, PageRequest, QueueDepth, QueueLease,
    QueueState, QueuedInvocation, Result, Retry, Settled, Settlement, Submission, TakeRequest, Taken, TakenInvocation,
    TenantId, Timestamp,
};

/// The place of an invocation among others, by a time.
type Place = (Timestamp, InvocationId);

/// An invocation as it stands.
#[derive(Debug)]
struct Item {
    invocation: Arc<QueuedInvocation>,
    /// How often it was taken.
    epoch: u64,
    /// What its last dispatch said about executing it twice.
    repeatable: bool,
    /// Whether it was accepted with a record.
    recorded: bool,
}

impl Item {
    fn id(&self) -> InvocationId {
        self.invocation.submission.id
    }

    fn key(&self) -> &FunctionKey {
        &self.invocation.submission.key
    }

    /// The place among what is due, which all that is open has.
    fn due(&self) -> Option<Place> {
        self.invocation.due_at.map(|at| (at, self.id()))
    }

    /// The place among dead letters.
    fn death(&self) -> Option<Place> {
        self.invocation.ended_at.filter(|_| self.invocation.state == QueueState::Dead).map(|at| (at, self.id()))
    }

    /// The place among what is forgotten at a time.
    fn expiry(&self) -> Option<Place> {
        self.invocation.expires_at.map(|at| (at, self.id()))
    }

    fn bytes(&self) -> u64 {
        let answer = self.invocation.progress.answer.as_ref().and_then(|answer| answer.body.as_ref());
        bytes(self.invocation.submission.payload.len()) + bytes(answer.map_or(0, |body| body.len()))
    }

    /// Gives it to somebody for a time.
    fn lease(&mut self, lease: Duration, now: Timestamp) -> QueueLease {
        self.epoch += 1;
        let invocation = Arc::make_mut(&mut self.invocation);
        if invocation.state == QueueState::Waiting {
            invocation.state = QueueState::Leased;
        }
        invocation.due_at = Some(end_of_lease(lease, now));
        QueueLease::new(self.id(), self.epoch)
    }
}

fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A lease ends later than it begins, so that nothing is taken twice at a time.
fn end_of_lease(lease: Duration, now: Timestamp) -> Timestamp {
    now.plus(lease.max(Duration::from_micros(1)))
}

fn time_of(due: Due, now: Timestamp) -> Timestamp {
    match due {
        Due::Now => now,
        Due::In(wait) => now.plus(wait),
        Due::At(at) => at,
    }
}

/// An invocation as it is listed, without what may be large.
pub(super) fn without_bodies(invocation: &QueuedInvocation) -> QueuedInvocation {
    let mut listed = invocation.clone();
    Arc::make_mut(&mut listed.submission).payload.clear();
    if let Some(answer) = &mut listed.progress.answer {
        answer.body = None;
    }
    listed
}

/// Where a tenant waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filed {
    /// Among those that have something due.
    Ready,
    /// Among those that will have at a time.
    Later(Timestamp),
}

/// What there is of a tenant.
#[derive(Debug, Default)]
struct Tenant {
    filed: Option<Filed>,
    /// All that is open.
    due: BTreeSet<Place>,
    dead: BTreeSet<Place>,
    functions: HashMap<FunctionName, Named>,
}

/// What there is of functions of a name.
#[derive(Debug, Default)]
struct Named {
    /// How many invocations, in whatever state.
    count: usize,
    open: u64,
    dead: BTreeSet<Place>,
    keys: HashMap<String, InvocationId>,
}

/// All accepted invocations.
///
/// A step takes an invocation out of all indexes, changes it, and puts it in again.
#[derive(Debug)]
pub(super) struct Queue {
    max: usize,
    max_bytes: u64,
    by_id: HashMap<InvocationId, Item>,
    tenants: HashMap<TenantId, Tenant>,
    /// Tenants with something that is due, in the order of their turns.
    ready: BTreeSet<TenantId>,
    /// All others with something that is open.
    later: BTreeSet<(Timestamp, TenantId)>,
    /// Who had the last turn.
    last_served: Option<TenantId>,
    /// How much of what is open is pinned.
    pinned: HashMap<FunctionId, BTreeMap<Generation, u64>>,
    /// What is forgotten at a time.
    expiring: BTreeSet<Place>,
    /// How many bytes of payloads and answers there are.
    bytes: u64,
    /// How many of those are of what is forgotten at a time.
    expiring_bytes: u64,
}

impl Queue {
    pub(super) fn new(options: &MemoryStoreOptions) -> Self {
        Self {
            max: options.max_queued,
            max_bytes: options.max_queue_bytes,
            by_id: HashMap::default(),
            tenants: HashMap::default(),
            ready: BTreeSet::new(),
            later: BTreeSet::new(),
            last_served: None,
            pinned: HashMap::default(),
            expiring: BTreeSet::new(),
            bytes: 0,
            expiring_bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Puts an invocation into all indexes.
    fn put(&mut self, item: Item, now: Timestamp) {
        let (id, key) = (item.id(), item.key().clone());
        let submission = &item.invocation.submission;
        self.bytes += item.bytes();
        if let Some(place) = item.expiry() {
            self.expiring.insert(place);
            self.expiring_bytes += item.bytes();
        }
        let tenant = self.tenants.entry(key.tenant.clone()).or_default();
        let named = tenant.functions.entry(key.name).or_default();
        named.count += 1;
        tenant.dead.extend(item.death());
        named.dead.extend(item.death());
        if let Some(key) = &submission.idempotency {
            named.keys.insert(key.key.clone(), id);
        }
        if let Some(due) = item.due() {
            tenant.due.insert(due);
            named.open += 1;
            if submission.pinned {
                *self.pinned.entry(submission.function).or_default().entry(submission.generation).or_insert(0) += 1;
            }
        }
        self.by_id.insert(id, item);
        self.file(&key.tenant, now);
    }

    /// Takes an invocation out of all indexes.
    fn take_out(&mut self, id: InvocationId, now: Timestamp) -> Option<Item> {
        let item = self.by_id.remove(&id)?;
        let (key, submission) = (item.key(), &item.invocation.submission);
        self.bytes = self.bytes.saturating_sub(item.bytes());
        if let Some(place) = item.expiry() {
            self.expiring.remove(&place);
            self.expiring_bytes = self.expiring_bytes.saturating_sub(item.bytes());
        }
        if item.due().is_some() && submission.pinned {
            self.unpin(submission.function, submission.generation);
        }
        if let Some(tenant) = self.tenants.get_mut(&key.tenant) {
            tenant.take_out(&item);
            self.file(&key.tenant, now);
        }
        Some(item)
    }

    fn unpin(&mut self, function: FunctionId, generation: Generation) {
        let Entry::Occupied(mut generations) = self.pinned.entry(function) else { return };
        if let Some(count) = generations.get_mut().get_mut(&generation) {
            *count = count.saturating_sub(1);
        }
        generations.get_mut().retain(|_, count| *count > 0);
        if generations.get().is_empty() {
            generations.remove();
        }
    }

    /// Has a tenant wait where what it has belongs.
    fn file(&mut self, tenant: &TenantId, now: Timestamp) {
        let Entry::Occupied(mut entry) = self.tenants.entry(tenant.clone()) else { return };
        let first = entry.get().due.first().map(|(at, _)| *at);
        let place = first.map(|at| if at <= now { Filed::Ready } else { Filed::Later(at) });
        let before = std::mem::replace(&mut entry.get_mut().filed, place);
        if entry.get().functions.is_empty() {
            entry.remove();
        }
        if before == place {
            return;
        }
        match before {
            Some(Filed::Ready) => self.ready.remove(tenant),
            Some(Filed::Later(at)) => self.later.remove(&(at, tenant.clone())),
            None => false,
        };
        match place {
            Some(Filed::Ready) => self.ready.insert(tenant.clone()),
            Some(Filed::Later(at)) => self.later.insert((at, tenant.clone())),
            None => false,
        };
    }

    /// Forgets what would be forgotten next. Says whether there was anything.
    fn forget_one(&mut self, now: Timestamp) -> bool {
        let first = self.expiring.first().copied();
        first.is_some_and(|(_, id)| self.take_out(id, now).is_some())
    }

    /// Forgets what has ended until there is room for one more, if that makes room.
    fn make_room(&mut self, payload: u64, now: Timestamp) -> Result<()> {
        let full = |message: String| Err(Error::new(ErrorKind::Store, message).with_retry(Retry::Never));
        let (count, max_bytes) = (self.len() - self.expiring.len(), self.max_bytes);
        if count >= self.max {
            return full(format!("the store is full: {count} invocations wait, run or are dead (max_queued)"));
        }
        if self.lasting_bytes().saturating_add(payload) > max_bytes {
            return full(format!("the store is full: its queue keeps {max_bytes} bytes (max_queue_bytes)"));
        }
        while (self.len() >= self.max || self.bytes.saturating_add(payload) > max_bytes) && self.forget_one(now) {}
        Ok(())
    }

    /// How many bytes there are of what is not forgotten to make room.
    fn lasting_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.expiring_bytes)
    }

    fn of_tenant(&self, tenant: &TenantId, id: InvocationId) -> Result<&Item> {
        self.by_id.get(&id).filter(|item| item.key().tenant == *tenant).ok_or_else(|| not_queued(id))
    }

    fn named(&self, key: &FunctionKey) -> Option<&Named> {
        self.tenants.get(&key.tenant)?.functions.get(&key.name)
    }

    /// What the function was sent before under a submission's key.
    fn known(&self, submission: &Submission) -> Result<Option<Arc<QueuedInvocation>>> {
        let Some(key) = &submission.idempotency else { return Ok(None) };
        let id = self.named(&submission.key).and_then(|named| named.keys.get(&key.key));
        let Some(item) = id.and_then(|id| self.by_id.get(id)) else { return Ok(None) };
        let first = item.invocation.submission.idempotency.as_ref();
        match first.is_some_and(|first| first.fingerprint == key.fingerprint) {
            true => Ok(Some(item.invocation.clone())),
            false => Err(idempotency_mismatch(&key.key)),
        }
    }

    /// Whether an id is free, and all limits leave room.
    fn check_new(&mut self, acceptance: &Acceptance, records: &Records, now: Timestamp) -> Result<()> {
        let Acceptance { submission, record, limits, .. } = acceptance;
        if self.by_id.contains_key(&submission.id) || records.contains(submission.id) {
            let error = Error::new(ErrorKind::AlreadyExists, "there is an invocation of this id already");
            return Err(error.with_context("invocation", submission.id.to_string()));
        }
        record.as_deref().map(check_begin).transpose()?;
        let of_function = self.named(&submission.key).map_or(0, |named| named.open);
        let of_tenant = self.tenants.get(&submission.key.tenant).map_or(0, |tenant| bytes(tenant.due.len()));
        let pins = || self.pinned.get(&submission.function).map_or(0, |pinned| pinned.values().sum());
        limits.check(of_function, of_tenant, submission.pinned.then(pins))?;
        self.make_room(bytes(submission.payload.len()), now)
    }

    /// Keeps a new invocation and its record.
    fn add(&mut self, acceptance: Acceptance, records: &mut Records, now: Timestamp) -> Result<Option<QueueLease>> {
        let Acceptance { submission, record, due, lease, .. } = acceptance;
        let recorded = record.is_some();
        if let Some(record) = record {
            records.accept(record)?;
        }
        let invocation = Arc::new(QueuedInvocation::waiting(submission, time_of(due, now)));
        let mut item = Item { invocation, epoch: 0, repeatable: false, recorded };
        let lease = lease.map(|lease| item.lease(lease, now));
        self.put(item, now);
        Ok(lease)
    }

    pub(super) fn accept(&mut self, acceptance: Acceptance, records: &mut Records, now: Timestamp) -> Result<Accepted> {
        if let Some(known) = self.known(&acceptance.submission)? {
            return Ok(Accepted::Known(known));
        }
        self.check_new(&acceptance, records, now)?;
        Ok(Accepted::New { lease: self.add(acceptance, records, now)? })
    }

    pub(super) fn take(&mut self, request: &TakeRequest, now: Timestamp) -> Taken {
        while let Some((_, tenant)) = self.later.first().filter(|(at, _)| *at <= now).cloned() {
            self.file(&tenant, now);
        }
        let mut items = Vec::new();
        let mut counts: HashMap<TenantId, usize> = HashMap::default();
        let mut had_enough = Vec::new();
        while items.len() < request.limit
            && let Some(tenant) = self.next_in_turn()
        {
            let count = counts.entry(tenant.clone()).or_insert(0);
            if *count >= request.per_tenant {
                self.ready.remove(&tenant);
                had_enough.push(tenant);
                continue;
            }
            *count += 1;
            items.extend(self.take_first(&tenant, request.lease, now));
            self.last_served = Some(tenant);
        }
        self.ready.extend(had_enough);
        let next_due = match self.ready.is_empty() {
            true => self.later.first().map(|(at, _)| at.since(now)),
            false => Some(Duration::ZERO),
        };
        Taken::new(items, next_due)
    }

    fn next_in_turn(&self) -> Option<TenantId> {
        let after = self.last_served.clone().map_or(Bound::Unbounded, Bound::Excluded);
        self.ready.range((after, Bound::Unbounded)).next().or_else(|| self.ready.first()).cloned()
    }

    /// Takes what a tenant has that is due first. Nothing is due where the clock was set back.
    fn take_first(&mut self, tenant: &TenantId, lease: Duration, now: Timestamp) -> Option<TakenInvocation> {
        self.file(tenant, now);
        let (_, id) = *self.tenants.get(tenant)?.due.first().filter(|(at, _)| *at <= now)?;
        self.give(id, lease, now)
    }

    /// Gives an invocation that is open to somebody for a time.
    fn give(&mut self, id: InvocationId, lease: Duration, now: Timestamp) -> Option<TakenInvocation> {
        let mut item = self.take_out(id, now)?;
        let before = QueuedInvocation::clone(&item.invocation);
        let taken = TakenInvocation::new(item.lease(lease, now), before, item.repeatable);
        self.put(item, now);
        Some(taken)
    }

    /// Takes out what somebody has a lease of.
    fn take_held(&mut self, lease: &QueueLease, now: Timestamp) -> Result<Item> {
        let is_held = |item: &Item| {
            item.epoch == lease.epoch
                && matches!(item.invocation.state, QueueState::Leased | QueueState::Running)
                && item.invocation.due_at.is_some_and(|end| end > now)
        };
        let held = self.by_id.get(&lease.id).is_some_and(is_held);
        held.then(|| self.take_out(lease.id, now)).flatten().ok_or_else(|| queue_lease_lost(lease.id))
    }

    pub(super) fn dispatch(
        &mut self,
        lease: &QueueLease,
        dispatch: Dispatch,
        records: &mut Records,
        now: Timestamp,
    ) -> Result<()> {
        let mut item = self.take_held(lease, now)?;
        item.repeatable = dispatch.repeatable;
        let invocation = Arc::make_mut(&mut item.invocation);
        invocation.state = QueueState::Running;
        invocation.attempts = dispatch.attempt;
        invocation.due_at = Some(end_of_lease(dispatch.lease, now));
        self.put(item, now);
        records.set_state(lease.id, InvocationState::Running);
        Ok(())
    }

    pub(super) fn settle(
        &mut self,
        lease: &QueueLease,
        settlement: Settlement,
        records: &mut Records,
        now: Timestamp,
    ) -> Result<()> {
        let Settlement { settled, progress, followers } = settlement;
        followers.iter().filter_map(|follower| follower.record.as_deref()).try_for_each(check_begin)?;
        if let Settled::Ended { record: Some(record), .. } = &settled {
            check_finish(record)?;
        }
        let mut item = self.take_held(lease, now)?;
        let recorded = item.recorded;
        let invocation = Arc::make_mut(&mut item.invocation);
        invocation.progress = progress;
        match settled {
            Settled::Again { due, attempts } => {
                invocation.state = QueueState::Waiting;
                invocation.attempts = attempts;
                invocation.due_at = Some(time_of(due, now));
                records.set_state(lease.id, InvocationState::Queued);
            }
            Settled::Ended { record, dead, keep_for } => {
                invocation.state = if dead { QueueState::Dead } else { QueueState::Done };
                invocation.due_at = None;
                invocation.ended_at = Some(now);
                invocation.expires_at = (!dead).then(|| now.plus(keep_for));
                records.end(record, recorded);
            }
        }
        self.put_with_answer(item, now);
        for follower in followers {
            let is_known = self.known(&follower.submission).map_or(true, |known| known.is_some());
            if !is_known
                && !self.by_id.contains_key(&follower.submission.id)
                && !records.contains(follower.submission.id)
            {
                self.add(Acceptance { lease: None, ..follower }, records, now)?;
            }
        }
        Ok(())
    }

    /// Puts an invocation in whose answer is new. Where nothing makes room for that, its body is not kept.
    fn put_with_answer(&mut self, mut item: Item, now: Timestamp) {
        if self.lasting_bytes().saturating_add(item.bytes()) > self.max_bytes
            && let Some(answer) = &mut Arc::make_mut(&mut item.invocation).progress.answer
        {
            answer.body = None;
        }
        while self.bytes.saturating_add(item.bytes()) > self.max_bytes && self.forget_one(now) {}
        self.put(item, now);
    }

    pub(super) fn cancel(
        &mut self,
        tenant: &TenantId,
        id: InvocationId,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Cancelling> {
        let state = self.of_tenant(tenant, id)?.invocation.state;
        if !state.is_open() {
            return Ok(Cancelling::Ended);
        }
        if let Some(item) = self.by_id.get_mut(&id) {
            Arc::make_mut(&mut item.invocation).cancel_requested = true;
        }
        if state != QueueState::Waiting {
            return Ok(Cancelling::Requested);
        }
        let taken = self.give(id, lease, now).ok_or_else(|| not_queued(id))?;
        Ok(Cancelling::Taken(Box::new(taken)))
    }

    pub(super) fn cancelled(&self, ids: &[InvocationId]) -> Vec<InvocationId> {
        let is_to_end = |item: &Item| item.invocation.cancel_requested && item.invocation.state.is_open();
        ids.iter().filter(|id| self.by_id.get(id).is_some_and(is_to_end)).copied().collect()
    }

    pub(super) fn get(&self, tenant: &TenantId, id: InvocationId) -> Option<Arc<QueuedInvocation>> {
        self.of_tenant(tenant, id).ok().map(|item| item.invocation.clone())
    }

    /// Reads dead letters as they are.
    pub(super) fn dead_letters(
        &self,
        tenant: &TenantId,
        filter: &DeadLetterFilter,
        request: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>> {
        let end = match request.key(CursorKind::DeadLetters)? {
            Some(after) => Bound::Excluded(read_place_in_time(&after).ok_or_else(invalid_cursor)?),
            None => Bound::Unbounded,
        };
        let tenant = self.tenants.get(tenant);
        let dead = match &filter.name {
            Some(name) => tenant.and_then(|tenant| tenant.functions.get(name)).map(|named| &named.dead),
            None => tenant.map(|tenant| &tenant.dead),
        };
        let places = dead.into_iter().flat_map(|dead| dead.range((Bound::Unbounded, end)).rev());
        let found = places.filter_map(|(at, id)| Some((*at, self.by_id.get(id)?)));
        let Page { items, next, .. } =
            page(found, request, CursorKind::DeadLetters, |(at, item)| place_in_time(*at, item.id()));
        Ok(Page::new(items.into_iter().map(|(_, item)| item.invocation.clone()).collect(), next))
    }

    pub(super) fn redrive(
        &mut self,
        tenant: &TenantId,
        id: InvocationId,
        acceptance: Acceptance,
        keep_for: Duration,
        records: &mut Records,
        now: Timestamp,
    ) -> Result<()> {
        self.check_dead(tenant, id)?;
        if self.known(&acceptance.submission)?.is_some() {
            let message = "the function was sent the same under this idempotency key before";
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        self.check_new(&acceptance, records, now)?;
        let successor = acceptance.submission.id;
        self.add(acceptance, records, now)?;
        if let Some(mut item) = self.take_out(id, now) {
            let invocation = Arc::make_mut(&mut item.invocation);
            invocation.state = QueueState::Redriven;
            invocation.progress.redriven_as = Some(successor);
            invocation.expires_at = Some(now.plus(keep_for));
            self.put(item, now);
        }
        Ok(())
    }

    fn check_dead(&self, tenant: &TenantId, id: InvocationId) -> Result<()> {
        match self.of_tenant(tenant, id)?.invocation.state {
            QueueState::Dead => Ok(()),
            _ => Err(not_dead(id)),
        }
    }

    pub(super) fn purge(&mut self, tenant: &TenantId, id: InvocationId, now: Timestamp) -> Result<()> {
        self.check_dead(tenant, id)?;
        self.take_out(id, now);
        Ok(())
    }

    pub(super) fn depth(&self, tenant: &TenantId, name: Option<&FunctionName>) -> QueueDepth {
        let Some(tenant) = self.tenants.get(tenant) else { return QueueDepth::default() };
        match name {
            Some(name) => tenant
                .functions
                .get(name)
                .map_or_else(QueueDepth::default, |named| QueueDepth::new(named.open, bytes(named.dead.len()))),
            None => QueueDepth::new(bytes(tenant.due.len()), bytes(tenant.dead.len())),
        }
    }

    pub(super) fn pinned(&self, function: FunctionId, generation: Generation) -> u64 {
        self.pinned.get(&function).and_then(|generations| generations.get(&generation)).copied().unwrap_or(0)
    }

    pub(super) fn expire(&mut self, limit: usize, now: Timestamp) -> u64 {
        let mut forgotten = 0;
        while forgotten < limit && self.expiring.first().is_some_and(|(at, _)| *at <= now) && self.forget_one(now) {
            forgotten += 1;
        }
        bytes(forgotten)
    }
}

impl Tenant {
    /// Takes an invocation out of what there is.
    fn take_out(&mut self, item: &Item) {
        let Entry::Occupied(mut named) = self.functions.entry(item.key().name.clone()) else { return };
        named.get_mut().count -= 1;
        if let Some(place) = item.death() {
            self.dead.remove(&place);
            named.get_mut().dead.remove(&place);
        }
        if let Some(key) = &item.invocation.submission.idempotency {
            named.get_mut().keys.remove(&key.key);
        }
        if let Some(place) = item.due() {
            self.due.remove(&place);
            named.get_mut().open -= 1;
        }
        if named.get().count == 0 {
            named.remove();
        }
    }
}

#[cfg(test)]
mod tests;
