//! Pods as network namespaces on one switch, and sockets in them.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{move_into_link_name_space, LinkNameSpaceType};

use super::user;
use crate::harness::DEADLINE;
use crate::peers;

/// A network namespace; gone when dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `work` on a thread in it. Sockets made there stay there, wherever they are used.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.thread(work).join().expect("the work to be done")
    }

    /// Starts a thread in it.
    pub fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(self.path()).expect("the namespace's file");
        std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), kind).expect("to enter the namespace");
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// A pod: a namespace with an interface on the switch.
pub struct Pod {
    pub namespace: Namespace,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pod {
    /// Its address of one version of IP.
    pub fn at(&self, six: bool, port: u16) -> SocketAddr {
        let ip: IpAddr = if six { self.v6.into() } else { self.v4.into() };
        SocketAddr::new(ip, port)
    }

    /// A connection from it.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.namespace.within(move || {
            let stream = TcpStream::connect_timeout(&to, DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// A socket that listens on its addresses of both versions.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.namespace.within(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a port"))
    }

    /// Starts a program in it, as the group that capture takes for the proxy's where there is one.
    pub fn program(&self, as_proxy: bool, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace.path()));
        if user::is_alone() {
            command.env("PROXY_MARK", user::MARK);
        } else if as_proxy {
            command.args(["setpriv", "--regid", "1337", "--clear-groups"]);
        }
        command.arg(program);
        command
    }

    /// Runs `outrigger init` with these flags in it.
    pub fn init(&self, flags: &[&str]) {
        let output = self.program(false, env!("CARGO_BIN_EXE_outrigger")).arg("init").args(flags).output();
        let output = output.expect("to run outrigger init");
        assert!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A page of the admin port in it.
    pub fn admin(&self, path: &str) -> Option<String> {
        self.any_page(path).filter(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// What the admin port in it says, good or bad.
    pub fn any_page(&self, path: &str) -> Option<String> {
        let path = path.to_string();
        self.namespace.within(move || {
            use std::io::{Read, Write};
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 15000)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })
    }

    /// A counter of the sidecar in it.
    pub fn counter(&self, name: &str) -> u64 {
        let page = self.admin("/stats").expect("statistics");
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(": ")?.trim().parse().ok();
        page.lines().find_map(value).unwrap_or(0)
    }
}

/// Pods on a switch.
pub struct Mesh {
    pub switch: Namespace,
    pub pods: Vec<Pod>,
}

impl Mesh {
    /// So many pods, with addresses 10.77.0.1 and fd77::1, 10.77.0.2 and fd77::2, and so on.
    pub fn new(count: u8) -> Mesh {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(peers::have(&["ip", "nsenter", "setpriv"]));
        user::prepare();
        let own = format!("og{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let namespace = |part: &str| {
            let name = format!("{own}-{part}");
            ip(&format!("netns add {name}"));
            Namespace { name }
        };
        let switch = namespace("switch");
        let s = &switch.name;
        ip(&format!("-n {s} link add br0 type bridge"));
        ip(&format!("-n {s} link set br0 up"));
        let pods = (1..=count).map(|number| {
            let namespace = namespace(&number.to_string());
            let n = &namespace.name;
            ip(&format!("link add v{number} netns {s} type veth peer name eth0 netns {n}"));
            ip(&format!("-n {s} link set v{number} master br0 up"));
            ip(&format!("-n {n} link set lo up"));
            ip(&format!("-n {n} link set eth0 up"));
            let (v4, v6) =
                (Ipv4Addr::new(10, 77, 0, number), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()));
            ip(&format!("-n {n} addr add {v4}/24 dev eth0"));
            ip(&format!("-n {n} addr add {v6}/64 dev eth0 nodad"));
            // From where a sidecar connects to its own application.
            ip(&format!("-n {n} addr add ::6/128 dev lo nodad"));
            Pod { namespace, v4, v6 }
        });
        let pods = pods.collect();
        Mesh { switch, pods }
    }
}

/// Runs `ip` with these arguments.
pub fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("to run ip");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}
