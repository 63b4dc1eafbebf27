//! DNS: questions to a proxy, what it says, and a name server that it may ask.

use hickory_resolver::proto::op::{Message, Metadata, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a name server says of a name.
pub enum Says {
    Addresses(Vec<IpAddr>),
    NoSuchName,
    Nothing,
}

/// A name server. It ends with the process.
pub struct NameServer {
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// One on a port of this machine.
    pub fn start(says: impl Fn(&str) -> Says + Send + 'static) -> NameServer {
        NameServer::on(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"), says)
    }

    /// One on a socket.
    pub fn on(socket: UdpSocket, says: impl Fn(&str) -> Says + Send + 'static) -> NameServer {
        let port = socket.local_addr().expect("an address").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 1500];
            while let Ok((count, peer)) = socket.recv_from(&mut bytes) {
                let Ok(query) = Message::from_vec(&bytes[..count]) else { continue };
                let Some(question) = query.queries.first().cloned() else { continue };
                let name = question.name().to_ascii().trim_end_matches('.').to_owned();
                log.lock().expect("no panic").push(format!("{name} {}", question.query_type()));
                let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
                answer.metadata = Metadata::response_from_request(&query.metadata);
                answer.metadata.recursion_available = true;
                match says(&name) {
                    Says::Nothing => continue,
                    Says::NoSuchName => answer.metadata.response_code = ResponseCode::NXDomain,
                    Says::Addresses(list) => {
                        for address in list {
                            let data = match (address, question.query_type()) {
                                (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
                                (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
                                _ => continue,
                            };
                            answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
                        }
                    }
                }
                answer.add_query(question);
                let _ = socket.send_to(&answer.to_vec().expect("a message"), peer);
            }
        });
        NameServer { port, asked }
    }

    /// What it was asked: names and types.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// A query as stub resolvers send it, with this number.
pub fn query(number: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = number;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message.to_vec().expect("a message")
}

/// A response in words; of equal answers the order does not count.
pub fn described(bytes: &[u8]) -> String {
    let Ok(message) = Message::from_vec(bytes) else { return format!("{bytes:02x?}") };
    let records = |list: &[Record]| {
        let mut lines: Vec<_> = list.iter().map(ToString::to_string).collect();
        lines.sort();
        lines
    };
    // Each record is in plain view, compressed or not; the number and flags are those of the first words.
    format!(
        "{:02x?} {:?} {:?} {:?} {} more, {} bytes",
        &bytes[..4.min(bytes.len())],
        message.queries.iter().map(ToString::to_string).collect::<Vec<_>>(),
        records(&message.answers),
        records(&message.additionals),
        message.authorities.len(),
        bytes.len()
    )
}

/// Asks and waits for the response.
pub fn ask(socket: &UdpSocket, query: &[u8], patience: Duration) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(patience)).expect("set");
    socket.send(query).expect("sent");
    let mut bytes = [0; 1500];
    let count = socket.recv(&mut bytes).ok()?;
    Some(bytes[..count].to_vec())
}
