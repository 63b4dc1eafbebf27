//! What a script can ask about its stream.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Lua, Result, Value};
use outrigger_control_api::pb::google::protobuf::Struct;

use super::{convert, Chosen, NAME};
use crate::config::discovery::SanKind;
use crate::http::exchange::Exchange;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata, Protocol};
use crate::tls::peer::Facts;
use crate::tls::TlsInfo;

/// The stream, as it was when the script was asked.
#[derive(Debug)]
pub(super) struct View {
    name: Arc<str>,
    context: Option<Arc<Struct>>,
    connection: Option<Rc<ConnectionInfo>>,
    client: Option<SocketAddr>,
    protocol: Option<Protocol>,
    route_name: Option<Arc<str>>,
    route_metadata: Option<Arc<DynamicMetadata>>,
    metadata: Option<Box<DynamicMetadata>>,
}

impl View {
    pub(super) fn new(chosen: &Chosen) -> Self {
        Self {
            name: chosen.name.clone(),
            context: chosen.context.clone(),
            connection: None,
            client: None,
            protocol: None,
            route_name: None,
            route_metadata: None,
            metadata: None,
        }
    }

    pub(super) fn look<'n>(&mut self, ex: &Exchange<'_>, noted: impl Iterator<Item = &'n (String, Struct)>) {
        let info = &ex.info;
        self.connection = Some(info.connection.clone());
        self.client = info.client;
        self.protocol = info.protocol;
        self.route_name.clone_from(&info.route_name);
        self.route_metadata.clone_from(&info.route_metadata);
        self.metadata.clone_from(&info.metadata);
        for (name, fields) in noted {
            let all = self.metadata.get_or_insert_default();
            all.entry(name.clone()).or_default().fields.extend(fields.fields.clone());
        }
    }

    /// What is asked for; nil where there is nothing.
    pub(super) fn tell(&self, lua: &Lua, what: &str) -> Result<Value> {
        let text = |text: &str| lua.create_string(text).map(Value::String);
        let Some(connection) = &self.connection else { return Ok(Value::Nil) };
        if let Some(fact) = what.strip_prefix("ssl.") {
            return connection.tls.as_ref().map_or(Ok(Value::Nil), |tls| of_tls(lua, tls, fact));
        }
        let address = |address: Option<SocketAddr>| {
            address.map_or(Ok(Value::Nil), |address| text(&address.to_string()))
        };
        match what {
            "isSsl" => Ok(Value::Boolean(connection.tls.is_some())),
            "protocol" => self.protocol.map_or(Ok(Value::Nil), |protocol| text(protocol.name())),
            "routeName" => text(self.route_name.as_deref().unwrap_or_default()),
            "requestedServerName" => text(connection.server_name.as_deref().unwrap_or_default()),
            "downstreamLocalAddress" => address(connection.local),
            "downstreamDirectLocalAddress" => address(connection.direct_local),
            "downstreamRemoteAddress" => address(self.client.or(connection.remote)),
            "downstreamDirectRemoteAddress" => address(connection.direct_remote),
            "filterContext" => match &self.context {
                Some(context) => convert::table(lua, context).map(Value::Table),
                None => Ok(Value::Nil),
            },
            "metadata" => {
                let all = self.route_metadata.as_ref();
                let found = all.and_then(|all| all.get(&*self.name).or_else(|| all.get(NAME)));
                found.map_or(Ok(Value::Nil), |fields| convert::table(lua, fields).map(Value::Table))
            }
            "dynamicMetadata" => {
                let Some(all) = &self.metadata else { return Ok(Value::Nil) };
                let table = lua.create_table()?;
                for (name, fields) in all.iter() {
                    table.raw_set(name.as_str(), convert::table(lua, fields)?)?;
                }
                Ok(Value::Table(table))
            }
            _ => Ok(Value::Nil),
        }
    }
}

fn of_tls(lua: &Lua, tls: &TlsInfo, fact: &str) -> Result<Value> {
    let text = |text: &str| lua.create_string(text).map(Value::String);
    let names = |facts: Option<&Facts>, kind: SanKind| {
        let facts = facts.into_iter().flat_map(|facts| &facts.names);
        let names = facts.filter(|(other, _)| *other == kind).map(|(_, name)| name.as_str());
        lua.create_sequence_from(names).map(Value::Table)
    };
    let (own, peer) = (tls.local_facts(), tls.peer_facts());
    let of = |facts: Option<&Facts>, field: fn(&Facts) -> &str| text(facts.map_or("", field));
    match fact {
        "peerCertificatePresented" => Ok(Value::Boolean(tls.peer.is_some())),
        "peerCertificateValidated" => Ok(Value::Boolean(tls.is_verified())),
        "uriSanLocalCertificate" => names(own, SanKind::Uri),
        "uriSanPeerCertificate" => names(peer, SanKind::Uri),
        "dnsSansLocalCertificate" => names(own, SanKind::Dns),
        "dnsSansPeerCertificate" => names(peer, SanKind::Dns),
        "subjectLocalCertificate" => of(own, |facts| &facts.subject),
        "subjectPeerCertificate" => of(peer, |facts| &facts.subject),
        "issuerPeerCertificate" => of(peer, |facts| &facts.issuer),
        "sha256PeerCertificateDigest" => of(peer, |facts| &facts.sha256),
        "serialNumberPeerCertificate" => of(peer, |facts| &facts.serial),
        "tlsVersion" => text(tls.version),
        "ciphersuiteString" => text(tls.cipher),
        _ => Ok(Value::Nil),
    }
}
