//! Transparent capture: the rules that bring a pod's connections to its proxy.
//!
//! Comes in: [`Options`]. Goes out: rules in the kernel, by nf_tables' own messages and no other program. One
//! transaction makes all rules or none, and what an earlier one made is replaced.

mod netlink;
mod nft;
pub mod options;
mod route;
pub mod rules;

use std::io;
use std::path::Path;

pub use options::{CaptureFlags, Options};

use netlink::{ask, Bus, Message};
use options::Inbound;
use rules::{Family, Table};

/// Why nothing was changed. The text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// We may not.
    #[error("capture: changing rules of the network needs CAP_NET_ADMIN in this network namespace")]
    Denied,
    /// A kernel without it.
    #[error(
        "capture: the kernel has no nf_tables ({0}): it needs CONFIG_NF_TABLES and CONFIG_NETFILTER_NETLINK"
    )]
    NoNetfilter(io::Error),
    /// A kernel without some of it.
    #[error("capture: the kernel refuses {what}: {source}; it needs {needs}")]
    Refused {
        /// What.
        what: String,
        /// The options of a kernel that can do it.
        needs: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The rules for these options, in the language of nft, and commands of `ip` where there is routing to change.
pub fn shown(options: &Options) -> String {
    let mut text = String::new();
    for family in families() {
        text.push_str(&rules::table(options, family).to_string());
        if options.mode == Inbound::Tproxy {
            text.push_str(&route::shown(family, options.tproxy_mark, options.tproxy_table));
        }
    }
    text
}

/// Makes the rules; those of an earlier call are gone at the same moment.
///
/// # Errors
/// The kernel refuses them; what was there stays.
pub fn apply(options: &Options) -> Result<(), CaptureError> {
    // The way back is there before anything is sent along it.
    let routes = |family| route::add(family, options.tproxy_mark, options.tproxy_table);
    if options.mode == Inbound::Tproxy {
        for message in families().flat_map(routes) {
            one(Bus::Route, message, &[libc::EEXIST])?;
        }
    }
    let tables: Vec<Table> = families().map(|family| rules::table(options, family)).collect();
    match transaction(&nft::replace(&tables)) {
        // Kernels before 5.9 cannot refuse what comes in, and may say so of the transaction as a whole.
        Err(CaptureError::Refused { .. }) if options.mode == Inbound::Tproxy => {
            let tables: Vec<Table> = tables.into_iter().map(rules::without_resets).collect();
            transaction(&nft::replace(&tables))
        }
        result => result,
    }
}

/// Removes the rules, where there are any.
///
/// # Errors
/// The kernel refuses.
pub fn clean_up(options: &Options) -> Result<(), CaptureError> {
    let tables: Vec<Table> = families().map(rules::named).collect();
    transaction(&nft::remove(&tables))?;
    let routes = |family| route::remove(family, options.tproxy_mark, options.tproxy_table);
    for message in families().flat_map(routes) {
        one(Bus::Route, message, &[libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT])?;
    }
    Ok(())
}

/// The versions of IP that this machine speaks.
fn families() -> impl Iterator<Item = Family> {
    let six = Path::new("/proc/self/net/if_inet6").exists();
    [Some(Family::V4), six.then_some(Family::V6)].into_iter().flatten()
}

fn transaction(messages: &[Message]) -> Result<(), CaptureError> {
    ask(Bus::Netfilter, messages).map_err(|(number, error)| refused(messages, number, error))
}

fn one(bus: Bus, message: Message, fine: &[i32]) -> Result<(), CaptureError> {
    let messages = [message];
    match ask(bus, &messages) {
        Err((_, error)) if error.raw_os_error().is_some_and(|code| fine.contains(&code)) => Ok(()),
        result => result.map_err(|(number, error)| refused(&messages, number, error)),
    }
}

fn refused(messages: &[Message], number: Option<usize>, error: io::Error) -> CaptureError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return CaptureError::Denied;
    }
    match number.and_then(|number| messages.get(number)) {
        Some(message) => {
            let (what, needs) = (message.subject.what.clone(), message.subject.needs);
            CaptureError::Refused { what, needs, source: error }
        }
        None => CaptureError::NoNetfilter(error),
    }
}

#[cfg(test)]
mod tests;
