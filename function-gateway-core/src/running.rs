//! The calls that run in this process and whose log can be read meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::{CallState, Error, ErrorKind, InvocationId, PrincipalId, Result, Revision, TenantId};

/// The calls that run, by their ids. Clones are handles to the same list.
///
/// One lock is enough: it is held for a look-up, twice in a call, and only of calls whose driver tells their log.
#[derive(Clone, Default)]
pub(crate) struct RunningCalls(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    /// A caller may bring an id twice, so the id alone names no call.
    calls: BTreeMap<Key, RunningCall>,
    /// Those who wait for attempts of an invocation.
    followers: BTreeMap<Key, mpsc::Sender<RunningCall>>,
    next: u64,
}

type Key = (InvocationId, u64);

fn keys_of(id: InvocationId) -> RangeInclusive<Key> {
    (id, 0)..=(id, u64::MAX)
}

impl List {
    fn next(&mut self, id: InvocationId) -> Key {
        self.next += 1;
        (id, self.next)
    }
}

/// A call that runs.
#[derive(Clone)]
pub(crate) struct RunningCall {
    /// The revision that it was routed to.
    pub(crate) revision: Arc<Revision>,
    pub(crate) state: Arc<CallState>,
    /// Who submitted it, where somebody did.
    pub(crate) submitter: Option<PrincipalId>,
}

impl RunningCalls {
    /// Lists a call for as long as what it gives is held.
    pub(crate) fn enter(
        &self,
        revision: &Arc<Revision>,
        state: &Arc<CallState>,
        submitter: Option<PrincipalId>,
    ) -> Running {
        let call = RunningCall { revision: Arc::clone(revision), state: Arc::clone(state), submitter };
        let mut list = self.list();
        let key = list.next(state.id);
        if call.submitter.is_some() && !list.followers.is_empty() {
            let followers = list.followers.extract_if(keys_of(state.id), |_, follower| {
                // Who has let too many pass is told so.
                follower.try_send(call.clone()).is_err()
            });
            followers.for_each(drop);
        }
        list.calls.insert(key, call);
        drop(list);
        Running { calls: self.clone(), key, state: Arc::clone(state) }
    }

    /// A tenant's call of an id: what the reader has submitted, or the one that came last.
    pub(crate) fn find(&self, tenant: &TenantId, id: InvocationId, reader: &PrincipalId) -> Option<RunningCall> {
        let list = self.list();
        let same_id = list.calls.range(keys_of(id)).map(|(_, call)| call);
        let of_tenant = same_id.filter(|call| call.revision.key.tenant == *tenant);
        of_tenant.max_by_key(|call| call.submitter.as_ref() == Some(reader)).cloned()
    }

    /// The attempts of an invocation that was submitted, those that run and those to come.
    pub(crate) fn follow(&self, id: InvocationId) -> Attempts {
        let (sender, attempts) = mpsc::channel(Attempts::MOST);
        let mut list = self.list();
        let key = list.next(id);
        for (_, call) in list.calls.range(keys_of(id)).filter(|(_, call)| call.submitter.is_some()) {
            let _ = sender.try_send(call.clone());
        }
        list.followers.insert(key, sender);
        drop(list);
        Attempts { calls: self.clone(), key, attempts }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RunningCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RunningCalls").field(&self.list().calls.len()).finish()
    }
}

/// Keeps a call on the list. Dropped at the end of the call, it closes the call's log.
pub(crate) struct Running {
    calls: RunningCalls,
    key: Key,
    state: Arc<CallState>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Before it leaves the list, so that nobody finds a call here that has ended and whose log goes on.
        let _ = self.state.close_logs();
        let left = self.calls.list().calls.remove(&self.key);
        // Freed outside of the lock.
        drop(left);
    }
}

/// Attempts of one invocation, in the order in which they began.
pub(crate) struct Attempts {
    calls: RunningCalls,
    key: Key,
    attempts: mpsc::Receiver<RunningCall>,
}

impl Attempts {
    /// How many may wait for a reader who stands still: each holds its log.
    const MOST: usize = 16;

    /// Waits for the next one. An error where more have begun than may wait. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<RunningCall> {
        self.attempts.recv().await.ok_or_else(too_slow)
    }

    /// As [`next`](Self::next), where it has begun already.
    pub(crate) fn begun(&mut self) -> Result<Option<RunningCall>> {
        match self.attempts.try_recv() {
            Ok(call) => Ok(Some(call)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(too_slow()),
        }
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        self.calls.list().followers.remove(&self.key);
    }
}

fn too_slow() -> Error {
    let message = "the reader of the log did not read on, and more attempts have begun than may wait";
    Error::new(ErrorKind::Cancelled, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CustomWorkload, FunctionId, FunctionKey, FunctionSpec, Generation, RevisionReason, Timestamp};

    fn revision(tenant: &str) -> Arc<Revision> {
        let key = FunctionKey::new(tenant.parse().unwrap(), "f".parse().unwrap());
        let spec = FunctionSpec::new("local".parse().unwrap(), CustomWorkload::new("x", serde_json::Value::Null));
        let ada: PrincipalId = "ada".parse().unwrap();
        let created = (Timestamp::now(), ada);
        Arc::new(Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, RevisionReason::Created))
    }

    fn call(id: InvocationId) -> Arc<CallState> {
        Arc::new(CallState::new(id, Timestamp::now(), 100))
    }

    #[test]
    fn calls_of_one_id_are_told_apart() {
        let calls = RunningCalls::default();
        let id = InvocationId::generate();
        let (acme, other) = (revision("acme"), revision("other"));
        let [first, second, foreign] = [call(id), call(id), call(id)];
        let ada = "ada".parse().unwrap();
        let found = |tenant: &Arc<Revision>| calls.find(&tenant.key.tenant, id, &ada).map(|call| call.state);
        let is = |state: Option<Arc<CallState>>, expected: &Arc<CallState>| {
            assert!(Arc::ptr_eq(&state.unwrap(), expected));
        };

        let running = [(&acme, &first), (&acme, &second), (&other, &foreign)];
        let running = running.map(|(revision, state)| calls.enter(revision, state, None));
        let _neighbour = calls.enter(&acme, &call(InvocationId::generate()), None);
        is(found(&acme), &second);
        is(found(&other), &foreign);
        let [running_first, running_second, running_foreign] = running;
        drop(running_second);
        is(found(&acme), &first);
        drop(running_first);
        assert!(found(&acme).is_none());
        is(found(&other), &foreign);
        drop(running_foreign);
        assert!(found(&other).is_none());
        assert_eq!(format!("{calls:?}"), "RunningCalls(1)");
    }
}
