//! The agent's rendezvous stores, over c10d's TCPStore.

use std::net::{IpAddr, ToSocketAddrs};
use std::time::Duration;

use anybit_shared::ids::{Generation, JobId};
use anyhow::Context;

use super::{Store, interface_address, local_address_towards};
use crate::agent::StoreHost;
use crate::settings::AgentSettings;

/// Opens stores on the host's collectives interface, or else on the address from which it reaches
/// the coordinator.
pub struct TcpStoreHost {
    interface: Option<String>,
    /// host:port.
    coordinator: String,
    timeout: Duration,
}

impl TcpStoreHost {
    /// Checks that a configured interface is this host's.
    pub fn new(settings: &AgentSettings) -> anyhow::Result<Self> {
        if let Some(interface) = &settings.interface {
            interface_address(interface)?;
        }
        let url: http::Uri = settings.coordinator.parse().context("coordinator is no URL")?;
        let host = url.host().context("the coordinator's URL names no host")?;
        let coordinator = format!("{host}:{}", url.port_u16().unwrap_or(80));
        Ok(Self { interface: settings.interface.clone(), coordinator, timeout: settings.rendezvous_timeout })
    }

    fn address(&self) -> anyhow::Result<IpAddr> {
        if let Some(interface) = &self.interface {
            return Ok(interface_address(interface)?);
        }
        let mut known = self
            .coordinator
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {}", self.coordinator))?;
        let coordinator = known.next().with_context(|| format!("{} has no address", self.coordinator))?;
        local_address_towards(coordinator)
            .with_context(|| format!("no route to the coordinator at {coordinator}"))
    }
}

impl StoreHost for TcpStoreHost {
    fn open(&self, _: &JobId, _: Generation) -> anyhow::Result<(Box<dyn Send>, String)> {
        let store = Store::open(self.address()?, self.timeout)?;
        let address = store.address().to_string();
        Ok((Box::new(store), address))
    }
}
