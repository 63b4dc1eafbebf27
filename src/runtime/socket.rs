//! Sockets as config describes them: binding, connecting, options, and the few calls that neither
//! the standard library nor `socket2` wraps. All descriptors are non-blocking and close-on-exec.
#![allow(unsafe_code)] // receive, steering, affinity, interfaces and resource limits have no safe wrapper here.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, UnixStream};

pub use super::foreign::foreign_listeners;
use super::proxy_protocol;
use super::stream::Stream;
use crate::config::cluster::{Address, Keepalive, SocketOption, SocketState, SocketTuning};

/// Keepalive of connections whose config does not speak of it: a vanished peer is noticed after
/// about five minutes instead of the kernel's two hours.
///
/// `TCP_USER_TIMEOUT` stays unset: it would also reset a live peer that merely reads nothing for
/// that long (a paused consumer with a closed window), which is data loss that Envoy does not cause.
const KEEPALIVE: Keepalive = Keepalive {
    probes: Some(9),
    time: Some(Duration::from_secs(180)),
    interval: Some(Duration::from_secs(15)),
};

/// Why a listening socket could not be had. The text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process (or a listener without `SO_REUSEPORT`) has it.
    #[error("address {0} is in use")]
    InUse(Address),
    /// The kernel forbids it.
    #[error("no permission to listen on address {0}")]
    Denied(Address),
    /// It is not an address of this machine.
    #[error("address {0} is not an address of this machine")]
    NotLocal(Address),
    /// Something that is not a socket stands in the way.
    #[error("cannot listen on {0}: the path exists and is not a socket")]
    NotASocket(Address),
    /// Anything else.
    #[error("cannot listen on address {address}: {source}")]
    Other {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
}

/// How to bind a listening socket.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// `SO_REUSEPORT`: one socket per worker, and a successor process may bind beside us.
    pub reuse_port: bool,
    /// Accept backlog; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// A `[::]` socket takes IPv4 too (`ipv4_compat`).
    pub ipv4_compat: bool,
    /// `IP_TRANSPARENT`, for TPROXY. Needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// `IP_FREEBIND`: the address need not exist yet.
    pub freebind: bool,
    /// Permission bits of a Unix socket's path.
    pub mode: Option<u32>,
    /// More options, each set at its time.
    pub options: Arc<[SocketOption]>,
    /// UDP.
    pub datagrams: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            reuse_port: true,
            backlog: 4096,
            ipv4_compat: false,
            transparent: false,
            freebind: false,
            mode: None,
            options: Arc::default(),
            datagrams: false,
        }
    }
}

/// A listening socket that no runtime owns yet.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(TcpListener),
    /// Unix domain.
    Unix(UnixListener),
    /// Datagrams.
    Udp(UdpSocket),
}

impl Bound {
    /// The address bound, with the port that the kernel chose for port 0.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Bound::Tcp(listener) => listener.local_addr().ok(),
            Bound::Udp(socket) => socket.local_addr().ok(),
            Bound::Unix(_) => None,
        }
    }

    /// A second handle on the same socket and its accept queue.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Bound::Tcp(listener) => Bound::Tcp(listener.try_clone()?),
            Bound::Udp(socket) => Bound::Udp(socket.try_clone()?),
            Bound::Unix(listener) => Bound::Unix(listener.try_clone()?),
        })
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Bound::Tcp(listener) => listener.as_fd(),
            Bound::Udp(socket) => socket.as_fd(),
            Bound::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Changes the accept backlog of a socket that listens.
pub fn set_backlog(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    SockRef::from(&socket).listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// Changes the permission bits of a Unix socket's path.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    if is_abstract(path) {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Accepts a connection that waits on `listener`, asking the kernel and not an event of the past; `None`
/// when none does.
pub(super) fn accept_waiting(listener: BorrowedFd<'_>) -> io::Result<Option<Socket>> {
    match SockRef::from(&listener).accept() {
        Ok((socket, _)) => {
            socket.set_nonblocking(true)?;
            Ok(Some(socket))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Binds and listens. A Unix path that holds a socket is taken over, as Envoy does; `@name` is the
/// abstract namespace.
pub fn listen(address: &Address, options: &ListenOptions) -> Result<Bound, ListenError> {
    let bound = match address {
        Address::Ip(ip) if options.datagrams => {
            bound(*ip, Type::DGRAM, options).map(|s| Bound::Udp(s.into()))
        }
        Address::Ip(ip) => listen_tcp(*ip, options).map(Bound::Tcp),
        Address::Pipe(path) => {
            let is_file = |kind: std::fs::FileType| !kind.is_socket();
            if std::fs::symlink_metadata(path).is_ok_and(|meta| is_file(meta.file_type())) {
                return Err(ListenError::NotASocket(address.clone()));
            }
            listen_unix(path, options).map(Bound::Unix)
        }
        Address::Internal(_) => Err(io::ErrorKind::Unsupported.into()),
    };
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address.clone()),
        io::ErrorKind::PermissionDenied => ListenError::Denied(address.clone()),
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal(address.clone()),
        _ => ListenError::Other { address: address.clone(), source },
    })
}

fn listen_tcp(address: SocketAddr, options: &ListenOptions) -> io::Result<TcpListener> {
    let socket = bound(address, Type::STREAM, options)?;
    socket.listen(backlog(options))?;
    set_options(&socket, &options.options, SocketState::Listening)?;
    Ok(socket.into())
}

fn bound(address: SocketAddr, kind: Type, options: &ListenOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None)?;
    // Lets a restart bind while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!options.ipv4_compat)?;
    }
    if options.transparent {
        set_transparent(&socket, address)?;
    }
    if options.freebind {
        set_freebind(&socket, address)?;
    }
    set_options(&socket, &options.options, SocketState::BeforeBind)?;
    socket.bind(&address.into())?;
    set_options(&socket, &options.options, SocketState::Bound)?;
    Ok(socket)
}

fn listen_unix(path: &Path, options: &ListenOptions) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let abstract_name = is_abstract(path);
    if !abstract_name {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    socket.bind(&SockAddr::unix(kernel_path(path))?)?;
    if let Some(mode) = options.mode {
        set_mode(path, mode)?;
    }
    socket.listen(backlog(options))?;
    Ok(socket.into())
}

fn backlog(options: &ListenOptions) -> i32 {
    i32::try_from(options.backlog).unwrap_or(i32::MAX)
}

fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_bytes().first() == Some(&b'@')
}

/// `@name` as the kernel spells abstract names: with a leading NUL.
pub(crate) fn kernel_path(path: &Path) -> PathBuf {
    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => {
            let mut bytes = vec![0];
            bytes.extend_from_slice(name);
            OsString::from_vec(bytes).into()
        }
        None => path.to_owned(),
    }
}

/// Connects on the current runtime. Has no timeout of its own; dropping the future closes the
/// socket.
pub async fn connect(address: &Address, tuning: &SocketTuning) -> io::Result<Stream> {
    let stream = connected(address, tuning).await?;
    announce(&stream, tuning)?;
    Ok(stream)
}

/// Says on a new connection whose it is, where `tuning` wants that.
///
/// # Errors
/// It cannot be written.
pub fn announce(stream: &Stream, tuning: &SocketTuning) -> io::Result<()> {
    if let Some((version, ends)) = tuning.announced {
        // A new connection has room for it.
        let header = proxy_protocol::write(version, ends);
        if stream.try_write(&header)? < header.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

async fn connected(address: &Address, tuning: &SocketTuning) -> io::Result<Stream> {
    match address {
        Address::Ip(ip) => {
            let socket =
                Socket::new(Domain::for_address(*ip), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_tcp_nodelay(true)?;
            keep_alive(&SockRef::from(&socket), tuning)?;
            if let Some(mark) = tuning.mark {
                socket.set_mark(mark)?;
            }
            set_options(&socket, &tuning.options, SocketState::BeforeBind)?;
            // A source of the other family cannot be meant for this host.
            if let Some(source) = tuning.source_address.filter(|source| source.is_ipv4() == ip.is_ipv4()) {
                if tuning.transparent {
                    set_transparent(&socket, source)?;
                }
                if tuning.freebind {
                    set_freebind(&socket, source)?;
                }
                if source.port() == 0 {
                    bind_address_no_port(&socket)?;
                }
                socket.bind(&source.into())?;
            }
            let stream = TcpSocket::from_std_stream(socket.into()).connect(*ip).await?;
            Ok(Stream::Tcp(stream))
        }
        Address::Pipe(path) => Ok(Stream::Unix(UnixStream::connect(kernel_path(path)).await?)),
        // Only workers have them, each its own.
        Address::Internal(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// A socket for datagrams to `address` alone.
pub fn connect_udp(address: SocketAddr, tuning: &SocketTuning) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), None)?;
    if let Some(mark) = tuning.mark {
        socket.set_mark(mark)?;
    }
    if let Some(source) = tuning.source_address.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        if tuning.transparent {
            set_transparent(&socket, source)?;
        }
        if tuning.freebind {
            set_freebind(&socket, source)?;
        }
        socket.bind(&source.into())?;
    }
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Long datagrams may be cut up on their way.
pub fn allow_fragments(socket: &UdpSocket) -> io::Result<()> {
    let wanted = libc::IP_PMTUDISC_WANT.to_ne_bytes();
    set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &wanted)?;
    if socket.local_addr()?.is_ipv6() {
        set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &wanted)?;
    }
    Ok(())
}

/// Gives an accepted connection its options. A connection that is already dead is left alone: its
/// first read will tell.
pub fn tune_accepted(stream: &Stream, tuning: &SocketTuning) {
    if let Stream::Tcp(tcp) = stream {
        let socket = SockRef::from(tcp);
        let _ = socket.set_tcp_nodelay(true);
        let _ = keep_alive(&socket, tuning);
    }
}

fn keep_alive(socket: &Socket, tuning: &SocketTuning) -> io::Result<()> {
    let wanted = tuning.keepalive.unwrap_or(KEEPALIVE);
    // The kernel takes whole seconds, at least one.
    let whole = |time: Duration| Duration::from_secs(time.as_secs().clamp(1, 32_767));
    let mut keepalive = TcpKeepalive::new();
    if let Some(time) = wanted.time {
        keepalive = keepalive.with_time(whole(time));
    }
    if let Some(interval) = wanted.interval {
        keepalive = keepalive.with_interval(whole(interval));
    }
    if let Some(probes) = wanted.probes {
        keepalive = keepalive.with_retries(probes.clamp(1, 127));
    }
    socket.set_tcp_keepalive(&keepalive)
}

/// Where a redirect rule (nftables REDIRECT or DNAT) took this connection from. An error when the
/// connection was not redirected.
pub fn original_dst(socket: BorrowedFd<'_>, ipv4: bool) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&socket);
    let original = if ipv4 {
        socket.original_dst_v4()
    } else {
        // A dual-stack socket's IPv4 clients are only known to the IPv4 table.
        socket.original_dst_v6().or_else(|error| socket.original_dst_v4().map_err(|_| error))
    }?;
    original.as_socket().map(unmapped).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// `::ffff:a.b.c.d` as the IPv4 address that it means; anything else as it is.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

/// Reads what is there into the spare room of `buffer`. `Ok(0)` is the peer's end of stream.
pub(super) fn receive<B: BufMut>(socket: BorrowedFd<'_>, buffer: &mut B) -> io::Result<usize> {
    // SAFETY: the kernel writes bytes into the room; nothing reads it before or makes it uninitialised.
    let room = unsafe { buffer.chunk_mut().as_uninit_slice_mut() };
    let (received, _) = rustix::net::recv(socket, room, RecvFlags::DONTWAIT)?;
    let count = received.0.len();
    // SAFETY: the call has just written these bytes.
    unsafe { buffer.advance_mut(count) };
    Ok(count)
}

/// Copies bytes that wait on `socket` without consuming them.
pub(super) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(socket, buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0)
}

/// Bytes in the send queue of `socket`, sent but not acknowledged ones included.
pub(super) fn unsent(socket: BorrowedFd<'_>) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ on sockets) writes one int to the given address.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == 0 {
        usize::try_from(count).unwrap_or(0)
    } else {
        0
    }
}

/// Lets the kernel choose the port when connecting, so that a fixed source address does not limit
/// us to one ephemeral port range for all destinations together.
fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &on.to_ne_bytes())
}

/// Sets a socket option by its numbers, as config gives it.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and size describe `value`, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets those of `options` whose time is `state`.
fn set_options(socket: &Socket, options: &[SocketOption], state: SocketState) -> io::Result<()> {
    for option in options.iter().filter(|option| option.state == state) {
        set_option(socket.as_fd(), option.level, option.name, &option.value).map_err(|error| {
            let (level, name) = (option.level, option.name);
            io::Error::new(error.kind(), format!("socket option {level}/{name}: {error}"))
        })?;
    }
    Ok(())
}

/// Lets the socket have addresses that are not this machine's. Needs CAP_NET_ADMIN.
fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// Lets the socket have an address that does not exist yet.
fn set_freebind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true),
        SocketAddr::V6(_) => socket.set_freebind_v6(true),
    }
}

/// The kernel's number of a socket, as `/proc/net/tcp` shows it.
pub fn inode(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // Following the link stats the socket itself.
    Ok(std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))?.ino())
}

/// Sends every new connection of the `SO_REUSEPORT` group of `socket` to the group's member
/// `index`, in order of `listen`. With a successor listening on the same port, its first socket has
/// the number of ours as index: we then get no more connections, can accept what waits in our
/// queues, and close without losing any. Connections in handshake at this moment still arrive here,
/// so accept for about a round trip longer.
///
/// An index beyond the group leaves the kernel's spreading by hash. The rule belongs to the group
/// and outlives `socket`: see [`stop_steering`].
pub fn steer_new_connections(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut program =
        [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: index }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: `filter` describes the one instruction of `program`; both outlive the call, which
    // copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ends [`steer_new_connections`] for the group of `socket`: new connections spread by hash again.
/// The successor calls it once its predecessor is gone, else a rule left behind could single out
/// one of its sockets. Without a rule, nothing happens. Linux 5.3 or later.
pub fn stop_steering(socket: BorrowedFd<'_>) -> io::Result<()> {
    let ignored: libc::c_int = 0;
    match set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, &ignored.to_ne_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Keeps the calling thread on processor `core`.
pub fn pin_thread(core: usize) -> io::Result<()> {
    if core >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: cpu_set_t is a plain bit set for which zero is a valid value; `core` is within it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The machine's first IPv4 address that is not `127.0.0.1`, or that one when it has no other: what
/// Envoy calls its local address.
pub fn own_address() -> Ipv4Addr {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the head of the list, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Ipv4Addr::LOCALHOST;
    }
    let mut found = None;
    let mut next = list.cast_const();
    // SAFETY: `next` is null or an entry of the list, which lives until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: `ifa_addr` is null or the address of this entry, of the type that its family says.
        let address = unsafe {
            match entry.ifa_addr.as_ref() {
                Some(address) if libc::c_int::from(address.sa_family) == libc::AF_INET => {
                    entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned().sin_addr
                }
                _ => continue,
            }
        };
        let address = Ipv4Addr::from(u32::from_be(address.s_addr));
        if address != Ipv4Addr::LOCALHOST {
            found = Some(address);
            break;
        }
    }
    // SAFETY: `list` came from getifaddrs and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    found.unwrap_or(Ipv4Addr::LOCALHOST)
}

/// Names the calling thread; the kernel keeps 15 bytes.
pub fn set_thread_name(name: &str) {
    let mut bytes = [0u8; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes().filter(|byte| *byte != 0)) {
        *to = from;
    }
    // SAFETY: `bytes` ends with a NUL, since only its first 15 bytes were written.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, bytes.as_ptr());
    }
}

/// Raises the soft limit of open files to the hard one; returns the limit now in force.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid rlimit.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
