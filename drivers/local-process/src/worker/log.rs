//! What workers write: the log of the function, and that of a call where it can be told whose it is.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use function_gateway_core::{LogLine, LogQuery, LogSink, Result, Timestamp};
use futures_core::Stream;
use futures_util::stream;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

/// A longer line is cut in pieces.
const MAX_LINE: usize = 16 * 1024;
/// How much is read at a time.
const READ: usize = 16 * 1024;
/// How much is read before others get their turn: the capacity of a pipe.
const TURN: usize = 64 * 1024;
/// What a line costs beside its text.
const LINE_OVERHEAD: usize = 64;
/// How much of the log an error cites.
const TAIL_LINES: usize = 10;
const TAIL_BYTES: usize = 2 * 1024;

/// The last lines of all workers of a deployment, up to a number of bytes.
#[derive(Debug)]
pub(crate) struct FunctionLog {
    limit: usize,
    lines: Mutex<Lines>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Line>,
    bytes: usize,
    /// How many lines there have been before the first that is kept.
    gone: u64,
    closed: bool,
}

impl Lines {
    /// Copies what has come since the line number `next`. Says whether nothing more will come.
    fn read_on(&self, next: &mut u64, into: &mut VecDeque<Line>, is_wanted: impl Fn(&Line) -> bool) -> bool {
        let skip = usize::try_from(next.saturating_sub(self.gone)).unwrap_or(usize::MAX);
        into.extend(self.kept.iter().skip(skip).filter(|line| is_wanted(line)).cloned());
        *next = self.gone + self.kept.len() as u64;
        self.closed
    }
}

#[derive(Debug, Clone)]
struct Line {
    at: Timestamp,
    instance: Arc<str>,
    text: Bytes,
}

impl Line {
    fn cost(&self) -> usize {
        self.text.len() + LINE_OVERHEAD
    }
}

impl From<Line> for LogLine {
    fn from(line: Line) -> Self {
        let mut told = Self::new(line.text);
        told.at = Some(line.at);
        told.instance = Some(line.instance.as_ref().to_owned());
        told
    }
}

impl FunctionLog {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, lines: Mutex::default(), added: Notify::new() }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, instance: &Arc<str>, text: &[u8]) {
        let line = Line { at: Timestamp::now(), instance: Arc::clone(instance), text: Bytes::copy_from_slice(text) };
        let mut lines = self.lines();
        lines.bytes += line.cost();
        lines.kept.push_back(line);
        while lines.bytes > self.limit
            && let Some(first) = lines.kept.pop_front()
        {
            lines.bytes -= first.cost();
            lines.gone += 1;
        }
        drop(lines);
        self.added.notify_waiters();
    }

    /// Ends whoever follows the log.
    pub(crate) fn close(&self) {
        self.lines().closed = true;
        self.added.notify_waiters();
    }

    /// The last lines of one worker, for an error.
    pub(crate) fn tail(&self, instance: &str) -> String {
        let lines = self.lines();
        let mut last: Vec<_> = lines.kept.iter().rev().filter(|line| &*line.instance == instance).collect();
        last.truncate(TAIL_LINES);
        let mut room = TAIL_BYTES;
        let fitting = last.iter().take_while(|line| {
            let fits = line.text.len() < room;
            room = room.saturating_sub(line.text.len() + 1);
            fits
        });
        let mut tail: Vec<_> = fitting.map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect();
        if let (true, Some(line)) = (tail.is_empty(), last.first()) {
            let from = line.text.len().saturating_sub(TAIL_BYTES);
            tail.push(String::from_utf8_lossy(line.text.get(from..).unwrap_or_default()).into_owned());
        }
        tail.reverse();
        tail.join("\n")
    }

    /// What a query asks for. Who follows and reads too slowly misses the lines that are no longer kept.
    pub(crate) fn read(self: Arc<Self>, query: &LogQuery) -> impl Stream<Item = Result<LogLine>> + Send + 'static {
        let (since, follow) = (query.since, query.follow);
        let is_wanted = move |line: &Line| since.is_none_or(|since| line.at >= since);
        let (mut first, mut next) = (VecDeque::new(), 0);
        self.lines().read_on(&mut next, &mut first, is_wanted);
        if let Some(tail) = query.tail.and_then(|tail| usize::try_from(tail).ok()) {
            first.drain(..first.len().saturating_sub(tail));
        }
        stream::unfold((self, first, next), move |(log, mut ready, mut next)| async move {
            loop {
                if let Some(line) = ready.pop_front() {
                    return Some((Ok(line.into()), (log, ready, next)));
                }
                if !follow {
                    return None;
                }
                let mut added = pin!(log.added.notified());
                added.as_mut().enable();
                let closed = log.lines().read_on(&mut next, &mut ready, is_wanted);
                if ready.is_empty() {
                    if closed {
                        return None;
                    }
                    added.await;
                }
            }
        })
    }
}

/// What one worker writes to its standard output and its standard error.
#[derive(Debug)]
pub(crate) struct WorkerLog {
    function: Arc<FunctionLog>,
    instance: Arc<str>,
    pipes: [pipe::Receiver; 2],
    reading: Mutex<Reading>,
}

#[derive(Debug, Default)]
struct Reading {
    /// Of each pipe: whether it has ended, and the line that has not.
    streams: [(bool, Vec<u8>); 2],
    calls: usize,
    /// The log of the only call that is running.
    sink: Option<LogSink>,
}

impl WorkerLog {
    pub(crate) fn new(function: Arc<FunctionLog>, instance: &str, pipes: [pipe::Receiver; 2]) -> Self {
        Self { function, instance: instance.into(), pipes, reading: Mutex::default() }
    }

    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The last lines, for an error.
    pub(crate) fn tail(&self) -> String {
        self.drain();
        self.function.tail(&self.instance)
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins. What is written while it is the only one is its log.
    pub(crate) fn enter(&self, sink: &LogSink) {
        let mut reading = self.reading();
        reading.calls += 1;
        if (reading.calls == 1 || reading.sink.is_some()) && self.has_more() {
            // What is there already belongs to what was before.
            self.read(&mut reading, read_now);
        }
        reading.sink = (reading.calls == 1).then(|| sink.clone());
    }

    /// A call has ended.
    pub(crate) fn leave(&self) {
        let mut reading = self.reading();
        if reading.sink.is_some() && self.has_more() {
            self.read(&mut reading, read_now);
        }
        reading.calls -= 1;
        reading.sink = None;
    }

    /// Whether there is something to be read, or an end. One question to the system for both pipes, as this is asked at
    /// each call.
    fn has_more(&self) -> bool {
        let [stdout, stderr] = &self.pipes;
        let mut pipes = [PollFd::new(stdout, PollFlags::IN), PollFd::new(stderr, PollFlags::IN)];
        !matches!(rustix::event::poll(&mut pipes, Some(&Timespec::default())), Ok(0))
    }

    /// Reads what is there.
    fn drain(&self) {
        self.read(&mut self.reading(), read_now);
    }

    /// Reads until both pipes have ended. Cancel-safe.
    pub(crate) async fn pump(&self) {
        loop {
            let [out, err] = [0, 1].map(|index| self.reading().streams.get(index).is_none_or(|(ended, _)| !ended));
            let [stdout, stderr] = &self.pipes;
            tokio::select! {
                _ = stdout.readable(), if out => {}
                _ = stderr.readable(), if err => {}
                else => return,
            }
            self.read(&mut self.reading(), pipe::Receiver::try_read_buf);
            tokio::task::yield_now().await;
        }
    }

    /// What is left where no more will be read: the last line need not have an end.
    pub(crate) fn finish(&self) {
        let mut reading = self.reading();
        self.read(&mut reading, read_now);
        for (ended, partial) in &mut reading.streams {
            *ended = true;
            if !partial.is_empty() {
                self.function.push(&self.instance, &std::mem::take(partial));
            }
        }
    }

    fn read(&self, reading: &mut Reading, read: impl Fn(&pipe::Receiver, &mut Vec<u8>) -> io::Result<usize>) {
        let Reading { streams, sink, .. } = reading;
        for (pipe, (ended, partial)) in self.pipes.iter().zip(streams) {
            let mut chunk = Vec::with_capacity(READ);
            let mut room = TURN;
            while !*ended && room > 0 {
                chunk.clear();
                match read(pipe, &mut chunk) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => *ended = true,
                    Ok(read) => {
                        room = room.saturating_sub(read);
                        if let Some(sink) = sink {
                            sink.write(&chunk);
                        }
                        self.split(partial, &chunk);
                    }
                }
            }
        }
    }

    fn split(&self, partial: &mut Vec<u8>, chunk: &[u8]) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            partial.extend_from_slice(piece);
            if partial.last() == Some(&b'\n') {
                partial.pop();
                if partial.last() == Some(&b'\r') {
                    partial.pop();
                }
            } else if partial.len() < MAX_LINE {
                continue;
            }
            for line in lines_of(partial) {
                self.function.push(&self.instance, line);
            }
            partial.clear();
        }
    }
}

/// Reads without asking the runtime, which may not have seen yet that there is something: what a function wrote before it
/// answered must not come after its answer. The runtime's view stays as it is, so whoever waits does not use this.
fn read_now(pipe: &pipe::Receiver, chunk: &mut Vec<u8>) -> io::Result<usize> {
    Ok(rustix::io::read(pipe, rustix::buffer::spare_capacity(chunk))?)
}

/// A line in pieces that are not too long; one piece for an empty line.
fn lines_of(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = line.is_empty().then_some(line);
    empty.into_iter().chain(line.chunks(MAX_LINE))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures_util::StreamExt as _;

    use super::*;

    struct Bench {
        function: Arc<FunctionLog>,
        log: WorkerLog,
        stdout: io::PipeWriter,
        stderr: io::PipeWriter,
    }

    fn bench(limit: usize) -> Bench {
        let function = Arc::new(FunctionLog::new(limit));
        let [(out_reader, stdout), (err_reader, stderr)] = [0, 1].map(|_| io::pipe().unwrap());
        let pipes = [out_reader, err_reader].map(|reader| pipe::Receiver::from_owned_fd(reader.into()).unwrap());
        let log = WorkerLog::new(Arc::clone(&function), "7", pipes);
        Bench { function, log, stdout, stderr }
    }

    async fn texts(function: &Arc<FunctionLog>, query: &LogQuery) -> Vec<String> {
        let lines =
            Arc::clone(function).read(query).map(|line| String::from_utf8_lossy(&line.unwrap().text).into_owned());
        lines.collect().await
    }

    #[tokio::test]
    async fn lines_of_both_streams_are_kept_whole() {
        let mut bench = bench(10_000);
        bench.stdout.write_all(b"one\r\n\ntw").unwrap();
        bench.stderr.write_all(b"three\n").unwrap();
        bench.log.drain();
        assert_eq!(texts(&bench.function, &LogQuery::default()).await, ["one", "", "three"]);
        bench.stdout.write_all(b"o").unwrap();
        drop((bench.stdout, bench.stderr));
        bench.log.pump().await;
        bench.log.finish();
        assert_eq!(texts(&bench.function, &LogQuery::default()).await, ["one", "", "three", "two"]);
        assert_eq!(bench.function.tail("7"), "one\n\nthree\ntwo");
        assert_eq!(bench.function.tail("8"), "");
    }

    #[tokio::test]
    async fn what_a_call_writes_alone_is_its_log() {
        let mut bench = bench(10_000);
        let [first, second] = [0, 1].map(|_| LogSink::detached(1000));
        bench.stderr.write_all(b"-").unwrap();
        bench.stdout.write_all(b"before\n").unwrap();
        bench.log.drain();
        bench.log.enter(&first);
        bench.stdout.write_all(b"alone\n").unwrap();
        bench.log.enter(&second);
        bench.stdout.write_all(b"together\n").unwrap();
        bench.log.leave();
        bench.stdout.write_all(b"which?\n").unwrap();
        bench.log.leave();
        assert_eq!(first.contents(), b"alone\n");
        assert_eq!(second.contents(), b"");
        bench.log.drain();
        assert_eq!(texts(&bench.function, &LogQuery::default()).await, ["before", "alone", "together", "which?"]);
    }

    #[tokio::test]
    async fn a_flood_is_bounded_and_long_lines_are_cut() {
        let bench = bench(MAX_LINE * 2);
        bench.log.split(&mut Vec::new(), &[b'x'; MAX_LINE * 5]);
        let mut partial = Vec::new();
        for _ in 0..1000 {
            bench.log.split(&mut partial, b"a line of a flood\n");
        }
        let lines = bench.function.lines();
        assert!(lines.bytes <= bench.function.limit && lines.kept.len() > 300, "{} lines", lines.kept.len());
        assert!(lines.kept.iter().all(|line| line.text.len() <= MAX_LINE));
        drop(lines);
        assert_eq!(bench.function.tail("7").lines().count(), TAIL_LINES);
    }

    #[tokio::test]
    async fn a_follower_gets_new_lines_until_the_end() {
        let bench = bench(10_000);
        let instance: Arc<str> = "7".into();
        bench.function.push(&instance, b"one");
        bench.function.push(&instance, b"two");
        let mut query = LogQuery::default();
        query.tail = Some(1);
        query.follow = true;
        let mut lines = Box::pin(Arc::clone(&bench.function).read(&query));
        assert_eq!(&lines.next().await.unwrap().unwrap().text[..], b"two");
        let (next, ()) = tokio::join!(lines.next(), async { bench.function.push(&instance, b"three") });
        assert_eq!(&next.unwrap().unwrap().text[..], b"three");
        bench.function.close();
        assert!(lines.next().await.is_none());
    }

    #[test]
    fn a_tail_of_one_enormous_line_is_its_end() {
        let log = FunctionLog::new(100_000);
        log.push(&"1".into(), &[b'x'; MAX_LINE]);
        assert_eq!(log.tail("1").len(), TAIL_BYTES);
    }
}
