//! The log of a generation: that of the function's container in each of its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::{BoxStream, LogLine, LogQuery, Result, Timestamp};
use futures_util::stream::{self, SelectAll, StreamExt as _};

use crate::api::{self, List, Pod, label};
use crate::client::{Client, Lines, Manage};
use crate::mapping::CONTAINER;
use crate::names::Target;

/// How often is looked for new pods of a log that is followed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Reads a generation's log. At zero there is no pod, and so no log. What several pods say is told as it comes; one after the other where it
/// is not followed.
pub(crate) async fn read<'a>(
    client: &'a Client,
    target: Target<'a>,
    query: LogQuery,
) -> Result<BoxStream<'a, Result<LogLine>>> {
    let mut reader = Reader {
        client,
        target,
        query,
        open: SelectAll::new(),
        reading: BTreeSet::new(),
        last: BTreeMap::new(),
        before: BTreeMap::new(),
        failed: None,
    };
    reader.look().await?;
    Ok(Box::pin(stream::unfold(reader, |mut reader| async move {
        let next = reader.next().await?;
        Some((next, reader))
    })))
}

struct Reader<'a> {
    client: &'a Client,
    target: Target<'a>,
    query: LogQuery,
    open: SelectAll<BoxStream<'a, (String, Option<Result<Bytes>>)>>,
    /// The pods that are read now.
    reading: BTreeSet<String>,
    /// When the last line was logged that was told of a pod: its log is asked for on from there.
    last: BTreeMap<String, Timestamp>,
    /// The same, as it was when the log of a pod was opened again: what is not newer was told before.
    before: BTreeMap<String, Timestamp>,
    failed: Option<function_gateway_core::Error>,
}

impl Reader<'_> {
    /// Opens the logs of pods that are not read yet.
    async fn look(&mut self) -> Result<()> {
        let selector = format!("{}={}", label::OF_REVISION, self.target.revision());
        let request = Manage::get(api::pods(self.target.namespace)).with("labelSelector", Some(selector));
        let answer = self.client.send(&request).await?;
        if !answer.is_done() {
            return Err(answer.error());
        }
        let pods = answer.json::<List<Pod>>()?.items.into_iter().map(|pod| pod.metadata.name);
        let names: BTreeSet<_> = pods.filter(|name| !self.reading.contains(name)).collect();
        for name in names {
            let request = self.request(&name);
            match opened(self.client, &request).await {
                Ok(Some(lines)) => {
                    self.before.extend(self.last.get(&name).map(|last| (name.clone(), *last)));
                    self.reading.insert(name.clone());
                    self.open.push(told(name, lines));
                }
                Ok(None) => {}
                Err(error) => return Err(error.with_context("pod", name)),
            }
        }
        Ok(())
    }

    fn request(&self, pod: &str) -> Manage {
        let is_new = !self.last.contains_key(pod);
        Manage::get(format!("{}/{pod}/log", api::pods(self.target.namespace)))
            .with("container", Some(CONTAINER))
            .with("timestamps", Some("true"))
            .with("sinceTime", self.since(pod).map(|since| since.to_string()))
            .with("tailLines", self.query.tail.filter(|_| is_new).map(|lines| lines.to_string()))
            .with("follow", self.query.follow.then_some("true"))
    }

    async fn next(&mut self) -> Option<Result<LogLine>> {
        loop {
            if let Some(error) = self.failed.take() {
                return Some(Err(error));
            }
            let told = match self.query.follow {
                true => tokio::time::timeout(LOOK_AGAIN, self.open.next()).await,
                false => Ok(self.open.next().await),
            };
            match told {
                Ok(Some((pod, Some(Ok(line))))) => {
                    if let Some(line) = self.line(&pod, &line) {
                        return Some(Ok(line));
                    }
                }
                Ok(Some((_, Some(Err(error))))) if !self.query.follow => return Some(Err(error)),
                // The log of one pod has ended, or was cut: it is opened again as long as the pod is there.
                Ok(Some((pod, _))) => drop(self.reading.remove(&pod)),
                Ok(None) if !self.query.follow => return None,
                Ok(None) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    self.look_again().await?;
                }
                Err(_) => self.look_again().await?,
            }
        }
    }

    /// Looks for new pods; `None` once the generation is gone.
    async fn look_again(&mut self) -> Option<()> {
        match self.client.revision(self.target.namespace, &self.target.revision()).await {
            Ok(None) => return None,
            Ok(Some(_)) => {}
            Err(error) => self.failed = Some(error),
        }
        if let Err(error) = self.look().await {
            self.failed = Some(error);
        }
        Some(())
    }

    /// From when on the log of a pod is asked for.
    fn since(&self, pod: &str) -> Option<Timestamp> {
        let next = self.last.get(pod).map(|last| last.plus(Duration::from_micros(1)));
        next.or(self.query.since)
    }

    /// A line, unless it was told before or is older than what is asked for: the API server goes by whole seconds.
    fn line(&mut self, pod: &str, line: &Bytes) -> Option<LogLine> {
        let end = line.iter().position(|byte| *byte == b' ');
        let at = end.and_then(|end| std::str::from_utf8(line.get(..end)?).ok()?.parse::<Timestamp>().ok());
        let text = match (at, end) {
            (Some(_), Some(end)) => line.slice(end + 1..),
            _ => line.clone(),
        };
        if let Some(at) = at {
            let is_old = match self.before.get(pod) {
                Some(before) => at <= *before,
                None => self.query.since.is_some_and(|since| at < since),
            };
            if is_old {
                return None;
            }
            self.last.insert(pod.to_owned(), at);
        }
        let mut told = LogLine::new(text);
        (told.at, told.instance) = (at, Some(pod.to_owned()));
        Some(told)
    }
}

/// The log of a pod; `None` where that has just gone, or its container has not started.
async fn opened(client: &Client, request: &Manage) -> Result<Option<Lines>> {
    match client.lines(request).await {
        Ok(lines) => Ok(Some(lines)),
        Err(error) if matches!(error.context_value("engine_status"), Some("400" | "404")) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The lines of one pod, and at last that it has ended.
fn told<'a>(pod: String, lines: Lines) -> BoxStream<'a, (String, Option<Result<Bytes>>)> {
    let state = Some((pod, lines));
    Box::pin(stream::unfold(state, |state| async move {
        let (pod, mut lines) = state?;
        match lines.next().await.transpose() {
            Some(Ok(line)) => Some(((pod.clone(), Some(Ok(line))), Some((pod, lines)))),
            Some(Err(error)) => Some(((pod, Some(Err(error))), None)),
            None => Some(((pod, None), None)),
        }
    }))
}
