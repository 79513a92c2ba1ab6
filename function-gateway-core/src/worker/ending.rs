//! What the end of an attempt means for the invocation.

use std::sync::Arc;

use super::attempt::Outcome;
use crate::host::Host;
use crate::route::Serving;
use crate::settle::{Ended, Verdict, verdict};
use crate::submit::queued_record;
use crate::{
    AsyncPolicy, Attempt, Delivery, Due, Error, ErrorKind, Failure, InvocationRecord, InvocationState, InvokeResponse,
    Progress, QueueState, QueuedInvocation, Result, Retry, Settled, Settlement, Submission, TakenInvocation, Timestamp,
    Work,
};

/// What is to become of an invocation that was taken and not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Somebody wants it to end.
    Cancelled,
    /// Nobody knows how its last attempt ended.
    Lost,
    /// It can't be executed.
    Failed,
}

impl Host {
    /// What an attempt's end means: the settle table, applied.
    pub(super) async fn ended(
        &self,
        taken: &TakenInvocation,
        mut progress: Progress,
        outcome: Outcome,
        is_awaited: bool,
    ) -> Result<(Settlement, Result<InvokeResponse>)> {
        let Outcome { serving, mut answer, response, error, record, started_at, is_made } = outcome;
        let (invocation, now) = (&taken.invocation, self.clock.now());
        let submission = &invocation.submission;
        let policy = policy_of(submission, serving.as_deref());
        let number = invocation.attempts + 1;
        let failure = match (&record, &error) {
            (_, Some(error)) => Some(Failure::of(error)),
            (Some(record), None) => record.failure.clone(),
            (None, None) => None,
        };
        if let Some(error) = &error {
            // With its private detail, which no record holds.
            tracing::debug!(id = %submission.id, attempt = number, ?error, "an attempt to execute an invocation has failed");
        }
        let mut attempt = Attempt::new(number, started_at, now);
        attempt.generation = serving.as_ref().map(|serving| serving.revision.generation);
        attempt.status = answer.as_ref().map(|answer| answer.status);
        attempt.failure.clone_from(&failure);
        if let (Some(failure), false) = (&failure, is_awaited) {
            let idempotent = serving.as_ref().is_some_and(|serving| serving.revision.spec.idempotent)
                || matches!(submission.work, Work::Callback { .. });
            let ended = Ended {
                failure,
                kind: error.as_ref().map(Error::kind),
                transient: error.as_ref().is_some_and(Error::is_transient),
                status: attempt.status.filter(|_| error.is_none()),
            };
            let asked = error.as_ref().and_then(Error::retry_after);
            let verdict = verdict(ended, &policy, idempotent);
            let pause = match verdict {
                // The longer it has waited, the longer until it is looked at again: many that wait for a limit don't wear the
                // store out.
                Verdict::Return => policy.pause(now.since(first_due(submission)), asked),
                _ => policy.backoff(number, asked),
            };
            let in_time = now.plus(pause) <= first_due(submission).plus(policy.age());
            let again = match verdict {
                Verdict::Return if in_time => Some(invocation.attempts),
                Verdict::Again if in_time && number < policy.attempts() => Some(number),
                _ => None,
            };
            if let Some(attempts) = again {
                if self.queue()?.cancelled(&[submission.id]).await?.contains(&submission.id) {
                    let message = "the invocation was cancelled before it was tried again";
                    let error = Error::new(ErrorKind::Cancelled, message).with_delivery(failure.delivery);
                    let settlement = self.unsent_with(taken, &error, Claim::Cancelled, progress).await?;
                    return Ok((settlement, Err(error)));
                }
                if is_made && attempts == number {
                    progress.add(attempt);
                }
                progress.failure = Some(failure.clone());
                let settled = Settled::Again { due: Due::In(pause), attempts };
                return Ok((Settlement::new(settled, progress), Err(in_progress_error())));
            }
        }
        if is_made {
            progress.add(attempt);
        }
        // What an earlier attempt may have delivered, a later failure does not undo.
        let failure = failure.map(|failure| after_all_attempts(failure, &progress));
        progress.failure.clone_from(&failure);
        if let Some(answer) = &mut answer {
            answer.failure.clone_from(&failure);
        }
        let is_unsent = failure.as_ref().is_some_and(|failure| failure.delivery == Delivery::NotSent);
        let reply = match (response, error) {
            (_, Some(error)) => Err(error),
            (Some(response), None) => Ok(response),
            (None, None) => Err(Error::new(ErrorKind::Internal, "the invocation has ended without an answer")),
        };
        progress.answer =
            answer.filter(|_| failure.as_ref().is_none_or(|failure| failure.delivery != Delivery::NotSent));
        let record = match (record, &failure) {
            (Some(record), _) => Some(record),
            (None, Some(failure)) => self.final_record(taken, serving.as_deref(), failure).await?,
            (None, None) => None,
        };
        let record = record.map(|record| {
            let mut record = Arc::unwrap_or_clone(with_first_start(record, &progress));
            if let (Some(told), Some(failure)) = (&mut record.failure, &failure) {
                told.delivery = failure.delivery;
            }
            Arc::new(record)
        });
        let cancelled = record.as_ref().is_some_and(|record| record.state == InvocationState::Cancelled);
        let dead = failure.is_some() && !policy.drop_failed && !is_awaited && !cancelled;
        let followers = match &record {
            // A caller who waits for the answer does with it what is to be done.
            Some(record) if !cancelled && !is_awaited => self.followers(submission, &policy, record, &progress).await,
            _ => Vec::new(),
        };
        let settled = Settled::Ended { record, dead, keep_for: self.config.queue.keep_for };
        let mut settlement = Settlement::new(settled, progress);
        settlement.followers = followers;
        // What was not sent may be sent under the same key again.
        settlement.free_key = is_awaited && is_unsent;
        Ok((settlement, reply))
    }

    /// How what was taken and not sent is settled.
    pub(crate) async fn unsent(&self, taken: &TakenInvocation, error: &Error, claim: Claim) -> Result<Settlement> {
        let mut progress = taken.invocation.progress.clone();
        if taken.invocation.state == QueueState::Running {
            progress.add(interrupted(&taken.invocation));
        }
        self.unsent_with(taken, error, claim, progress).await
    }

    async fn unsent_with(
        &self,
        taken: &TakenInvocation,
        error: &Error,
        claim: Claim,
        mut progress: Progress,
    ) -> Result<Settlement> {
        let submission = &taken.invocation.submission;
        let failure = after_all_attempts(Failure::of(error), &progress);
        progress.failure = Some(failure.clone());
        let policy = self.policy_for(submission).await?;
        let record = match submission.work {
            Work::Invoke => self.final_record(taken, None, &failure).await?,
            Work::Callback { .. } => None,
        };
        let record = record.map(|record| with_first_start(record, &progress));
        let follows = claim == Claim::Lost;
        let followers = match &record {
            Some(record) if follows => self.followers(submission, &policy, record, &progress).await,
            _ => Vec::new(),
        };
        let dead = claim != Claim::Cancelled && !policy.drop_failed;
        let settled = Settled::Ended { record, dead, keep_for: self.config.queue.keep_for };
        let mut settlement = Settlement::new(settled, progress);
        settlement.followers = followers;
        Ok(settlement)
    }

    /// How an invocation is tried, as far as that can be told. An error where the store fails: the invocation is taken again, and
    /// it may be told then.
    pub(super) async fn policy_for(&self, submission: &Submission) -> Result<AsyncPolicy> {
        match self.serving_for(submission).await {
            Ok(serving) => Ok(policy_of(submission, Some(&serving))),
            Err(error) if error.kind() == ErrorKind::Store => Err(error),
            Err(_) => Ok(policy_of(submission, None)),
        }
    }

    /// The final record of an invocation that no attempt has left one of.
    async fn final_record(
        &self,
        taken: &TakenInvocation,
        serving: Option<&Serving>,
        failure: &Failure,
    ) -> Result<Option<Arc<InvocationRecord>>> {
        let invocation = &taken.invocation;
        let submission = &invocation.submission;
        if submission.work != Work::Invoke {
            return Ok(None);
        }
        let known = self.invocations.get(&submission.key.tenant, submission.id).await?;
        let mut record = match (known, serving) {
            (Some(known), _) => InvocationRecord::clone(&known),
            (None, serving) => queued_record(submission, serving.map(|serving| &*serving.revision)),
        };
        record.state = match failure.code.as_str() {
            code if code == ErrorKind::Lost.code() => InvocationState::Lost,
            code if code == ErrorKind::Cancelled.code() => InvocationState::Cancelled,
            code if code == ErrorKind::DeadlineExceeded.code() => InvocationState::TimedOut,
            _ => InvocationState::Failed,
        };
        record.attempts = invocation.attempts;
        record.failure = Some(failure.clone());
        record.finished_at = Some(self.clock.now().max(record.created_at));
        Ok(Some(Arc::new(record)))
    }
}

pub(super) fn policy_of(submission: &Submission, serving: Option<&Serving>) -> AsyncPolicy {
    let own = submission.policy.clone();
    let of_function = || serving.and_then(|serving| serving.revision.spec.async_policy.as_deref().cloned());
    own.or_else(of_function).unwrap_or_default()
}

fn first_due(submission: &Submission) -> Timestamp {
    submission.not_before.unwrap_or(submission.created_at)
}

/// Why no further attempt is made.
pub(super) fn too_late(invocation: &QueuedInvocation, policy: &AsyncPolicy, now: Timestamp) -> Option<Error> {
    let exhausted = |message: String| {
        let error = Error::new(ErrorKind::DeadlineExceeded, message);
        Some(error.with_retry(Retry::Exhausted).with_delivery(Delivery::NotSent))
    };
    if now > first_due(&invocation.submission).plus(policy.age()) {
        return exhausted(format!("the invocation is older than its max_age_ms ({})", policy.age().as_millis()));
    }
    if invocation.attempts >= policy.attempts() {
        return exhausted(format!("all {} attempts were made", policy.attempts()));
    }
    None
}

pub(crate) fn lost() -> Error {
    let message = "the gateway that executed it died or was stopped, and nobody knows how it ended";
    // Where it may be repeated, that is worth while.
    Error::new(ErrorKind::Lost, message).with_retry(Retry::Transient)
}

/// The attempt of which nobody knows how it ended. Its times are that at which its lease ran out.
pub(super) fn interrupted(invocation: &QueuedInvocation) -> Attempt {
    let at = invocation.due_at.unwrap_or(invocation.submission.created_at);
    let mut attempt = Attempt::new(invocation.attempts, at, at);
    let error = lost();
    attempt.failure = Some(Failure::of(&error));
    attempt
}

fn in_progress_error() -> Error {
    Error::new(ErrorKind::InProgress, "the invocation is tried again")
}

fn with_first_start(record: Arc<InvocationRecord>, progress: &Progress) -> Arc<InvocationRecord> {
    let Some(first) = progress.attempts.first().filter(|first| first.number == 1) else { return record };
    let mut record = Arc::unwrap_or_clone(record);
    if record.started_at.is_some_and(|started| started > first.started_at) {
        record.started_at = Some(first.started_at);
    }
    Arc::new(record)
}

/// A failure after attempts of which one may have reached the function.
fn after_all_attempts(mut failure: Failure, progress: &Progress) -> Failure {
    let before =
        progress.attempts.iter().filter_map(|attempt| attempt.failure.as_ref()).map(|failure| failure.delivery);
    failure.delivery = before.max().map_or(failure.delivery, |before| before.max(failure.delivery));
    failure
}
