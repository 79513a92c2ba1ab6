//! Frames of HTTP/2 that are not right, written byte by byte: each ends its stream or its connection, nothing of it
//! reaches a function, and the server goes on.

use std::time::Duration;

use function_gateway_rest::serve::ServeOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::common::{LONG, Server, Setup};
use crate::malformed::{Beside, goes_on, server, server_with};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Of a request that is its head alone.
const WHOLE: u8 = END_STREAM | END_HEADERS;

/// The codes of errors, in order (RFC 9113, section 7).
const CODES: &str = "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED \
    FRAME_SIZE_ERROR REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM";

type Field<'a> = (&'a str, &'a str);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as literals, without indexing and without Huffman's code (RFC 7541, section 6.2.2).
fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.extend(length(text.len()));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of 7 bits (RFC 7541, section 5.1).
fn length(length: usize) -> Vec<u8> {
    let Some(mut rest) = length.checked_sub(127) else { return vec![u8::try_from(length).unwrap()] };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128 + 128).unwrap());
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

fn headers(flags: u8, stream: u32, fields: &[Field<'_>]) -> Vec<u8> {
    frame(HEADERS, flags, stream, &block(fields))
}

/// The head of a call of the function `echo`.
fn call(bearer: &str) -> Vec<Field<'_>> {
    let path = (":path", "/v1/functions/echo/invocations");
    vec![(":method", "POST"), (":scheme", "http"), path, (":authority", "x"), ("authorization", bearer)]
}

/// A request that needs nothing.
fn health(stream: u32) -> Vec<u8> {
    headers(WHOLE, stream, &[(":method", "GET"), (":scheme", "http"), (":path", "/healthz"), (":authority", "x")])
}

/// A connection whose settings are settled.
struct Connection(TcpStream);

impl Connection {
    async fn to(server: &Server) -> Self {
        Self::over(server.connect().await).await
    }

    async fn over(stream: TcpStream) -> Self {
        let mut connection = Self(stream);
        connection.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, ACK, 0, &[])].concat()).await;
        connection
    }

    /// The server may be done with the connection before it has read everything.
    async fn send(&mut self, frames: &[u8]) {
        let _ = self.0.write_all(frames).await;
    }

    /// The next frame: its kind, flags, stream and payload. `None` at the end of the connection.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((kind, flags, u32::from_be_bytes(stream), payload))
        };
        tokio::time::timeout(LONG, read).await.unwrap()
    }

    /// What the server says next of a request, a stream or the connection.
    async fn says(&mut self) -> String {
        let code = |bytes: &[u8]| CODES.split(' ').nth(bytes[3].into()).unwrap();
        loop {
            let Some((kind, _, stream, payload)) = self.next().await else { return "closed".to_owned() };
            match kind {
                // The status comes first: of the static table, or in Huffman's code.
                HEADERS => match payload[..] {
                    [0x88, ..] => return format!("200 on {stream}"),
                    [0x8c, ..] => return format!("400 on {stream}"),
                    [0x48, 0x83, 0x69, 0x90, 0xff, ..] => return format!("431 on {stream}"),
                    _ => return format!("{payload:x?} on {stream}"),
                },
                RST_STREAM => return format!("RST_STREAM on {stream}: {}", code(&payload)),
                GOAWAY => return format!("GOAWAY: {}", code(&payload[4..])),
                // Its settings and windows, and the bodies of answers.
                _ => {}
            }
        }
    }
}

const RESET: &str = "RST_STREAM on 1: PROTOCOL_ERROR";
const FLOW: &str = "RST_STREAM on 1: FLOW_CONTROL_ERROR";
const AWAY: &str = "GOAWAY: PROTOCOL_ERROR";
const CALM: &str = "GOAWAY: ENHANCE_YOUR_CALM";

/// What each of the corpus ends, which is stream 1 alone or the connection, and how.
async fn ends_as_said(server: &Server, corpus: Vec<(&str, Vec<u8>, &str)>) {
    let beside = Beside::begin(server).await;
    for (row, (what, frames, expected)) in corpus.into_iter().enumerate() {
        let mut connection = Connection::to(server).await;
        connection.send(&frames).await;
        assert_eq!(connection.says().await, expected, "{what}");
        if expected.starts_with("GOAWAY") {
            assert_eq!(connection.says().await, "closed", "{what}");
        } else {
            connection.send(&health(3)).await;
            assert_eq!(connection.says().await, "200 on 3", "{what}");
        }
        goes_on(server, 1 + row).await;
    }
    beside.ends(server).await;
}

#[tokio::test]
async fn a_request_that_is_malformed_is_refused() {
    let server = server_with(Setup::default()).await;
    let bearer = format!("Bearer {}", server.admin);
    let call = call(&bearer);
    let with = |flags: u8, more: &[Field<'_>]| headers(flags, 1, &[&call[..], more].concat());
    let led_by = |more: Field<'_>| headers(WHOLE, 1, &[&[more][..], &call[..]].concat());
    let sized =
        |size: &str| [with(END_HEADERS, &[("content-length", size)]), frame(DATA, END_STREAM, 1, b"hello")].concat();
    let without = |name: &str, more: &[Field<'_>]| {
        let others: Vec<_> = call.iter().copied().filter(|(known, _)| *known != name).collect();
        headers(WHOLE, 1, &[&others[..], more].concat())
    };
    let with_path = |path: &str| headers(WHOLE, 1, &[&call[..2], &[(":path", path)][..], &call[3..]].concat());
    let large = "x".repeat(14_000);
    let part = |flags: u8| frame(CONTINUATION, flags, 1, &block(&[("x-own", &large)]));
    let mut unpacks =
        [block(&call), vec![0x40], length(5), b"x-own".to_vec(), length(4_000), vec![b'x'; 4_000]].concat();
    // Each byte stands for the field before it, which is in the table.
    unpacks.extend([0xbe; 10_000]);
    let mut corpus = vec![
        ("less than its length says", sized("9"), RESET),
        ("more than its length says", sized("2"), RESET),
        ("nothing of its length", with(WHOLE, &[("content-length", "5")]), RESET),
        ("two lengths", with(END_HEADERS, &[("content-length", "5"), ("content-length", "6")]), RESET),
        ("no method", without(":method", &[]), RESET),
        ("no scheme", without(":scheme", &[]), RESET),
        ("no path", without(":path", &[]), RESET),
        ("a path too late", without(":path", &[(":path", "/healthz")]), RESET),
        ("a second path", led_by((":path", "/healthz")), RESET),
        ("a status", led_by((":status", "200")), RESET),
        ("a field that no HTTP has", led_by((":own", "1")), AWAY),
        ("another host than its authority", with(WHOLE, &[("host", "y")]), "400 on 1"),
        ("two hosts", with(WHOLE, &[("host", "x"), ("host", "x")]), "400 on 1"),
        ("a path that is empty", with_path(""), RESET),
        ("a path without a slash", with_path("v1/me"), RESET),
        ("a name in upper case", with(WHOLE, &[("X-Own", "1")]), AWAY),
        ("a value on two lines", with(WHOLE, &[("x-own", "1\r\nx: 2")]), AWAY),
        ("trailers that are not the end", [with(END_HEADERS, &[]), headers(END_HEADERS, 1, &[])].concat(), RESET),
        // More than the 64 KiB that its settings say, and far more.
        ("a large head", [with(END_STREAM, &[]), part(0).repeat(4), part(END_HEADERS)].concat(), "431 on 1"),
        ("a head that unpacks to 40 MB", frame(HEADERS, WHOLE, 1, &unpacks), CALM),
    ];
    // What is of a connection of HTTP/1 (RFC 9113, section 8.2.2).
    let of_connection = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
    corpus.extend(of_connection.map(|name| (name, with(WHOLE, &[(name, "chunked")]), RESET)));
    ends_as_said(&server, corpus).await;
}

#[tokio::test]
async fn a_frame_that_is_not_right_is_refused() {
    let server = server_with(Setup::default()).await;
    let bearer = format!("Bearer {}", server.admin);
    let call = call(&bearer);
    let packed = |block: &[u8]| frame(HEADERS, WHOLE, 1, block);
    // Within a head, and after one whose payload is still to come.
    let within = |frame: Vec<u8>| [headers(END_STREAM, 1, &call), frame].concat();
    let after = |frame: Vec<u8>| [headers(END_HEADERS, 1, &call), frame].concat();
    let promise = [&[0u8, 0, 0, 2][..], &block(&call)].concat();
    let most = [0x7f, 0xff, 0xff, 0xff];
    let corpus = vec![
        ("a payload of no stream", frame(DATA, END_STREAM, 0, b"hello"), AWAY),
        ("a payload of a stream that has not begun", frame(DATA, END_STREAM, 1, b"hello"), AWAY),
        ("a head of no stream", headers(WHOLE, 0, &call), AWAY),
        ("a stream of the server's", headers(WHOLE, 2, &call), AWAY),
        ("a stream that goes backwards", [headers(END_HEADERS, 3, &call), headers(WHOLE, 1, &call)].concat(), AWAY),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &block(&call)), AWAY),
        ("another frame within a head", within(frame(PING, 0, 0, &[0; 8])), AWAY),
        ("a promise of a client", after(frame(PUSH_PROMISE, END_HEADERS, 1, &promise)), AWAY),
        ("a window that grows by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), AWAY),
        ("a stream's window that grows by nothing", after(frame(WINDOW_UPDATE, 0, 1, &[0; 4])), AWAY),
        ("a window beyond its bound", frame(WINDOW_UPDATE, 0, 0, &most), "GOAWAY: FLOW_CONTROL_ERROR"),
        ("a stream's window beyond its bound", after(frame(WINDOW_UPDATE, 0, 1, &most)), FLOW),
        ("settings with a window beyond its bound", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), AWAY),
        ("a frame beyond its bound", after(frame(DATA, END_STREAM, 1, &[0; 16_385])), "GOAWAY: FRAME_SIZE_ERROR"),
        ("a frame without an end", vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], "GOAWAY: FRAME_SIZE_ERROR"),
        // RFC 9113 has COMPRESSION_ERROR for these. What h2 says ends the connection as well.
        ("an index of nothing", packed(&[0xff, 0xff, 0]), AWAY),
        ("a text that is cut off", packed(&[0, 0x7f, 0xff]), AWAY),
        ("a text in no code of Huffman's", packed(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]), AWAY),
    ];
    ends_as_said(&server, corpus).await;
}

#[tokio::test]
async fn a_flood_that_costs_the_server_more_than_the_client_ends_its_connection() {
    let server = server_with(Setup::default()).await;
    let bearer = format!("Bearer {}", server.admin);
    let call = call(&bearer);
    let each = |frames: &dyn Fn(u32) -> Vec<u8>| (0..2_000).flat_map(|at| frames(2 * at + 1)).collect::<Vec<_>>();
    let begun = |stream| headers(END_HEADERS, stream, &call);
    let taken_back = |stream| [begun(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
    let refused = |stream| headers(WHOLE, stream, &[&call[..], &[("te", "gzip")][..]].concat());
    let field = frame(CONTINUATION, 0, 1, &block(&[("x-own", "1")]));
    let corpus = [
        // CVE-2023-44487, CVE-2025-8671 and CVE-2024-27316.
        ("requests that are taken back", each(&taken_back)),
        ("requests that have to be refused", each(&refused)),
        ("a head without an end", [headers(0, 1, &call), field.repeat(1_000)].concat()),
        ("a payload of nothing", [begun(1), frame(DATA, 0, 1, &[]).repeat(20_000)].concat()),
    ];
    for (row, (what, frames)) in corpus.into_iter().enumerate() {
        let mut connection = Connection::to(&server).await;
        connection.send(&frames).await;
        let mut last = String::new();
        loop {
            match connection.says().await {
                said if said == "closed" => break,
                said => last = said,
            }
        }
        assert_eq!(last, CALM, "{what}");
        goes_on(&server, row).await;
    }
}

#[tokio::test]
async fn a_head_whose_rest_does_not_come_is_cut_off() {
    let server = server().await;
    let bearer = format!("Bearer {}", server.admin);
    let head = headers(END_STREAM, 1, &call(&bearer));
    let half = head[..head.len() / 2].to_vec();
    for begun in [head, half] {
        let mut connection = Connection::to(&server).await;
        connection.send(&begun).await;
        // Its pings go unanswered, as nothing may come between the parts of a head.
        while connection.next().await.is_some() {}
    }
    goes_on(&server, 0).await;
}

/// The frames that a server has to answer, of a few bytes each.
fn answered() -> [Vec<u8>; 2] {
    [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])]
}

#[tokio::test]
async fn a_flood_whose_answers_are_read_is_answered_and_no_more() {
    let server = server_with(Setup::default()).await;
    for flood in answered() {
        let mut connection = Connection::to(&server).await;
        connection.send(&[flood.repeat(5_000), health(1)].concat()).await;
        let mut answers = 0;
        let status = loop {
            match connection.next().await.unwrap() {
                (HEADERS, _, 1, payload) => break payload[0],
                (kind, ACK, 0, _) if kind == flood[3] => answers += 1,
                _ => {}
            }
        };
        // The settings that a connection begins with are answered too. 0x88 is a status of 200.
        assert_eq!((answers, status), (5_000 + usize::from(flood[3] == SETTINGS), 0x88));
    }
    goes_on(&server, 0).await;
}

#[tokio::test]
async fn a_flood_whose_answers_are_not_read_is_cut_off() {
    let serve = ServeOptions::default().with_write_timeout(Duration::from_millis(100));
    let server = server_with(Setup { serve, ..Setup::default() }).await;
    for flood in answered() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut connection = Connection::over(socket.connect(server.address).await.unwrap()).await;
        let many = flood.repeat(1_000);
        // Once all between the two is full, the server takes no more, and then goes.
        let cut_off = async { while connection.0.write_all(&many).await.is_ok() {} };
        tokio::time::timeout(LONG, cut_off).await.unwrap();
    }
    goes_on(&server, 0).await;
}
