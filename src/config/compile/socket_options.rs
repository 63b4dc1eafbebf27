//! Socket options by their numbers.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3 as core;

use crate::config::cluster::{SocketOption, SocketState};
use crate::config::problems::Problems;

/// Compiles the options in `field` for TCP sockets over this version of IP.
pub(super) fn compile(
    options: &[core::SocketOption],
    field: &str,
    ipv4: Option<bool>,
    problems: &mut Problems,
) -> Arc<[SocketOption]> {
    use core::socket_option::{SocketIpVersion, SocketState as State, Value};
    let mut compiled = Vec::with_capacity(options.len());
    for (index, option) in options.iter().enumerate() {
        let for_datagrams =
            option.r#type.as_ref().is_some_and(|kind| kind.datagram.is_some() && kind.stream.is_none());
        let for_other_version = match option.ip_version() {
            SocketIpVersion::Unspecified => false,
            SocketIpVersion::Ipv4 => ipv4 == Some(false),
            SocketIpVersion::Ipv6 => ipv4 == Some(true),
        };
        if for_datagrams || for_other_version {
            continue;
        }
        problems.at_index(field, index, |problems| {
            let mut number = |field: &str, value: i64| {
                let number = i32::try_from(value).ok();
                if number.is_none() {
                    problems.report_at(field, "is no number that the kernel takes");
                }
                number
            };
            let value: Option<Box<[u8]>> = match &option.value {
                Some(Value::IntValue(value)) => {
                    number("int_value", *value).map(|value| value.to_ne_bytes().into())
                }
                Some(Value::BufValue(bytes)) => Some(bytes.as_slice().into()),
                // Breaks a field rule.
                None => None,
            };
            let numbers = (number("level", option.level), number("name", option.name));
            let (Some(level), Some(name), Some(value)) = (numbers.0, numbers.1, value) else { return };
            let state = match option.state() {
                State::StatePrebind => SocketState::BeforeBind,
                State::StateBound => SocketState::Bound,
                State::StateListening => SocketState::Listening,
            };
            compiled.push(SocketOption { level, name, value, state });
        });
    }
    compiled.into()
}

/// The option that makes room for so many connections that have sent data with their SYN.
pub(super) fn fast_open(queue: u32) -> SocketOption {
    SocketOption {
        level: libc::IPPROTO_TCP,
        name: libc::TCP_FASTOPEN,
        value: i32::try_from(queue).unwrap_or(i32::MAX).to_ne_bytes().into(),
        state: SocketState::Listening,
    }
}
