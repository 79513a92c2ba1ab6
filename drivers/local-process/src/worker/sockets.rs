//! Whose sockets they are, as `/proc` tells: a worker is believed to listen, or to ask, only where a process of its group
//! does.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use rustix::process::Pid;

/// Of `tcp_state` (include/net/tcp_states.h in Linux).
const LISTEN: u8 = 0x0A;

/// How often it is looked whose a client is before it is nobody's of a group.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// A row of `/proc/net/tcp` or `/proc/net/tcp6` (proc_pid_net(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    inode: u64,
}

/// Who listens on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// A process of the group.
    Ours,
    /// A process outside of the group.
    Foreign,
    /// Nobody, or no longer.
    Nobody,
}

/// Who listens on a port of this machine's loopback interface. Blocks on `/proc`.
pub(crate) fn listener(port: u16, group: Pid) -> io::Result<Listener> {
    let inodes: Vec<_> = listening()?.into_iter().filter(|row| row.local.port() == port).map(|row| row.inode).collect();
    if inodes.is_empty() {
        return Ok(Listener::Nobody);
    }
    let ours = sockets_of(group);
    Ok(if inodes.iter().any(|inode| ours.contains(inode)) { Listener::Ours } else { Listener::Foreign })
}

/// Where the processes of a group listen. Blocks on `/proc`.
pub(crate) fn listening_addresses(group: Pid) -> io::Result<Vec<SocketAddr>> {
    let ours = sockets_of(group);
    Ok(listening()?.into_iter().filter(|row| ours.contains(&row.inode)).map(|row| row.local).collect())
}

/// Whether the client of a connection from `client` to `server`, both on this machine, belongs to a process of a group.
/// Both ends name the connection: other connections, and what is left of them, may have either in common. Blocks on `/proc`.
///
/// The kernel gives its table in parts, and can leave out a row where others come and go meanwhile: so it is not believed
/// at once that there is none.
pub(crate) fn is_client_of(client: SocketAddr, server: SocketAddr, group: Pid) -> bool {
    (0..LOOKS).any(|look| {
        if look > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        let rows = rows().unwrap_or_default();
        let row = rows.iter().find(|row| row.local == client && row.remote == server);
        row.is_some_and(|row| sockets_of(group).contains(&row.inode))
    })
}

fn listening() -> io::Result<Vec<Row>> {
    let mut rows = rows()?;
    rows.retain(|row| row.state == LISTEN);
    Ok(rows)
}

fn rows() -> io::Result<Vec<Row>> {
    let mut rows: Vec<_> = fs::read_to_string("/proc/net/tcp")?.lines().filter_map(parse).collect();
    // Without IPv6 there is no such file.
    rows.extend(fs::read_to_string("/proc/net/tcp6").unwrap_or_default().lines().filter_map(parse));
    Ok(rows)
}

fn parse(line: &str) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Row { local, remote, state, inode })
}

/// An address as the kernel prints it: words of 32 bits in the machine's own order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| u32::from_str_radix(ip.get(index * 8..index * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, four) in octets.chunks_mut(4).enumerate() {
                four.copy_from_slice(&word(index)?);
            }
            // A socket for both versions shows a peer of version 4 so.
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The sockets that the processes of a group have open. A process that ends meanwhile, or that the host may not look
/// into, has none.
fn sockets_of(group: Pid) -> HashSet<u64> {
    let mut sockets = HashSet::new();
    for pid in members(group) {
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        sockets.extend(open.flatten().filter_map(|entry| socket(fs::read_link(entry.path()).ok()?.as_os_str())));
    }
    sockets
}

fn socket(link: &OsStr) -> Option<u64> {
    let number = link.as_bytes().strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The processes of a group.
fn members(group: Pid) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| group_of(*pid) == Some(group)).collect()
}

/// The group of a process, after its name, which may hold anything.
pub(crate) fn group_of(pid: u32) -> Option<Pid> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let group = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(2)?.parse().ok()?;
    Pid::from_raw(group)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn rows_are_read_as_the_kernel_prints_them() {
        let four = "   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 97531 1";
        assert_eq!(
            parse(four).unwrap(),
            Row {
                local: "127.0.0.1:8080".parse().unwrap(),
                remote: "0.0.0.0:0".parse().unwrap(),
                state: LISTEN,
                inode: 97531
            }
        );
        let six =
            "   0: 00000000000000000000000001000000:0016 0000000000000000FFFF00000100007F:9C40 01 0:0 00:0 0 0 0 7 1";
        let row = parse(six).unwrap();
        assert_eq!((row.local, row.remote), ("[::1]:22".parse().unwrap(), "127.0.0.1:40000".parse().unwrap()));
        assert_eq!(
            parse("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"),
            None
        );
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_listener_is_known_by_its_group() {
        let own = group_of(std::process::id()).unwrap();
        let other = Pid::from_raw(i32::MAX).unwrap();
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listening = TcpListener::bind(address).unwrap();
            let port = listening.local_addr().unwrap().port();
            assert_eq!(listener(port, own).unwrap(), Listener::Ours);
            assert_eq!(listener(port, other).unwrap(), Listener::Foreign);
            assert!(listening_addresses(own).unwrap().contains(&listening.local_addr().unwrap()));
            drop(listening);
            assert_eq!(listener(port, own).unwrap(), Listener::Nobody);
        }
    }

    #[test]
    fn a_client_is_known_by_its_group() {
        let own = group_of(std::process::id()).unwrap();
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
        let (_, peer) = listening.accept().unwrap();
        assert!(is_client_of(peer, listening.local_addr().unwrap(), own));
        assert!(!is_client_of(peer, listening.local_addr().unwrap(), Pid::from_raw(i32::MAX).unwrap()));
        drop(client);
        assert!(!is_client_of("127.0.0.1:1".parse().unwrap(), listening.local_addr().unwrap(), own));
    }
}
