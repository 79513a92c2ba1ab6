//! The load: one request, sent again and again on connections that are kept, by a thread that does as little as it can. What it takes is
//! missing from what is measured, since both share the processors.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// By which the timer is known among the connections.
const TIMER: u64 = u64::MAX;
/// How often it is looked for what is due. Mostly an answer wakes the thread before, and a timer costs more than a request.
const TICK: Duration = Duration::from_micros(250);

pub(crate) struct Load {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    request: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    answer: Box<[u8; 4096]>,
    filled: usize,
    is_busy: bool,
}

impl Load {
    /// Opens connections on which a request is to be sent.
    pub(crate) fn new(server: SocketAddr, connections: usize, request: Vec<u8>) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let connect = |number: usize| {
            let stream = TcpStream::connect(server).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_nonblocking(true).unwrap();
            epoll::add(&epoll, &stream, EventData::new_u64(number as u64), EventFlags::IN).unwrap();
            Connection { stream, answer: Box::new([0; 4096]), filled: 0, is_busy: false }
        };
        let connections = (0..connections).map(connect).collect();
        Self { epoll, connections, request }
    }

    /// Sends on each connection one request after the other. Says how many were answered.
    pub(crate) fn saturate(mut self, how_long: Duration) -> u32 {
        let start = Instant::now();
        for connection in &mut self.connections {
            connection.send(&self.request);
        }
        let (mut busy, mut answered) = (self.connections.len(), 0);
        let mut events = Vec::with_capacity(self.connections.len());
        while busy > 0 {
            self.wait(&mut events);
            let goes_on = start.elapsed() < how_long;
            for event in events.drain(..) {
                let connection = &mut self.connections[event.data.u64() as usize];
                if !connection.has_answer() {
                    continue;
                }
                answered += 1;
                if goes_on {
                    connection.send(&self.request);
                } else {
                    busy -= 1;
                }
            }
        }
        answered
    }

    /// Sends at a steady rate, on one connection after the other. Gives the time of each request from when it was due: one that
    /// waits for its connection counts too.
    pub(crate) fn steady(mut self, rate: f64, how_long: Duration) -> Vec<Duration> {
        let apart = Duration::from_secs_f64(1.0 / rate);
        // One of the kernel's: those of a runtime have a grain of 1 ms, and all that is due in it would come at once.
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC).unwrap();
        let every = Timespec::try_from(TICK).unwrap();
        let ticks = Itimerspec { it_interval: every, it_value: every };
        let start = Instant::now();
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &ticks).unwrap();
        epoll::add(&self.epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN).unwrap();
        let due = |number: usize| start + apart * number as u32;
        let total = (how_long.as_secs_f64() * rate) as usize;
        let mut times = Vec::with_capacity(total);
        // What each connection sends now or next, and what is due next of all.
        let mut numbers: Vec<usize> = (0..self.connections.len()).collect();
        let mut next = 0;
        let mut events = Vec::with_capacity(self.connections.len() + 1);
        while times.len() < total {
            self.wait(&mut events);
            for event in events.drain(..) {
                if event.data.u64() == TIMER {
                    // Read, it goes on to its next tick.
                    rustix::io::read(&timer, &mut [0; 8]).unwrap();
                    continue;
                }
                let at = event.data.u64() as usize;
                let connection = &mut self.connections[at];
                if !connection.has_answer() {
                    continue;
                }
                times.push(due(numbers[at]).elapsed());
                numbers[at] += numbers.len();
                // It was due while its connection was busy.
                if numbers[at] < next {
                    connection.send(&self.request);
                }
            }
            let now = Instant::now();
            while next < total && due(next) <= now {
                let at = next % self.connections.len();
                if !self.connections[at].is_busy {
                    self.connections[at].send(&self.request);
                }
                next += 1;
            }
        }
        times
    }

    fn wait(&self, events: &mut Vec<Event>) {
        match epoll::wait(&self.epoll, spare_capacity(events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("epoll: {errno}"),
        }
    }
}

impl Connection {
    fn send(&mut self, request: &[u8]) {
        // It is small, and all before it is answered: there is room for it.
        self.stream.write_all(request).unwrap();
        self.is_busy = true;
    }

    /// Reads what has come. Says whether it is an answer, which has to be 200 with a length.
    fn has_answer(&mut self) -> bool {
        match self.stream.read(&mut self.answer[self.filled..]) {
            Ok(0) => panic!("the server has closed the connection"),
            Ok(read) => self.filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
        let answer = &self.answer[..self.filled];
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
        let head = std::str::from_utf8(&answer[..end]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let has_all = self.filled >= end + 4 + length.parse::<usize>().unwrap();
        if has_all {
            (self.filled, self.is_busy) = (0, false);
        }
        has_all
    }
}
